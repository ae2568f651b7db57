package main

import (
	"fmt"
	"os"
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/testenv/client"
	"usher/testenv/dovecot"
)

// TestDropInLogins: the login processes of two Dovecots 2.3 ask two Ushers in place of their directors. Each user is on one
// backend from both, through Usher's own listeners too; moves, kicks, hosts that go down or away reach the sessions in
// Dovecot's processes; and either side may be restarted.
func TestDropInLogins(t *testing.T) {
	t.Parallel()
	for name, count := range map[string]int{"one process": 0, "a process each": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDropIns(t, "UU", site.RingOptions{}, dovecot.ProxyOptions{ServiceCount: count})
			testDropIn(t, d)
		})
	}
}

// dovecot24 returns the root directory of a Debian with Dovecot 2.4, which testenv/dovecot/trixie.sh has made.
func dovecot24(t *testing.T) (root string) {
	root = os.Getenv("USHER_DOVECOT24")
	if root == "" {
		t.Skip("Dovecot 2.4 is not asked for: make test-dovecot24")
	}
	if err := dovecot.Available24(root); err != nil {
		t.Fatal(err)
	}
	return root
}

// TestDropInLogins24 is the same with Dovecot 2.4, which has no director of its own any more.
func TestDropInLogins24(t *testing.T) {
	t.Parallel()
	root := dovecot24(t)
	for name, count := range map[string]int{"one process": 0, "a process each": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testDropIn(t, newDropIns(t, "UU", site.RingOptions{}, dovecot.ProxyOptions{Root: root, ServiceCount: count}))
		})
	}
}

func testDropIn(t *testing.T, d *dropIns) {
	var users []string
	for i := range 12 {
		users = append(users, fmt.Sprintf("User%d@example.com", i)) // auth makes it lower case
	}
	of := d.login(t, users...)
	noneTwice(t, d.Ring, "after the logins")
	lower := func(i int) string { return fmt.Sprintf("user%d@example.com", i) }

	// Usher's own listener leads to the same host.
	own := loginAt(t, d.Ring, lower(0), 0)
	host := hostOf(t, d.Members[1], lower(0))
	d.at(t, lower(0), host, 5)
	client.CloseAll(own)
	if u, err := d.Members[0].Daemon.Admin.User(t.Context(), lower(0)); err != nil || u.Host != host {
		t.Errorf("usher user: %+v, %v; want host %v", u, err, host)
	}

	t.Run("move", func(t *testing.T) {
		from := hostOf(t, d.Members[0], lower(1))
		to := otherHost(d.Ring, from)
		time.Sleep(settled)
		begin := time.Now()
		doveadm(t, d.Members[0], "move", lower(1), to.String())
		again := d.login(t, lower(1)) // waits for the end of the move
		if took := time.Since(begin); took < time.Second || took > 8*time.Second {
			t.Errorf("a login during a move took %v, want the kick delay of 1 s and a little", took)
		}
		gone(t, "moved", of[users[1]])
		d.at(t, lower(1), to, len(again[lower(1)]))
		delete(of, users[1])
	})

	t.Run("move at once", func(t *testing.T) {
		user := "quick@example.com"
		before := d.login(t, user)
		to := otherHost(d.Ring, hostOf(t, d.Members[0], user))
		doveadm(t, d.Members[1], "move", user, to.String())
		after := d.login(t, user)
		gone(t, "moved", before[user])
		d.at(t, user, to, len(after[user]))
	})

	t.Run("kick", func(t *testing.T) {
		doveadm(t, d.Members[1], "kick", lower(2))
		gone(t, "kicked", of[users[2]])
		delete(of, users[2])
		host := hostOf(t, d.Members[0], lower(2))
		again := d.login(t, lower(2))
		d.at(t, lower(2), host, len(again[lower(2)]))
	})

	t.Run("kick by field", func(t *testing.T) {
		host := hostOf(t, d.Members[0], lower(4))
		doveadm(t, d.Members[0], "kick", "-f", "user_alt", "alt-"+lower(4))
		gone(t, "kicked by field", of[users[4]])
		again := d.login(t, lower(4))
		d.at(t, lower(4), host, len(again[lower(4)]))
		d.at(t, lower(5), hostOf(t, d.Members[0], lower(5)), len(of[users[5]]))
	})

	t.Run("backend down", func(t *testing.T) {
		host := hostOf(t, d.Members[0], lower(3))
		doveadm(t, d.Members[0], "down", host.String())
		d.login(t, lower(3)) // who is there stays
		d.at(t, lower(3), host, 8)
		doveadm(t, d.Members[0], "flush", host.String())
		within(t, 30*time.Second, "nobody is left at the host", func() bool { return len(d.Backends[hostIndex(d.Ring, host)].Live()) == 0 })
		gone(t, "flushed", of[users[3]])
		d.login(t, lower(3))
		noneTwice(t, d.Ring, "after the flush")
		doveadm(t, d.Members[1], "up", host.String())
	})

	t.Run("restarts", func(t *testing.T) {
		user := "late@example.com"
		before := d.login(t, user)
		host := hostOf(t, d.Members[0], user)
		// Dovecot anew: it must find nobody in its login directory, and Usher must come back.
		d.proxies[0].stop(t)
		d.proxies[0].start(t)
		d.proxies[0].served(t)
		again := d.login(t, user)
		// Two of the first sessions ended with their Dovecot, two go on through the other.
		d.at(t, user, host, 2+len(again[user]))
		gone(t, "Dovecot was stopped", []*client.Session{before[user][0], before[user][2]})
		client.CloseAll(again[user])
		d.proxies[0].Kill() // and once more, without a warning
		d.proxies[0].start(t)
		d.proxies[0].served(t)
		again = d.login(t, user)
		within(t, 5*time.Second, "the closed sessions are gone", func() bool { return d.Live(host, user) == 2+len(again[user]) })

		// Usher anew: Dovecot's sessions go on, and are still moved.
		if err := d.Members[0].Stop(); err != nil {
			t.Fatal(err)
		}
		d.at(t, user, host, 2+len(again[user]))
		startRing(t, d.Ring, 0)
		d.proxies[0].served(t)
		within(t, 5*time.Second, "the sessions through Dovecot are counted again", func() bool {
			u, err := d.Members[0].Daemon.Admin.User(t.Context(), user)
			return err == nil && u.Host == host && u.ExpiresAt == nil
		})
		third := d.login(t, user)
		d.at(t, user, host, 2+len(again[user])+len(third[user]))
		to := otherHost(d.Ring, host)
		doveadm(t, d.Members[0], "move", user, to.String())
		gone(t, "moved", again[user])
		gone(t, "moved", third[user])
		last := d.login(t, user)
		d.at(t, user, to, len(last[user]))
	})
	for i := range d.Members {
		noErrors(t, &site.Site{Daemon: d.Members[i].Daemon})
	}
}

func hostIndex(r *site.Ring, h fmt.Stringer) int {
	for i, x := range r.Hosts {
		if x.String() == h.String() {
			return i
		}
	}
	return -1
}
