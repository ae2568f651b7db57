package handover

import (
	"io"
	"sync/atomic"
	"testing"
	"time"
)

// A client that has stopped reading may stay so for hours: its session is looked at
// ever less often, and again soon after it goes on.
func TestStalledClientCostsLittle(t *testing.T) {
	var looks atomic.Int64
	k := &unsettled{err: ErrNoFlow}
	s := newSite(t, &Relayer{Kernel: k, Quiet: func() time.Duration {
		if n := looks.Add(1); n == 1 {
			return 300 * time.Millisecond // everything is on its way before the first look
		}
		return time.Millisecond
	}}, nil)
	sent := random(700 << 10)
	go s.backend.Write(sent)
	time.Sleep(500 * time.Millisecond)
	if n := s.pair.ToClient.Load(); n != uint64(len(sent)) || s.pair.Reason() != Waiting {
		t.Skipf("the sockets' buffers here are of other sizes: %d bytes, %q", n, s.pair.Reason())
	}
	before := looks.Load()
	time.Sleep(time.Second)
	if n := looks.Load() - before; n > 20 {
		t.Errorf("looked %d times in a second at a session whose client does not read", n)
	}
	if _, err := io.ReadFull(s.client, make([]byte, len(sent))); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * longestPause); k.freezes.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no attempt after the client went on")
		}
	}
}
