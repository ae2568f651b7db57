package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/testenv/client"
)

// TestRingPartition: a ring of three Ushers is cut; on one side an operator takes a host down and moves
// thirty users, while users log in on both sides. On healing the orders stand (a ring of Dovecot's
// directors forgets the "down"), nobody is on two backends any more, and what was is counted.
func TestRingPartition(t *testing.T) {
	t.Parallel()
	r := newRing(t, site.RingOptions{Members: kinds("UUU"), Site: site.Options{Director: `ping_idle_timeout = "5s"`}})
	all := []int{0, 1, 2}
	startRing(t, r, all...)
	user := func(i int) string { return fmt.Sprintf("user%d@example.com", i) }
	const users, moved = 100, 30
	loginEach := func(member int, n int, user func(int) string) {
		t.Helper()
		sessions, report := client.DialAll(t.Context(), n, 20, func(i int) client.Config {
			c := r.Members[member].Client(user(i))
			c.Timeout = 70 * time.Second
			return c
		})
		t.Cleanup(func() { client.CloseAll(sessions) })
		if err := report.Err(); err != nil {
			t.Fatalf("log in at member %d: %v", member, err)
		}
	}
	loginEach(0, users, user)
	noneTwice(t, r, "at first")

	cut := time.Now()
	since := func(what string) { t.Logf("%5.1f s after the cut: %s", time.Since(cut).Seconds(), what) }
	if err := r.Cluster.Cut(0); err != nil {
		t.Fatal(err)
	}
	// Who writes while a neighbour does not answer hears so at once.
	within(t, 40*time.Second, "the silent neighbour is shown", func() bool {
		return status(t, &site.Site{Daemon: r.Members[1].Daemon}).Ring.Silent > 0
	})
	since("the silent neighbour is shown")
	begin := time.Now()
	reply, err := r.Members[1].Daemon.Admin.HostUp(t.Context(), r.Hosts[0].String(), false, false)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("an order while a neighbour is silent took %v", d)
	}
	if len(reply.Warnings) == 0 {
		t.Errorf("an order %v after the cut has no warning", time.Since(cut))
	}

	awaitRing(t, r, 1, 2)
	within(t, ringTimeout, "the other side is alone", func() bool {
		synced, neighbours, err := r.Members[0].Admin.Synced(t.Context())
		return err == nil && synced && neighbours == 0
	})
	since("both sides work alone")
	want := map[string]netip.Addr{}
	for i := range moved {
		// Away from the lowest address, which would win among directors of Dovecot.
		to := r.Hosts[2]
		if hostOf(t, r.Members[1], user(i)) == to {
			to = r.Hosts[1]
		}
		want[user(i)] = to
		doveadm(t, r.Members[1], "move", user(i), to.String())
	}
	since("users are moved")
	fresh := func(i int) string { return fmt.Sprintf("fresh%d@example.com", i) }
	for _, member := range all {
		loginEach(member, users, user)
		loginEach(member, users, fresh)
	}
	twice := len(r.Twice())
	since(fmt.Sprintf("%d of %d users are on two backends", twice, 2*users))
	if twice < moved {
		t.Errorf("cut: only %d users are on two backends, at least the %d moved ones were to be: the cut does not cut", twice, moved)
	}

	if err := r.Cluster.Heal(); err != nil {
		t.Fatal(err)
	}
	awaitRing(t, r, all...)
	since("healed, one ring again")
	eventually(t, "nobody is on two backends after the healing", func() bool { return len(r.Twice()) == 0 })
	since("nobody is on two backends")
	equalViews(t, r, false, all...)
	conflicts := uint64(0)
	for i, m := range r.Members {
		hosts, err := m.Admin.Hosts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		k := slices.IndexFunc(r.Hosts, func(a netip.Addr) bool { return a == hosts[0].Addr })
		if k != 0 || hosts[0].Up {
			t.Errorf("member %d has the host %v up: %v, want down as ordered", i, hosts[0].Addr, hosts[0].Up)
		}
		for u, to := range want {
			if at := hostOf(t, m, u); at != to {
				t.Errorf("member %d has %s on %v, it was moved to %v", i, u, at, to)
			}
		}
		s := &site.Site{Daemon: m.Daemon}
		here := status(t, s).Director.Conflicts
		conflicts += here
		if metric := metrics(t, s)["usher_director_conflicts_total"]; metric != float64(here) {
			t.Errorf("member %d: the metric of conflicts is %v, the status has %d", i, metric, here)
		}
	}
	named := 0
	for _, m := range r.Members {
		named += strings.Count(m.Log(1<<30), `"message":"user was on two hosts"`)
	}
	if uint64(named) < conflicts {
		t.Errorf("%d conflicts are in the logs, %d were counted", named, conflicts)
	}
	if conflicts < uint64(twice) {
		t.Errorf("%d conflicts were counted, %d users were on two backends", conflicts, twice)
	}
	for _, member := range all {
		loginEach(member, users, user)
	}
	noneTwice(t, r, "after the healing")
}

// TestRingCutOff: a member is cut off from everybody and comes back, in rings of both kinds.
func TestRingCutOff(t *testing.T) {
	for _, row := range []struct {
		ring string
		cut  int
	}{{"DUD", 1}, {"UDU", 1}} {
		t.Run(fmt.Sprintf("%s/%d", row.ring, row.cut), func(t *testing.T) {
			t.Parallel()
			r := newRing(t, site.RingOptions{Members: kinds(row.ring)})
			var all, rest []int
			for i := range r.Members {
				all = append(all, i)
				if i != row.cut {
					rest = append(rest, i)
				}
			}
			startRing(t, r, all...)
			for i := range 10 {
				loginAt(t, r, fmt.Sprint("before", i), all...)
			}
			begin := time.Now()
			if err := r.Cluster.SetLink(row.cut, false); err != nil {
				t.Fatal(err)
			}
			for i := range 10 { // the ring does not know yet: known users are served at once
				loginAt(t, r, fmt.Sprint("before", i), rest...)
			}
			if d := time.Since(begin); d > 5*time.Second {
				t.Errorf("logins of known users took %v", d)
			}
			within(t, ringTimeout, "the rest is a ring", func() bool {
				synced, n, err := r.Members[rest[0]].Admin.Synced(t.Context())
				return err == nil && synced && n == min(len(rest)-1, 2)
			})
			awaitRing(t, r, rest...)
			t.Logf("the rest is a ring after %v", time.Since(begin))
			for i := range 10 {
				loginAt(t, r, fmt.Sprint("during", i), rest...)
			}
			if err := r.Cluster.SetLink(row.cut, true); err != nil {
				t.Fatal(err)
			}
			begin = time.Now()
			awaitRing(t, r, all...)
			t.Logf("one ring again after %v", time.Since(begin))
			for i := range 10 {
				loginAt(t, r, fmt.Sprint("during", i), all...)
				loginAt(t, r, fmt.Sprint("before", i), all...)
			}
			noneTwice(t, r, "when it is back")
			equalViews(t, r, false, all...)
		})
	}
}
