package sim

import (
	"fmt"
	"testing"
	"time"

	"usher/director"
)

// TestJoin: a director joins a ring that knows many users. It knows all of them within seconds, and the
// others go on to serve known users at once meanwhile.
func TestJoin(t *testing.T) {
	users := 200_000
	if testing.Short() {
		users = 20_000
	}
	p := &plan{seed: 1, nodes: 2, hosts: 3, users: 1, expire: 15 * time.Minute, latency: time.Millisecond,
		skew: make([]time.Duration, 2), begin: []time.Duration{0, 40 * time.Second}, end: 40 * time.Second}
	w := newWorld(p, build)
	a, b := w.nodes[0], w.nodes[1]
	// step is past the bookkeeping of logins.
	step := func(ev director.Event) []director.Effect {
		out := a.m.Step(a.wall(), ev)
		w.do(a, a.m.Actions())
		a.schedule()
		return out
	}
	w.after(30*time.Second, func() {
		for i := range users {
			step(director.Lookup{Request: uint64(i), User: fmt.Sprint("many", i)})
		}
	})
	var joined time.Duration
	waited := 0
	var poll func()
	poll = func() {
		answered := false
		for _, f := range step(director.Lookup{Request: uint64(w.serial()) << 32, User: "many7"}) {
			_, ok := f.(director.Assigned)
			answered = answered || ok
		}
		if !answered {
			waited++
		}
		if b.up && b.m.Synced() && b.d.Users() == a.d.Users() {
			joined = w.now - p.begin[1]
			w.checker.done = true
			return
		}
		w.after(10*time.Millisecond, poll)
	}
	w.after(p.begin[1], poll)
	w.after(2*time.Minute, func() { w.checker.done = true })
	if f := w.run(); f != nil {
		t.Fatal(f)
	}
	if joined == 0 {
		t.Fatalf("the new director knows %d of %d users and is synced: %v, after 80 s", b.d.Users(), a.d.Users(), b.m.Synced())
	}
	if joined > 5*time.Second {
		t.Errorf("joining a ring of %d users took %v, want seconds", users, joined)
	}
	if waited > 0 {
		t.Errorf("%d lookups of a known user had to wait while another director joined", waited)
	}
	t.Logf("a director learnt %d users in %v of virtual time; %d MB", users, joined, w.bytes>>20)
}
