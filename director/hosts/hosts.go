// Package hosts keeps the backends: address, name, tag, weight, and whether they are up. It knows where
// a user without an entry belongs (the consistent-hash ring of the tag) and nothing about users.
//
// Weight and up/down are two things on purpose (behaviours.md section 2): the operator owns the weight,
// a monitor owns up/down, and neither undoes the other. A host that is down or has weight 0 gets no new
// users; it stays in the table, since present users keep it.
package hosts

import (
	"net/netip"
	"slices"

	"usher/director/placement"
)

// A Host is a backend as the operator describes it.
type Host struct {
	Addr   netip.Addr // unique key
	Name   string     // host name it was configured by, may be empty; for people, and for TLS later
	Tag    string     // only users looked up with this tag are placed here; empty: users without a tag
	Weight int        // share of new users, 0..1000 by convention; 0 or less: none
}

// A State is a Host and whether it is up.
type State struct {
	Host
	Up bool
}

// A Table holds all hosts. The zero value is an empty table.
type Table struct {
	hosts map[netip.Addr]*State
	rings map[string]*placement.Ring // by tag, built when first needed after a change
}

// Put adds a host (up at first) or updates name, tag and weight of the one with this address.
// It returns what was there before.
func (t *Table) Put(h Host) (before State, existed bool) {
	if t.hosts == nil {
		t.hosts = make(map[netip.Addr]*State)
	}
	s, ok := t.hosts[h.Addr]
	if !ok {
		t.hosts[h.Addr] = &State{Host: h, Up: true}
		t.changed(h.Tag)
		return State{}, false
	}
	before, s.Host = *s, h
	t.changed(before.Tag)
	t.changed(h.Tag)
	return before, true
}

// Remove removes a host and reports whether it was there.
func (t *Table) Remove(addr netip.Addr) bool {
	s, ok := t.hosts[addr]
	if ok {
		delete(t.hosts, addr)
		t.changed(s.Tag)
	}
	return ok
}

// SetUp notes that a host is up or down and reports whether the host is known.
func (t *Table) SetUp(addr netip.Addr, up bool) bool {
	s, ok := t.hosts[addr]
	if ok && s.Up != up {
		s.Up = up
		t.changed(s.Tag)
	}
	return ok
}

// Get returns the host with this address.
func (t *Table) Get(addr netip.Addr) (State, bool) {
	if s, ok := t.hosts[addr]; ok {
		return *s, true
	}
	return State{}, false
}

// All returns all hosts ordered by address, IPv4 before IPv6.
func (t *Table) All() []State {
	all := make([]State, 0, len(t.hosts))
	for _, s := range t.hosts {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b State) int { return a.Addr.Compare(b.Addr) })
	return all
}

// Place returns the host of a hash among those of tag that are up and have weight,
// and false when there is none.
func (t *Table) Place(tag string, hash uint32) (netip.Addr, bool) {
	ring, ok := t.rings[tag]
	if !ok {
		var nodes []placement.Node
		for _, s := range t.hosts {
			if s.Tag == tag && s.Up && s.Weight > 0 {
				nodes = append(nodes, placement.Node{Addr: s.Addr, Weight: s.Weight})
			}
		}
		if len(nodes) == 0 {
			return netip.Addr{}, false // not kept: tags nobody has must not fill the map
		}
		if t.rings == nil {
			t.rings = make(map[string]*placement.Ring)
		}
		ring = placement.NewRing(nodes)
		t.rings[tag] = ring
	}
	return ring.Lookup(hash)
}

func (t *Table) changed(tag string) { delete(t.rings, tag) }
