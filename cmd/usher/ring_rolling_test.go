package main

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"usher/cmd/internal/site"
)

// TestRingRolling: the members of a ring of Dovecot's directors are replaced by Ushers one by one, while
// users log in all the time. Nobody is on two backends at any time, and no login fails but those that were
// connected to the member that went away. What the ring knew at first it still knows when no director
// of Dovecot is left.
func TestRingRolling(t *testing.T) {
	t.Parallel()
	testRingRolling(t, site.Usher)
}

func testRingRolling(t *testing.T, to site.Kind) {
	r := newRing(t, site.RingOptions{Members: kinds("DDD")})
	all := []int{0, 1, 2}
	startRing(t, r, all...)
	const moved = "moved@example.com"
	loginAt(t, r, moved, 0)
	host := otherHost(r, hostOf(t, r.Members[0], moved))
	doveadm(t, r.Members[0], "move", moved, host.String())
	doveadm(t, r.Members[1], "update", r.Hosts[2].String(), "33")

	// The load balancer's view: members that are to be taken away get no new clients.
	var mu sync.Mutex
	serving := slices.Clone(all)
	left := map[int]time.Time{}
	set := func(some []int) {
		mu.Lock()
		serving = some
		mu.Unlock()
	}
	load := newCrowd(t, r, 30, 200,
		func() []int {
			mu.Lock()
			defer mu.Unlock()
			return serving
		},
		func(i int, begin time.Time) bool {
			mu.Lock()
			defer mu.Unlock()
			return !left[i].IsZero() && begin.Before(left[i])
		})
	time.Sleep(2 * time.Second)
	for i, m := range r.Members {
		rest := slices.DeleteFunc(slices.Clone(all), func(k int) bool { return k == i })
		set(rest)
		mu.Lock()
		left[i] = time.Now()
		mu.Unlock()
		if err := m.Stop(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := m.Become(to); err != nil {
			t.Fatal(err)
		}
		startRing(t, r, i)
		set(all)
		time.Sleep(2 * time.Second)
		t.Logf("member %d is now %s", i, m.Kind)
	}
	load.check(t, 500)
	equalViews(t, r, false, all...)
	for i, m := range r.Members {
		if at := hostOf(t, m, moved); at != host {
			t.Errorf("member %d has the moved user on %v, want %v", i, at, host)
		}
		hosts, err := m.Admin.Hosts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if w := hosts[2].Weight; w != 33 {
			t.Errorf("member %d has weight %d for the host that was set to 33", i, w)
		}
	}
	for i := range all {
		loginAt(t, r, fmt.Sprintf("late%d", i), all...)
	}
	noneTwice(t, r, "at the end")
}
