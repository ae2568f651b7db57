// Package hosts keeps the backends: address, name, tag, weight, and whether they are up. It knows where
// a user without an entry belongs (the consistent-hash ring of the tag) and nothing about users.
//
// Weight and up/down are two things on purpose (behaviours.md section 2), and up/down are two things
// again: what an operator said, and what the health check found. None of the three undoes another. A host
// that is down or has weight 0 gets no new users; it stays in the table, since present users keep it.
package hosts

import (
	"hash/crc32"
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

// A State is a Host and what became of it.
type State struct {
	Host
	Up           bool // it gets new users: follows from the next three
	OperatorDown bool
	HealthDown   bool // the health check says down
	Overridden   bool // an operator said up since, which holds until the check has been good once

	Changed    int64 // unix time of the last change of Up, 0: never
	Ordered    int64 // unix time of the operator's last order about the weight, 0: none
	Configured bool  // it is in the configuration file

	Desynced bool // changed since the ring was last synced
	Apart    bool // ordered since the whole ring last agreed: one that comes back may not know of it
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
	before = *s
	t.Set(h.Addr, func(s *State) { s.Host = h })
	return before, true
}

// Set changes what is known of a host, but not its address, and reports whether the host is known.
func (t *Table) Set(addr netip.Addr, change func(*State)) bool {
	s, ok := t.hosts[addr]
	if !ok {
		return false
	}
	before := *s
	change(s)
	s.Up = !s.OperatorDown && (!s.HealthDown || s.Overridden)
	if s.Up != before.Up || s.Weight != before.Weight || s.Tag != before.Tag {
		t.changed(before.Tag)
		t.changed(s.Tag)
	}
	return true
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

// Get returns the host with this address.
func (t *Table) Get(addr netip.Addr) (State, bool) {
	if s, ok := t.hosts[addr]; ok {
		return *s, true
	}
	return State{}, false
}

// Len returns the number of hosts.
func (t *Table) Len() int { return len(t.hosts) }

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

// Hash returns the number by which directors find out that they have the same hosts: weight, up or down,
// address and tag of each (hosts_hash, ring.md section 7). It is never 0.
func (t *Table) Hash() uint32 {
	var sum uint32
	for _, s := range t.All() {
		weight := uint32(max(0, s.Weight))
		if !s.Up {
			weight ^= 1
		}
		sum = add(sum, weight)
		if s.Addr.Is4() {
			addr := s.Addr.As4()
			sum = crc32.Update(sum, crc32.IEEETable, addr[:])
		} else {
			addr := s.Addr.As16()
			sum = add(sum, placement.StringHash(addr[:]))
		}
		sum = crc32.Update(sum, crc32.IEEETable, []byte(s.Tag))
	}
	return max(1, sum)
}

func add(sum, word uint32) uint32 {
	return crc32.Update(sum, crc32.IEEETable, []byte{byte(word), byte(word >> 8), byte(word >> 16), byte(word >> 24)})
}
