package handover

import "testing"

// The number of a RST: the end of what was sent, but not behind the window.
func TestResetNumber(t *testing.T) {
	const add = 0xfedc_0000 // of the flow that is told
	for _, row := range []struct {
		name   string
		maxAck uint32
		window uint32
		scale  uint8
		sent   uint32 // in the numbers of maxAck
		want   uint32
	}{
		{"all acknowledged", 5000, 64000, 7, 5000, 5000},
		{"an acknowledgement is missing", 5000, 64000, 7, 6000, 6000},
		{"window is full", 5000, 64000, 7, 69000, 69000},
		{"window is closed", 5000, 0, 7, 5000, 5000},
		{"window was rounded", 5000, 64000, 7, 69127, 69127},
		{"beyond the window", 5000, 64000, 7, 69128, 69000},
		{"beyond the window, not scaled", 5000, 64000, 0, 69001, 69000},
		{"far beyond", 5000, 0, 14, 1 << 30, 5000},
		{"numbers wrap", 0xffff_fff0, 64000, 7, 0x100, 0x100},
		{"numbers wrap, beyond the window", 0xffff_fff0, 0x100, 0, 0x200, 0xf0},
	} {
		f := Flow{MaxAck: row.maxAck, Window: row.window, Scale: row.scale, AckAdd: add}
		if got := f.sndNxt(Flow{EndSeq: row.sent + add}); got != row.want {
			t.Errorf("%s: %d, want %d", row.name, got, row.want)
		}
	}
}
