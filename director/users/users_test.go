package users

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"
)

var (
	hostA = netip.MustParseAddr("10.0.0.1")
	hostB = netip.MustParseAddr("fd00::1")
)

func TestEntrySize(t *testing.T) {
	if size := unsafe.Sizeof(Entry{}); size > 48 {
		t.Errorf("an entry has %d bytes, at most 48", size)
	}
	if size := unsafe.Sizeof(name{}); size > 24 {
		t.Errorf("a name has %d bytes without its text, at most 24", size)
	}
}

func TestKeyString(t *testing.T) {
	for key, want := range map[Key]string{
		{Hash: 704933450}:              "704933450",
		{Hash: 4294967295, Tag: "tag"}: "4294967295@tag",
	} {
		if got := key.String(); got != want {
			t.Errorf("%#v is %q, want %q", key, got, want)
		}
	}
}

// TestDirectory compares the directory with a map and a sorted slice over random operations.
func TestDirectory(t *testing.T) {
	const expire = time.Minute
	type model struct {
		host     netip.Addr
		refresh  time.Duration
		sessions map[string]int
		held     bool
	}
	rapid.Check(t, func(t *rapid.T) {
		d := New(expire)
		want := make(map[Key]*model)
		total := func(m *model) (n int) {
			for _, k := range m.sessions {
				n += k
			}
			return n
		}
		draw := func(t *rapid.T) (Key, *Entry, *model) {
			key := Key{rapid.Uint32Range(1, 8).Draw(t, "hash"), rapid.SampledFrom([]string{"", "x"}).Draw(t, "tag")}
			return key, d.Get(key), want[key]
		}
		known := func(t *rapid.T) (*Entry, *model) {
			_, e, m := draw(t)
			if m == nil {
				t.Skip("no entry")
			}
			return e, m
		}
		// Times are not in order on purpose: entries may be learnt with a use in the past.
		at := func(t *rapid.T) time.Duration { return time.Duration(rapid.IntRange(-50, 50).Draw(t, "at")) }
		user := func(t *rapid.T) string { return fmt.Sprint("user", rapid.IntRange(0, 2*manyNames).Draw(t, "user")) }
		floor := uint32(0)

		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				key, _, m := draw(t)
				if m != nil {
					t.Skip("present")
				}
				now := at(t)
				want[key] = &model{host: hostA, refresh: now, sessions: make(map[string]int)}
				e := d.Add(key, hostA, now)
				if e.Epoch() <= floor || e.Born() != e.Epoch() {
					t.Fatalf("epoch %d born %d, but %d was dropped", e.Epoch(), e.Born(), floor)
				}
			},
			"remove": func(t *rapid.T) {
				e, _ := known(t)
				floor = max(floor, e.Epoch())
				delete(want, d.Key(e))
				d.Remove(e)
			},
			"refresh": func(t *rapid.T) {
				e, m := known(t)
				now := at(t)
				m.refresh = max(m.refresh, now)
				d.Refresh(e, now)
			},
			"start": func(t *rapid.T) {
				e, m := known(t)
				u := user(t)
				_, seen := m.sessions[u]
				if first := d.Start(e, u); first == seen {
					t.Fatalf("first = %v for %s of %v", first, u, m.sessions)
				}
				m.sessions[u]++
			},
			"end": func(t *rapid.T) {
				e, m := known(t)
				u := user(t)
				if ok := d.End(e, u); ok != (m.sessions[u] > 0) {
					t.Fatalf("End(%s) = %v with %v", u, ok, m.sessions)
				} else if ok {
					m.sessions[u]--
				}
			},
			"note": func(t *rapid.T) {
				e, m := known(t)
				u := user(t)
				m.sessions[u] += 0
				d.Note(e, u)
			},
			"hold":    func(t *rapid.T) { e, m := known(t); m.held = true; d.Hold(e) },
			"release": func(t *rapid.T) { e, m := known(t); m.held = false; d.Release(e) },
			"host":    func(t *rapid.T) { e, m := known(t); m.host = hostB; d.SetHost(e, hostB) },
			"bump":    func(t *rapid.T) { e, _ := known(t); e.Bump() },
			"": func(t *rapid.T) {
				if d.Len() != len(want) {
					t.Fatalf("Len() = %d, want %d", d.Len(), len(want))
				}
				load := map[netip.Addr][2]int{}
				var idle []time.Duration
				for e := range d.All() {
					m := want[d.Key(e)]
					if m == nil || d.Host(e) != m.host || e.LastRefresh() != m.refresh || int(e.Sessions()) != total(m) {
						t.Fatalf("%v: %+v, want %+v", d.Key(e), e, m)
					}
					if d.Get(d.Key(e)) != e {
						t.Fatalf("%v is not found", d.Key(e))
					}
					names := d.Names(e)
					if len(names) != len(m.sessions) {
						t.Fatalf("names %v, want %v", names, m.sessions)
					}
					for _, u := range names {
						if n, ok := m.sessions[u]; !ok || int(d.SessionsOf(e, u)) != n {
							t.Fatalf("%s has %d sessions, want %d", u, d.SessionsOf(e, u), n)
						}
					}
					l := load[m.host]
					load[m.host] = [2]int{l[0] + 1, l[1] + total(m)}
					at, can := d.ExpiresAt(e)
					if can != (total(m) == 0 && !m.held) || at != m.refresh+expire {
						t.Fatalf("ExpiresAt = %v, %v for %+v", at, can, m)
					}
					if can {
						idle = append(idle, m.refresh)
					}
				}
				for _, addr := range []netip.Addr{hostA, hostB} {
					if u, s := d.Load(addr); load[addr] != [2]int{u, s} {
						t.Fatalf("Load(%s) = %d, %d, want %v", addr, u, s, load[addr])
					}
				}
				// The list must be the idle entries by last use; walk it without taking it apart.
				slices.Sort(idle)
				var list []time.Duration
				for i := d.entries.at(0).next; i != 0; i = d.entries.at(i).next {
					list = append(list, d.entries.at(i).refresh)
				}
				if !slices.Equal(list, idle) {
					t.Fatalf("idle list %v, want %v", list, idle)
				}
				if oldest := d.Oldest(); (oldest == nil) != (len(idle) == 0) || oldest != nil && oldest.refresh != idle[0] {
					t.Fatalf("Oldest() = %+v, want %v", oldest, idle)
				}
			},
		})
	})
}

// TestReuse: dropped entries and names give their room back.
func TestReuse(t *testing.T) {
	d := New(time.Minute)
	for round := range 50 {
		for hash := range uint32(100) {
			e := d.Add(Key{Hash: hash + 1}, hostA, time.Duration(round))
			for i := range 2 * manyNames {
				d.Start(e, fmt.Sprint("user", i))
			}
		}
		for e := range d.All() {
			d.Remove(e)
		}
	}
	if n := d.entries.len(); n > 101 {
		t.Errorf("%d slots for 100 entries", n)
	}
	if n := d.names.len(); n > 100*2*manyNames+1 {
		t.Errorf("%d slots for %d names", n, 100*2*manyNames)
	}
	if len(d.many) != 0 || d.Len() != 0 {
		t.Errorf("%d name maps, %d entries left", len(d.many), d.Len())
	}
}

func TestRestore(t *testing.T) {
	d := New(time.Minute)
	d.Restore(Key{Hash: 1}, hostA, 9, 3)
	d.Restore(Key{Hash: 2}, hostA, 4, 1)
	if e := d.Add(Key{Hash: 3}, hostA, 2); e.Epoch() != 10 {
		t.Errorf("epoch %d behind restored ones up to 9, want 10", e.Epoch())
	}
	var order []uint32
	for e := d.Oldest(); e != nil; e = d.Oldest() {
		order = append(order, e.hash)
		d.Remove(e)
	}
	if want := []uint32{2, 3, 1}; !slices.Equal(order, want) {
		t.Errorf("expiry order %v, want %v", order, want)
	}
}

// heap returns the bytes in use after a collection.
func heap() uint64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// TestBytesPerEntry guards the memory of an entry at a million entries. The figure depends on how full
// the index is: a Go map doubles, so it lies between some 58 and 70.
func TestBytesPerEntry(t *testing.T) {
	if testing.Short() {
		t.Skip("a million entries")
	}
	const n = 1_000_000
	before := heap()
	d := New(time.Minute)
	for i := range uint32(n) {
		d.Add(Key{Hash: i * 2654435761}, hostA, 0)
	}
	perEntry := float64(heap()-before) / n
	runtime.KeepAlive(d)
	t.Logf("%.1f bytes/entry", perEntry)
	if perEntry > 100 {
		t.Errorf("%.1f bytes/entry, at most 100", perEntry)
	}
}

func BenchmarkRefresh(b *testing.B) {
	const n = 1 << 20
	d := New(time.Minute)
	for i := range uint32(n) {
		d.Add(Key{Hash: i * 2654435761}, hostA, 0)
	}
	i := uint32(0)
	b.ReportAllocs()
	for b.Loop() {
		i = i*1664525 + 1013904223 // random access: no cache helps
		d.Refresh(d.Get(Key{Hash: i % n * 2654435761}), time.Duration(b.Elapsed()))
	}
}
