package bpf_test

import (
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"usher/bpf"
)

// flip hands the session's pair over while another CPU sees a frame again and again.
// It returns the answer to the last request.
func (r *rig) flip(t *testing.T, hold uint64, frame []byte, delay int) bpf.SpliceControlResult {
	t.Helper()
	p := newScene(0).p
	c := request(0)
	r.putFlow(t, c.Legs[0].Key, bpf.SpliceFlow{State: observeState, Flags: flagSeen, EndSeq: p.seq})
	r.putFlow(t, c.Legs[1].Key, bpf.SpliceFlow{State: observeState, Flags: flagSeen, EndSeq: 77})
	r.putUser(t, bpf.SpliceUserKey{}, 0)
	c.Deadline = monotonic() + hold
	if got := r.control(t, freezeOp, c); got != resultOK {
		t.Fatalf("freeze: result %d", got)
	}
	c.Legs[0].RcvNxt, c.Legs[1].RcvNxt = p.seq, 77
	var wg sync.WaitGroup
	started := make(chan bool)
	wg.Go(func() {
		close(started)
		if _, err := r.SpliceTc.Run(&ebpf.RunOptions{Data: frame, Repeat: 1000}); err != nil {
			t.Error(err)
		}
	})
	<-started
	for until := monotonic() + uint64(delay); monotonic() < until; {
	}
	result := r.control(t, forwardOp, c)
	wg.Wait()
	return result
}

// TestNothingPassesAFlip: what is on its way through a program while the control
// program flips a pair to FORWARD must not get to the stack. The frozen socket would
// acknowledge it, and nobody would send it on. (XDP has the same code, but each
// repeated run of it costs the kernel a grace period.)
func TestNothingPassesAFlip(t *testing.T) {
	r := newRig(t, rigOptions{})
	s := newScene(0)
	s.p.options = []option{nop(), nop(), ts(1000, 2000), nop(), nop(), sack(1, 2, 3, 4)}
	frame := s.p.frame()
	passed := func() uint64 {
		c := r.counters(t)
		return c[verdictObserved].Packets + c[verdictHoldExpired].Packets
	}
	for _, row := range []struct {
		name  string
		hold  func(i int) uint64
		flips bool // there have to be some
	}{
		{"in time", func(int) uint64 { return second }, true},
		{"at the deadline", func(i int) uint64 { return 20_000 + uint64(i*97%200_000) }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			flips := 0
			for i := range 2000 {
				before := passed()
				if r.flip(t, row.hold(i), frame, i%200*50) != resultOK {
					continue
				}
				flips++
				if n := passed() - before; n != 0 {
					t.Fatalf("flip %d: %d packets passed that the socket had not received", i, n)
				}
			}
			if flips == 0 && row.flips {
				t.Error("no flip")
			}
			t.Logf("%d flips", flips)
		})
	}
}
