package hosts

import (
	"net/netip"
	"testing"
)

var (
	a = netip.MustParseAddr("10.0.0.1")
	b = netip.MustParseAddr("10.0.0.2")
	c = netip.MustParseAddr("fd00::1")
)

// share counts how many of 4096 hashes each host of a tag gets.
func share(t *Table, tag string) map[netip.Addr]int {
	got := make(map[netip.Addr]int)
	for i := range uint32(4096) {
		if addr, ok := t.Place(tag, i<<20); ok {
			got[addr]++
		}
	}
	return got
}

func TestTable(t *testing.T) {
	var table Table
	if len(share(&table, "")) != 0 {
		t.Fatal("an empty table places users")
	}
	down := func(addr netip.Addr, down bool) { table.Set(addr, func(s *State) { s.OperatorDown = down }) }
	table.Put(Host{Addr: a, Weight: 100})
	table.Put(Host{Addr: b, Weight: 100})
	table.Put(Host{Addr: c, Weight: 100, Tag: "x"})
	if got := share(&table, ""); got[a] == 0 || got[b] == 0 || got[c] != 0 {
		t.Errorf("two hosts: shares %v", got)
	}
	if got := share(&table, "x"); got[c] != 4096 {
		t.Errorf("tag x: shares %v", got)
	}

	steps := []struct {
		name     string
		do       func()
		onA, onB bool // gets new users
	}{
		{"down", func() { down(a, true) }, false, true},
		{"a weight does not bring a down host up", func() { table.Put(Host{Addr: a, Weight: 50}) }, false, true},
		{"up keeps the weight", func() { down(a, false) }, true, true},
		{"weight 0", func() { table.Put(Host{Addr: a}) }, false, true},
		{"up does not undo weight 0", func() { down(a, true); down(a, false) }, false, true},
		{"negative weight", func() { table.Put(Host{Addr: a, Weight: -5}) }, false, true},
		{"weight again", func() { table.Put(Host{Addr: a, Weight: 1000}) }, true, true},
		{"other tag", func() { table.Put(Host{Addr: a, Weight: 1000, Tag: "x"}) }, false, true},
		{"removed", func() { table.Remove(b) }, false, false},
	}
	for _, step := range steps {
		step.do()
		got := share(&table, "")
		if (got[a] > 0) != step.onA || (got[b] > 0) != step.onB {
			t.Errorf("%s: shares %v, want a %v, b %v", step.name, got, step.onA, step.onB)
		}
	}
	if got := share(&table, "x"); got[a] == 0 || got[c] == 0 {
		t.Errorf("tag x after the change of tag: shares %v", got)
	}

	all := table.All()
	if len(all) != 2 || all[0].Addr != a || all[1].Addr != c {
		t.Errorf("All() = %v", all)
	}
	if table.Remove(b) || table.Set(b, func(*State) {}) {
		t.Error("a removed host is still known")
	}
	if _, ok := table.Get(b); ok {
		t.Error("Get finds a removed host")
	}
	if before, existed := table.Put(Host{Addr: c, Weight: 7}); !existed || before.Weight != 100 || before.Tag != "x" {
		t.Errorf("Put returned %v, %v", before, existed)
	}
}

// TestUp: an operator and the health check do not undo each other.
func TestUp(t *testing.T) {
	for _, tt := range []struct{ operatorDown, healthDown, overridden, want bool }{
		{false, false, false, true},
		{true, false, false, false},
		{false, true, false, false},
		{true, true, false, false},
		{false, true, true, true},
		{true, true, true, false},
	} {
		var table Table
		table.Put(Host{Addr: a, Weight: 100})
		table.Set(a, func(s *State) {
			s.OperatorDown, s.HealthDown, s.Overridden = tt.operatorDown, tt.healthDown, tt.overridden
		})
		if s, _ := table.Get(a); s.Up != tt.want {
			t.Errorf("%+v: up is %v", tt, s.Up)
		}
	}
}

// TestHash: the table of ring.md section 7, and the mixed list of user-hash.md.
func TestHash(t *testing.T) {
	type host struct {
		addr   string
		weight int
		down   bool
		tag    string
	}
	for _, tt := range []struct {
		hosts []host
		want  uint32
	}{
		{[]host{{addr: "127.0.2.1", weight: 100}, {addr: "127.0.2.2", weight: 100},
			{addr: "127.0.2.3", weight: 100}, {addr: "127.0.2.4", weight: 100}}, 3647348155},
		{[]host{{addr: "127.0.2.1", weight: 100}, {addr: "127.0.2.2", weight: 100}}, 4284370315},
		{[]host{{addr: "127.0.2.1", weight: 100, down: true}, {addr: "127.0.2.2", weight: 100}}, 1362549786},
		{[]host{{addr: "127.0.2.1", weight: 100, down: true}, {addr: "127.0.2.2", weight: 100},
			{addr: "127.0.2.3", weight: 10}}, 986252874},
		{[]host{{addr: "127.0.2.1", weight: 100}, {addr: "127.0.2.2"}}, 2885673930},
		{[]host{{addr: "127.0.2.1", weight: 100}, {addr: "127.0.2.2", weight: 100},
			{addr: "127.0.2.3", weight: 10}}, 3152831341},
		{[]host{{addr: "127.0.2.1"}, {addr: "127.0.2.2", weight: 100}}, 305040523},
		{[]host{{addr: "127.0.2.1", weight: 100}, {addr: "127.0.2.2", weight: 100, down: true}}, 871648533},
		{[]host{{addr: "127.0.0.1", weight: 100, tag: "name"}, {addr: "127.0.2.2", weight: 100}}, 993471887},
		{[]host{{addr: "127.0.0.1", weight: 50, tag: "name"}, {addr: "127.0.2.2", weight: 100}}, 1781185385},
		{[]host{{addr: "10.1.0.1", weight: 100, tag: "a"}, {addr: "10.1.0.2", weight: 100, down: true, tag: "a"},
			{addr: "10.1.0.3", weight: 100, tag: "b"}, {addr: "10.1.0.9", weight: 100},
			{addr: "10.1.0.20", weight: 100, tag: "r"}, {addr: "10.1.0.21", weight: 100, tag: "r"},
			{addr: "10.1.0.22", weight: 100, tag: "r"}, {addr: "10.1.0.23", weight: 100, tag: "r"},
			{addr: "127.0.0.1", weight: 100, tag: "loc"}, {addr: "fd00::1", weight: 100, tag: "b"},
			{addr: "fd00::2"}, {addr: "fd00::5", weight: 10, tag: "b"}, {addr: "fd00::10", weight: 37},
			{addr: "fd00::11", weight: 100}, {addr: "fd00::12", weight: 100}}, 600669805},
		{nil, 1},
	} {
		var table Table
		for _, h := range tt.hosts {
			addr := netip.MustParseAddr(h.addr)
			table.Put(Host{Addr: addr, Weight: h.weight, Tag: h.tag})
			table.Set(addr, func(s *State) { s.OperatorDown = h.down })
		}
		if got := table.Hash(); got != tt.want {
			t.Errorf("%v: hash %d, want %d", tt.hosts, got, tt.want)
		}
	}
}
