package main

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"usher/cmd/internal/site"
)

// mixedRings are the rings that are tested: every order of two and of three, and some of five. D is a
// director of Dovecot 2.3, U an Usher; the order is that of the ring. The pure ones of Dovecot show that
// what is expected here is what Dovecot does.
var mixedRings = []string{"DDD", "UU", "DU", "UD", "DDU", "DUD", "UDD", "DUU", "UDU", "UUD", "UUU", "DUDUD", "UDDUU"}

// TestRingMixed: Ushers and directors of Dovecot are one ring, whatever the order. Everybody learns all
// users; orders given to any of them are carried out by all, on live sessions; they show the same to
// doveadm; one that dies is not missed, and knows everything when it is back.
func TestRingMixed(t *testing.T) {
	some := mixedRings
	if s := os.Getenv("USHER_TEST_RINGS"); s != "" {
		some = []string{s}
	}
	for _, name := range some {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testRingMixed(t, kinds(name))
		})
	}
}

func testRingMixed(t *testing.T, members []site.Kind) {
	r := newRing(t, site.RingOptions{Members: members})
	all := make([]int, len(members))
	for i := range all {
		all[i] = i
	}
	last := all[len(all)-1]
	early := all[:last]
	if len(all) == 2 {
		early = all // one alone would wait for 20 s before it believes it
	}
	changed := true // times of up and down are the same everywhere
	begin := time.Now()
	done := func(what string) { t.Logf("%5.1f s: %s", time.Since(begin).Seconds(), what) }
	startRing(t, r, early...)
	user := func(i int) string { return fmt.Sprintf("user%d@example.com", i) }
	const users = 12
	for i := range users {
		loginAt(t, r, user(i), early...)
	}
	noneTwice(t, r, "after the first logins")
	if len(early) < len(all) { // the last one joins late
		startRing(t, r, last)
		for i := range users {
			loginAt(t, r, user(i), last)
		}
	}
	noneTwice(t, r, "after logins at the one that joined")
	for i := range users {
		at := hostOf(t, r.Members[0], user(i))
		if n := r.Live(at, user(i)); n != len(all) {
			t.Errorf("user %d has %d sessions at %v, want %d", i, n, at, len(all))
		}
	}
	equalViews(t, r, changed, all...)
	done("all know all users")

	// A move, ordered at any member, ends the sessions at all.
	for i, m := range r.Members {
		name := fmt.Sprintf("moved%d@example.com", i)
		sessions := loginAt(t, r, name, all...)
		to := otherHost(r, hostOf(t, m, name))
		doveadm(t, m, "move", name, to.String())
		gone(t, fmt.Sprintf("move at member %d", i), sessions)
		loginAt(t, r, name, all...)
		if n := r.Live(to, name); n != len(all) {
			t.Errorf("moved at member %d: %d sessions at %v, want %d", i, n, to, len(all))
		}
		noneTwice(t, r, fmt.Sprintf("after a move at member %d", i))
		// So does a kick; but who is kicked may come back at once.
		sessions = loginAt(t, r, fmt.Sprintf("kicked%d", i), all...)
		doveadm(t, m, "kick", fmt.Sprintf("kicked%d", i))
		gone(t, fmt.Sprintf("kick at member %d", i), sessions)
		loginAt(t, r, fmt.Sprintf("kicked%d", i), all...)
	}

	done("moves and kicks")
	// Hosts: what is ordered at one is so at all; a flush empties a host.
	host := r.Hosts[0]
	for _, i := range all {
		m, next := r.Members[i], r.Members[(i+1)%len(all)]
		doveadm(t, m, "update", host.String(), fmt.Sprint(50+i))
		equalViews(t, r, changed, all...)
		doveadm(t, next, "down", host.String())
		equalViews(t, r, changed, all...)
		doveadm(t, m, "up", host.String())
		doveadm(t, next, "update", host.String(), "0")
		doveadm(t, m, "flush", host.String())
		eventually(t, fmt.Sprintf("the host is empty after a flush at member %d", i), func() bool {
			hosts, err := r.Members[0].Admin.Hosts(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return hosts[0].Users == 0
		})
		eventually(t, "no session at the flushed host", func() bool { return len(r.Backends[0].Live()) == 0 })
		doveadm(t, m, "update", host.String(), "100")
		// And they come back.
		for k := range users {
			loginAt(t, r, user(k), i)
		}
		doveadm(t, m, "flush", host.String())
		doveadm(t, m, "flush", "all")
		noneTwice(t, r, "after a flush")
	}
	extra := "10.77.2.200"
	doveadm(t, r.Members[last], "add", extra, "7")
	equalViews(t, r, changed, all...)
	doveadm(t, r.Members[0], "remove", extra)
	equalViews(t, r, changed, all...)

	done("hosts")
	// One after the other dies, and comes back.
	for _, i := range all {
		if len(all) == 2 && i == 1 {
			break // as above
		}
		if err := r.Members[i].Kill(); err != nil {
			t.Fatal(err)
		}
		rest := slices.DeleteFunc(slices.Clone(all), func(k int) bool { return k == i })
		name := fmt.Sprintf("meanwhile%d", i)
		for _, k := range rest {
			asked := time.Now()
			loginAt(t, r, name, k)
			if d := time.Since(asked); d > 25*time.Second {
				t.Errorf("without member %d a login at %d took %v", i, k, d)
			}
		}
		startRing(t, r, i)
		loginAt(t, r, name, all...)
		noneTwice(t, r, fmt.Sprintf("after member %d died and came back", i))
		done(fmt.Sprintf("death of member %d", i))
	}
	// A director of Dovecot that joins forgets when a host was taken up or down; an Usher does not.
	changed = false
	equalViews(t, r, changed, all...)
}
