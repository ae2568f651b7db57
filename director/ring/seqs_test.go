package ring

import (
	"testing"

	"pgregory.net/rapid"
)

func TestSeqs(t *testing.T) {
	type step struct {
		seq  uint32
		want seqState
	}
	for name, steps := range map[string][]step{
		"in order":          {{1, fresh}, {2, fresh}, {2, seen}, {1, seen}, {3, fresh}},
		"overtaken":         {{1, fresh}, {5, fresh}, {3, late}, {3, seen}, {4, late}, {5, seen}, {2, late}},
		"too old":           {{5000, fresh}, {5000 - window, seen}, {5001 - window, late}, {5001 - window, seen}},
		"a jump":            {{1, fresh}, {90000, fresh}, {1, seen}, {90000, seen}, {89999, late}},
		"around the window": {{window - 1, fresh}, {window, fresh}, {window + 1, fresh}, {window, seen}, {2, late}},
	} {
		var s seqs
		for i, step := range steps {
			if got := s.see(step.seq); got != step.want {
				t.Errorf("%s, step %d: %d is %v, want %v", name, i, step.seq, got, step.want)
			}
		}
	}
}

// TestSeqsOnce: whatever comes in whatever order, no number is news twice, and none that is young enough is lost.
func TestSeqsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s seqs
		once, highest := map[uint32]bool{}, uint32(0)
		for _, seq := range rapid.SliceOfN(rapid.Uint32Range(1, 4*window), 1, 300).Draw(t, "numbers") {
			got := s.see(seq)
			want := seen
			if !once[seq] && (seq > highest || highest-seq < window) {
				want = late
				if seq > highest {
					want, highest = fresh, seq
				}
				once[seq] = true
			}
			if got != want {
				t.Fatalf("%d is %v, want %v; the highest is %d", seq, got, want, highest)
			}
		}
	})
}
