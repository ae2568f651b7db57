package dovecot

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"usher/loader/netns"
	"usher/testenv/backend"
	"usher/testenv/client"
	"usher/testenv/cluster"
)

// ring is a ring of directors with scripted backends.
type ring struct {
	*cluster.Cluster
	directors []*Director
	backends  []*backend.Server
}

func newRing(t *testing.T, nodes int) *ring {
	t.Helper()
	for _, err := range []error{Available(), netns.Available()} {
		if err != nil {
			t.Skip(err)
		}
	}
	c, err := cluster.New(cluster.Options{Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	r := &ring{Cluster: c, directors: make([]*Director, nodes)}
	for _, a := range c.Backends {
		b, err := backend.Start(c.Backend, a, backend.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		r.backends = append(r.backends, b)
	}
	for i := range nodes {
		r.start(t, i)
	}
	for i := range nodes {
		r.await(t, i, min(nodes-1, 2))
	}
	return r
}

func (r *ring) start(t *testing.T, i int) {
	t.Helper()
	var members []netip.Addr
	var hosts []string
	for _, n := range r.Nodes {
		members = append(members, n.Ring)
	}
	for _, b := range r.Backends {
		hosts = append(hosts, b.String())
	}
	n := r.Nodes[i]
	d, err := StartDirector(n.NS, directory(t), DirectorOptions{
		Name: fmt.Sprint("d", i), Service: n.Service, Ring: n.Ring, Members: members, Hosts: hosts,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of director %d:\n%s", i, d.Log())
		}
		d.Stop()
	})
	r.directors[i] = d
}

func (r *ring) await(t *testing.T, i, neighbours int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	if err := r.directors[i].AwaitSync(ctx, neighbours); err != nil {
		t.Fatal(err)
	}
}

// login logs in at a director.
func (r *ring) login(t *testing.T, node int, user string) *client.Session {
	t.Helper()
	s, err := client.Dial(t.Context(), client.Config{
		NS: r.Client, Server: netip.AddrPortFrom(r.Nodes[node].Service, 143), User: user, Timeout: 70 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// doveadm runs a command at a director that must succeed.
func (r *ring) doveadm(t *testing.T, node int, args ...string) string {
	t.Helper()
	out, err := r.directors[node].Doveadm(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// twice returns the users with live sessions on more than one backend.
func (r *ring) twice() (users []string) {
	seen := map[string]int{}
	for _, b := range r.backends {
		for u := range b.Live() {
			if seen[u]++; seen[u] == 2 {
				users = append(users, u)
			}
		}
	}
	return users
}

// live counts a user's sessions at a backend.
func (r *ring) live(host netip.Addr, user string) int {
	for _, b := range r.backends {
		if b.IMAP().Addr() == host {
			return b.Live()[user]
		}
	}
	return 0
}

func (r *ring) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen in time: %s", what)
		}
	}
}

// other returns a backend that is not host.
func (r *ring) other(host netip.Addr) netip.Addr {
	if r.Backends[0] == host {
		return r.Backends[1]
	}
	return r.Backends[0]
}

// TestRing: the test bed itself. A ring of the real directors does what it is known to do.
func TestRing(t *testing.T) {
	r := newRing(t, 3)
	user := func(i int) string { return fmt.Sprintf("user%d@example.com", i) }
	var first []*client.Session
	for i := range 30 {
		for node := range r.directors {
			s := r.login(t, node, user(i))
			if i == 0 {
				first = append(first, s)
			}
		}
	}
	if u := r.twice(); len(u) > 0 {
		t.Fatalf("on two backends: %q", u)
	}
	at, _, err := r.directors[0].Lookup(t.Context(), user(0))
	if err != nil {
		t.Fatal(err)
	}
	if n := r.live(at, user(0)); n != 3 {
		t.Fatalf("%d sessions of %s at %s, want 3", n, user(0), at)
	}
	for i, d := range r.directors {
		m, err := d.Map(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(m) != 30 {
			t.Errorf("director %d knows %d users, want 30", i, len(m))
		}
	}

	// A move from one director ends the sessions of all, and the next login goes to the new host.
	to := r.other(at)
	r.doveadm(t, 1, "move", user(0), to.String())
	for _, s := range first {
		s.Conn().SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := s.Conn().Read(make([]byte, 1)); err == nil {
			t.Error("a session of a moved user goes on")
		}
	}
	for node := range r.directors {
		r.login(t, node, user(0))
	}
	if a, b := r.live(at, user(0)), r.live(to, user(0)); a != 0 || b != 3 {
		t.Errorf("after the move %d sessions at the old and %d at the new host, want 0 and 3", a, b)
	}

	// A kick ends the sessions everywhere; the entry stays.
	r.doveadm(t, 2, "kick", user(0))
	r.eventually(t, "no session after the kick", func() bool { return r.live(to, user(0)) == 0 })

	// Flushing a host of weight 0 empties it.
	r.doveadm(t, 0, "update", at.String(), "0")
	r.doveadm(t, 0, "flush", at.String())
	r.eventually(t, "the host is empty", func() bool {
		hosts, err := r.directors[2].Hosts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hosts {
			if h.Addr == at {
				return h.Weight == 0 && h.Users == 0
			}
		}
		return false
	})
	for i := range 30 {
		r.eventually(t, "no session at the flushed host", func() bool { return r.live(at, user(i)) == 0 })
	}

	// A director that dies is not missed, and comes back.
	r.directors[2].Kill()
	r.await(t, 0, 1)
	r.login(t, 0, user(31))
	r.login(t, 1, user(31))
	r.start(t, 2)
	for node := range r.directors {
		r.await(t, node, 2)
	}
	r.login(t, 2, user(31))
	if u := r.twice(); len(u) > 0 {
		t.Errorf("on two backends: %q", u)
	}
}

// TestRingCut: what Dovecot's ring does when it is cut while hosts change, which is what Usher must do
// better: users are on two backends, and healing keeps them there or undoes the operator's order.
func TestRingCut(t *testing.T) {
	if os.Getenv("USHER_TEST_DOVECOT_CUT") == "" {
		t.Skip("takes two minutes and shows nothing of ours: set USHER_TEST_DOVECOT_CUT=1 to see it")
	}
	const users = 60
	r := newRing(t, 3)
	if err := r.Cut(0); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	r.await(t, 1, 1)
	r.await(t, 0, 0)
	r.eventually(t, "the part of one is alone", func() bool {
		out := r.doveadm(t, 0, "ring", "status")
		return !strings.Contains(out, "\tleft\t") && !strings.Contains(out, "\tright\t")
	})
	r.await(t, 0, 0)
	t.Logf("cut noticed on both sides after %v", time.Since(begin))
	r.doveadm(t, 0, "down", r.Backends[0].String())
	for i := range users {
		for node := range 2 {
			r.login(t, node, fmt.Sprintf("user%d", i))
		}
	}
	t.Logf("cut, one backend down on one side: %d of %d users on two backends", len(r.twice()), users)
	if len(r.twice()) == 0 {
		t.Error("no user is on two backends: the cut does not cut, or the check does not see")
	}
	begin = time.Now()
	if err := r.Heal(); err != nil {
		t.Fatal(err)
	}
	for node := range r.directors {
		r.await(t, node, 2)
	}
	t.Logf("healed after %v", time.Since(begin))
	time.Sleep(5 * time.Second)
	hosts, err := r.directors[0].Hosts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("healed: %d users on two backends; the host that was set down: %+v", len(r.twice()), hosts[0])
}
