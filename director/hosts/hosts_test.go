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
		{"down", func() { table.SetUp(a, false) }, false, true},
		{"a weight does not bring a down host up", func() { table.Put(Host{Addr: a, Weight: 50}) }, false, true},
		{"up keeps the weight", func() { table.SetUp(a, true) }, true, true},
		{"weight 0", func() { table.Put(Host{Addr: a}) }, false, true},
		{"up does not undo weight 0", func() { table.SetUp(a, false); table.SetUp(a, true) }, false, true},
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
	if table.Remove(b) || table.SetUp(b, true) {
		t.Error("a removed host is still known")
	}
	if _, ok := table.Get(b); ok {
		t.Error("Get finds a removed host")
	}
	if before, existed := table.Put(Host{Addr: c, Weight: 7}); !existed || before.Weight != 100 || before.Tag != "x" {
		t.Errorf("Put returned %v, %v", before, existed)
	}
}
