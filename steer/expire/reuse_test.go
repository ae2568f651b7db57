package expire

import (
	"testing"
	"time"

	"usher/steer/handover"
)

// again gives the client's tuple a new session, with another port towards the backend,
// as the table does when a client makes a new connection from the same port.
func again(f *flows, e *ended, w *Watcher) {
	w.Supersede(client)
	next := handover.Tuple{Remote: backend.Remote, Local: handover.Tuple{}.Local}
	since := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byLeg[client] = handover.Flow{Tuple: client, Other: next, FromClient: true, Owner: handover.Owner{Since: since}, Bytes: 1, AckAdd: 7}
	f.byLeg[next] = handover.Flow{Tuple: next, Other: client, Owner: handover.Owner{Since: since}, Bytes: 2}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.known[client] = true
}

// A client may use its port again as soon as the server has closed. What is still to
// be done for its old session must not hit the new one.
func TestPortUsedAgain(t *testing.T) {
	closed := func(f *flows) {
		f.change(client, true, fin)
		f.change(backend, true, fin)
	}
	waits := func(f *flows) {
		f.change(client, true, func(x *handover.Flow) { x.FIN, x.EndSeq = true, 101 })
		f.change(backend, true, fin)
	}
	for name, tt := range map[string]struct {
		end  func(*flows)
		told []string
	}{
		"flows linger":         {closed, []string{"closed 11 22", "superseded 11 22"}},
		"FIN not acknowledged": {waits, []string{"superseded 11 22"}},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, w *Watcher) {
				tt.end(f)
				time.Sleep(3 * tick)
				again(f, e, w)
				time.Sleep(closeTimeout + linger)
				expect(t, e, f, 2, tt.told...)
				// The new session's end is seen as well.
				f.change(client, true, func(x *handover.Flow) { x.RST = true })
				expect(t, e, f, 0, append(tt.told, "reset 1 2")...)
			})
			scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, w *Watcher) { // at once
				tt.end(f)
				time.Sleep(3 * tick)
				again(f, e, w)
				f.change(client, true, func(x *handover.Flow) { x.RST = true })
				expect(t, e, f, 0, append(tt.told, "reset 1 2")...)
			})
		})
	}
}

// One side has ended its direction, and the other one is never heard of again.
func TestHalfClosedAndSilent(t *testing.T) {
	scene(t, time.Minute, func(t *testing.T, f *flows, e *ended, _ *Watcher) {
		f.change(client, true, func(x *handover.Flow) { x.FIN, x.Idle = true, 61*time.Second })
		time.Sleep(sweepEvery + tick)
		expect(t, e, f, 2) // it may still be sending
		f.change(backend, false, func(x *handover.Flow) { x.Idle = 61 * time.Second })
		time.Sleep(sweepEvery + tick)
		expect(t, e, f, 0, "idle 11 22")
	})
}

// A process that was killed while it removed a session has left one of its flows.
func TestHalfOfASession(t *testing.T) {
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, w *Watcher) {
		f.Remove(backend)
		if w.End(client, "kicked") {
			t.Error("nothing was carried")
		}
		expect(t, e, f, 0, "broken 11 0")
	})
	scene(t, time.Hour, func(t *testing.T, f *flows, e *ended, _ *Watcher) { // found by the sweep
		f.Remove(client)
		e.mu.Lock()
		delete(e.known, client)
		e.mu.Unlock()
		time.Sleep(sweepEvery + tick)
		expect(t, e, f, 0, "broken 0 22")
	})
}
