package route

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"usher/director"
)

var (
	hostA = netip.MustParseAddr("10.2.0.11")
	hostB = netip.MustParseAddr("10.2.0.12")
)

// notes is a Store that remembers what it was told last.
type notes struct {
	Forgetful
	mu      sync.Mutex
	entries map[director.Key]Entry
}

func (n *notes) PutEntry(key director.Key, host netip.Addr, epoch uint32, active bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries[key] = Entry{Key: key, Host: host, Epoch: epoch, Active: active}
	return nil
}

func (n *notes) DropEntry(key director.Key) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.entries, key)
	return nil
}

func (n *notes) get(key director.Key) (Entry, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e, ok := n.entries[key]
	return e, ok
}

// scene runs a router with two hosts in a bubble of virtual time.
func scene(t *testing.T, play func(t *testing.T, r *Router, n *notes, stops chan director.Stop)) {
	synctest.Test(t, func(t *testing.T) {
		d := director.New(director.Config{UserExpire: time.Minute, KickDelay: 2 * time.Second})
		for _, a := range []netip.Addr{hostA, hostB} {
			d.Step(time.Now(), director.HostPut{Host: director.Host{Addr: a, Weight: 100}})
		}
		n := &notes{entries: map[director.Key]Entry{}}
		stops := make(chan director.Stop, 10)
		r := New(Config{Director: d, Store: n, Stop: func(s director.Stop) { stops <- s }, Log: zerolog.Nop()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		play(t, r, n, stops)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func must(t *testing.T, r *Router, user string) director.Assigned {
	t.Helper()
	a, err := r.Route(t.Context(), user, "")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// move moves anna.
func move(t *testing.T, r *Router, to netip.Addr) error {
	return r.Begin(func(id uint64) director.Event { return director.Move{ID: id, User: "anna", To: to} }).Wait(t.Context())
}

func TestEntryIsStoredBeforeItIsUsedAndExpires(t *testing.T) {
	scene(t, func(t *testing.T, r *Router, n *notes, _ chan director.Stop) {
		a := must(t, r, "anna")
		if e, ok := n.get(a.Key); !ok || e.Host != a.Host.Addr || e.Epoch != a.Epoch {
			t.Fatalf("stored %+v, %v; want %+v", e, ok, a)
		}
		r.Tell(director.SessionStart{Key: a.Key, User: "anna", Epoch: a.Epoch})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if e, ok := n.get(a.Key); !ok || !e.Active {
			t.Errorf("with a session: %+v, %v; want an active entry", e, ok)
		}
		r.Tell(director.SessionEnd{Key: a.Key, User: "anna", Epoch: a.Epoch})
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if e, ok := n.get(a.Key); !ok || e.Active {
			t.Errorf("before user_expire: %+v, %v; want an entry without sessions", e, ok)
		}
		time.Sleep(2 * time.Second) // the timer of Run does it, no event comes
		synctest.Wait()
		if _, ok := n.get(a.Key); ok {
			t.Error("entry is there after user_expire")
		}
	})
}

func TestMoveLetsLoginsWait(t *testing.T) {
	scene(t, func(t *testing.T, r *Router, n *notes, stops chan director.Stop) {
		a := must(t, r, "anna")
		r.Tell(director.SessionStart{Key: a.Key, User: "anna", Epoch: a.Epoch})
		to := hostA
		if a.Host.Addr == hostA {
			to = hostB
		}
		moved := make(chan error, 1)
		go func() { moved <- move(t, r, to) }()
		stop := <-stops
		if stop.Key != a.Key || stop.Reason != director.StopMoved || stop.Epoch != a.Epoch {
			t.Errorf("stop %+v, want one of %+v", stop, a)
		}
		if e, _ := n.get(a.Key); e.Epoch == a.Epoch || e.Host != to {
			t.Errorf("stored %+v when the stop came; want a new epoch and %v", e, to)
		}
		begin := time.Now()
		routed := make(chan director.Assigned, 1)
		go func() { routed <- must(t, r, "anna") }()
		synctest.Wait()
		r.Tell(director.SessionEnd{Key: a.Key, User: "anna", Epoch: a.Epoch})
		b := <-routed
		if b.Host.Addr != to || b.Epoch <= a.Epoch || time.Since(begin) < 2*time.Second {
			t.Errorf("after %v routed to %+v; want %v after the kick delay", time.Since(begin), b, to)
		}
		if err := <-moved; err != nil {
			t.Error(err)
		}
	})
}

func TestAskerGivesUp(t *testing.T) {
	scene(t, func(t *testing.T, r *Router, _ *notes, stops chan director.Stop) {
		a := must(t, r, "anna")
		r.Tell(director.SessionStart{Key: a.Key, User: "anna", Epoch: a.Epoch})
		to := hostA
		if a.Host.Addr == hostA {
			to = hostB
		}
		go move(t, r, to)
		<-stops
		gone := errors.New("client went away")
		ctx, cancel := context.WithCancelCause(t.Context())
		failed := make(chan error, 1)
		go func() { _, err := r.Route(ctx, "anna", ""); failed <- err }()
		synctest.Wait()
		cancel(gone)
		if err := <-failed; err != gone {
			t.Errorf("Route returned %v, want the cause of its context", err)
		}
		r.Tell(director.SessionEnd{Key: a.Key, User: "anna", Epoch: a.Epoch})
		time.Sleep(5 * time.Second)
		synctest.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.waiting) != 0 {
			t.Errorf("%d requests still wait", len(r.waiting))
		}
	})
}

func TestRefusals(t *testing.T) {
	scene(t, func(t *testing.T, r *Router, _ *notes, _ chan director.Stop) {
		if _, err := r.Route(t.Context(), "anna", "nowhere"); !errors.Is(err, director.ErrNoHosts) {
			t.Errorf("unknown tag: %v, want ErrNoHosts", err)
		}
		if err := r.Begin(func(id uint64) director.Event { return director.Kick{ID: id, User: "nobody"} }).Wait(t.Context()); !errors.Is(err, director.ErrUnknownUser) {
			t.Errorf("kick of nobody: %v, want ErrUnknownUser", err)
		}
		if err := move(t, r, netip.MustParseAddr("10.9.9.9")); !errors.Is(err, director.ErrUnknownHost) {
			t.Errorf("move to a strange host: %v, want ErrUnknownHost", err)
		}
	})
}
