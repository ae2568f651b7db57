package expire

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"usher/steer/handover"
)

// flows is the interface of the kernel as a map: what real flows do is tested with
// real ones in cmd/usher; here only the watcher's decisions and times are.
type flows struct {
	mu     sync.Mutex
	byLeg  map[handover.Tuple]handover.Flow
	events chan handover.Tuple
}

func (f *flows) Run(ctx context.Context, tell func(handover.Tuple)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case t := <-f.events:
			tell(t)
		}
	}
}

func (f *flows) Flow(t handover.Tuple) (handover.Flow, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x, ok := f.byLeg[t]; ok {
		return x, nil
	}
	return handover.Flow{}, handover.ErrNoFlow
}

func (f *flows) Flows(yield func(handover.Flow) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.byLeg {
		if !yield(x) {
			return nil
		}
	}
	return nil
}

func (f *flows) Remove(t handover.Tuple) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byLeg, t)
}

func (f *flows) left() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.byLeg)
}

// change changes a leg's flow and tells of it, if event is set.
func (f *flows) change(t handover.Tuple, event bool, change func(*handover.Flow)) {
	f.mu.Lock()
	x := f.byLeg[t]
	change(&x)
	f.byLeg[t] = x
	f.mu.Unlock()
	if event {
		f.events <- t
	}
}

// ended records what the table of sessions is told.
type ended struct {
	mu    sync.Mutex
	known map[handover.Tuple]bool
	told  []string
}

func (e *ended) Known(t handover.Tuple, _ time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.known[t]
}

func (e *ended) Ended(_ handover.Tuple, _ time.Time, toBackend, toClient uint64, how string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = append(e.told, fmt.Sprintf("%s %d %d", how, toBackend, toClient))
}

func (e *ended) list() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.told)
}

var (
	// Documentation addresses: no reset can reach anybody.
	client  = handover.Tuple{Remote: netip.MustParseAddrPort("192.0.2.1:1000"), Local: netip.MustParseAddrPort("192.0.2.2:143")}
	backend = handover.Tuple{Remote: netip.MustParseAddrPort("192.0.2.3:143"), Local: netip.MustParseAddrPort("192.0.2.2:2000")}
)

func pair() *flows {
	return &flows{events: make(chan handover.Tuple), byLeg: map[handover.Tuple]handover.Flow{
		client:  {Tuple: client, Other: backend, FromClient: true, Bytes: 11, EndSeq: 100, MaxAck: 500, AckAdd: 1000},
		backend: {Tuple: backend, Other: client, Bytes: 22, EndSeq: 1500, MaxAck: 90, AckAdd: 10},
	}}
}

// scene runs a watcher over one session in a bubble of virtual time.
func scene(t *testing.T, idle time.Duration, play func(t *testing.T, f *flows, e *ended, w *Watcher)) {
	synctest.Test(t, func(t *testing.T) {
		f, e := pair(), &ended{known: map[handover.Tuple]bool{client: true}}
		w := New(f, e, idle, zerolog.Nop())
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan error, 1)
		go func() { stopped <- w.Run(ctx) }()
		synctest.Wait() // the sweep at the start
		play(t, f, e, w)
		cancel()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

func expect(t *testing.T, e *ended, f *flows, left int, told ...string) {
	t.Helper()
	synctest.Wait()
	if got := e.list(); !slices.Equal(got, told) {
		t.Errorf("table was told %q, want %q", got, told)
	}
	if n := f.left(); n != left {
		t.Errorf("%d flows are left, want %d", n, left)
	}
}

func fin(x *handover.Flow) { x.FIN = true }

func TestTwoFINs(t *testing.T) {
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, _ *Watcher) {
		f.change(client, true, fin)
		expect(t, e, f, 2) // the other direction goes on
		f.change(backend, true, fin)
		expect(t, e, f, 2, "closed 11 22") // EndSeq and MaxAck agree
		time.Sleep(linger - 2*tick)
		expect(t, e, f, 2, "closed 11 22") // last packets may be sent again
		time.Sleep(3 * tick)
		expect(t, e, f, 0, "closed 11 22")
	})
}

func TestFINNotAcknowledged(t *testing.T) {
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, _ *Watcher) {
		f.change(client, true, func(x *handover.Flow) { x.FIN, x.EndSeq = true, 101 })
		f.change(backend, true, fin)
		expect(t, e, f, 2)
		time.Sleep(10 * time.Second)
		expect(t, e, f, 2)
		f.change(backend, false, func(x *handover.Flow) { x.MaxAck = 91 }) // no event for an acknowledgement
		time.Sleep(2 * tick)
		expect(t, e, f, 2, "closed 11 22")
	})
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, _ *Watcher) { // it never comes
		f.change(client, true, func(x *handover.Flow) { x.FIN, x.EndSeq = true, 101 })
		f.change(backend, true, fin)
		time.Sleep(closeTimeout + 2*tick)
		expect(t, e, f, 0, "closed 11 22")
	})
}

func TestRST(t *testing.T) {
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, _ *Watcher) {
		f.change(backend, true, func(x *handover.Flow) { x.RST = true })
		expect(t, e, f, 0, "reset 11 22")
	})
}

func TestLostEventIsFoundBySweep(t *testing.T) {
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, _ *Watcher) {
		f.change(client, false, func(x *handover.Flow) { x.RST = true })
		expect(t, e, f, 2)
		time.Sleep(sweepEvery + tick)
		expect(t, e, f, 0, "reset 11 22")
	})
}

func TestIdle(t *testing.T) {
	scene(t, time.Minute, func(t *testing.T, f *flows, e *ended, _ *Watcher) {
		old := func(x *handover.Flow) { x.Idle = 61 * time.Second }
		f.change(client, false, old) // only one direction is silent
		time.Sleep(sweepEvery + tick)
		expect(t, e, f, 2)
		f.change(backend, false, old)
		time.Sleep(sweepEvery + tick)
		expect(t, e, f, 0, "idle 11 22")
	})
}

func TestEndAndSupersede(t *testing.T) {
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, w *Watcher) {
		if !w.End(client, "moved") || w.End(client, "moved") {
			t.Error("End must find the session once")
		}
		expect(t, e, f, 0, "moved 11 22")
	})
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, w *Watcher) {
		w.Supersede(client)
		expect(t, e, f, 0, "superseded 11 22")
	})
}

func TestStrays(t *testing.T) {
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, _ *Watcher) { // nobody knows the session
		e.mu.Lock()
		delete(e.known, client)
		e.mu.Unlock()
		time.Sleep(sweepEvery + tick)
		expect(t, e, f, 0, "unknown 11 22")
	})
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, _ *Watcher) { // half a session
		f.Remove(backend)
		f.change(client, true, fin)
		expect(t, e, f, 0, "broken 11 0")
	})
}
