package cluster

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"usher/loader/netns"
)

// reaches reports whether a connection of ns to an address succeeds.
func reaches(t *testing.T, from *netns.NS, to netip.Addr) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", nil, netip.AddrPortFrom(to, 7).String())
	if err == nil {
		c.Close()
	}
	return err == nil
}

func TestCluster(t *testing.T) {
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
	c, err := New(Options{Nodes: 3, Backends: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	listen := func(ns *netns.NS, addr netip.Addr) {
		l, err := ns.Listen("tcp", netip.AddrPortFrom(addr, 7).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	for _, n := range c.Nodes {
		listen(n.NS, n.Ring)
		listen(n.NS, n.Service)
	}
	listen(c.Backend, c.Backends[1])

	// check says which nodes of the ring hear node 0, itself left out.
	check := func(when string, want1, want2 bool) {
		t.Helper()
		for i, want := range []bool{1: want1, 2: want2} {
			if i > 0 && reaches(t, c.Nodes[i].NS, c.Nodes[0].Ring) != want {
				t.Errorf("%s: node %d reaches node 0: %v, want %v", when, i, !want, want)
			}
		}
	}
	check("at first", true, true)
	if err := c.Cut(0, 1); err != nil {
		t.Fatal(err)
	}
	check("cut", true, false)
	for i, n := range c.Nodes {
		if !reaches(t, c.Client, n.Service) || !reaches(t, n.NS, c.Backends[1]) {
			t.Errorf("while the ring is cut: a client does not reach node %d, or that its backend", i)
		}
	}
	if err := c.Heal(); err != nil {
		t.Fatal(err)
	}
	check("healed", true, true)
	if err := c.SetLink(1, false); err != nil {
		t.Fatal(err)
	}
	check("node 1 without cables", false, true)
	if reaches(t, c.Client, c.Nodes[1].Service) {
		t.Error("without cables: a client reaches node 1")
	}
	if err := c.SetLink(1, true); err != nil {
		t.Fatal(err)
	}
	check("node 1 with cables", true, true)
}
