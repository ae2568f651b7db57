package users

import (
	"fmt"
	"math"
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
		weak     bool
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
		at := func(t *rapid.T) time.Duration {
			return time.Duration(rapid.IntRange(-50, 50).Draw(t, "at")) * 300 * time.Millisecond
		}
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
			"weak": func(t *rapid.T) {
				e, m := known(t)
				m.weak = rapid.Bool().Draw(t, "weak")
				d.SetWeak(e, m.weak)
			},
			"host": func(t *rapid.T) { e, m := known(t); m.host = hostB; d.SetHost(e, hostB) },
			"bump": func(t *rapid.T) { e, _ := known(t); e.Bump() },
			"": func(t *rapid.T) {
				if d.Len() != len(want) {
					t.Fatalf("Len() = %d, want %d", d.Len(), len(want))
				}
				load := map[netip.Addr][2]int{}
				var idle, held, active []time.Duration
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
					end := m.refresh + expire
					if m.weak {
						end += WeakGrace
					}
					if can != (total(m) == 0 && !m.held) || at != end {
						t.Fatalf("ExpiresAt = %v, %v for %+v", at, can, m)
					}
					if e.Weak() != m.weak {
						t.Fatalf("%v: weak = %v", d.Key(e), e.Weak())
					}
					switch {
					case total(m) > 0:
						active = append(active, m.refresh)
					case can:
						idle = append(idle, end-expire)
					default:
						held = append(held, end-expire)
					}
				}
				for _, addr := range []netip.Addr{hostA, hostB} {
					if u, s := d.Load(addr); load[addr] != [2]int{u, s} {
						t.Fatalf("Load(%s) = %d, %d, want %v", addr, u, s, load[addr])
					}
				}
				// The lists must be the entries by the second of their last use; walk them without
				// taking them apart. A cursor finds all of them in the same order.
				var walk []*Entry
				for name, l := range map[string]struct {
					list
					want  []time.Duration
					first *Entry
				}{"idle": {d.idle, idle, d.Oldest()}, "held": {d.held, held, d.first(&d.held)}, "active": {d.active, active, d.OldestActive()}} {
					slices.Sort(l.want)
					seconds := make(map[int64]bool)
					i := d.entries.at(l.head).next
					if first := l.first; (first == nil) != (i == l.head) || first != nil && first.self != i {
						t.Fatalf("first of %s: %+v, want %d", name, first, i)
					}
					for n := 0; n < len(l.want) || i != l.head; n++ {
						e := d.entries.at(i)
						if want := l.want[min(n, len(l.want)-1)]; n == len(l.want) || e.second() != floor64(want) {
							t.Fatalf("%s list has %v at %d, want %v", name, e.refresh, n, l.want)
						}
						seconds[e.second()] = true
						next := d.entries.at(e.next)
						if last := next.self == l.head || next.second() != e.second(); last != (l.tails[e.second()] == e.self) {
							t.Fatalf("tail of second %d in the %s list is %d", e.second(), name, l.tails[e.second()])
						}
						walk = append(walk, e)
						i = e.next
					}
					if len(l.tails) != len(seconds) {
						t.Fatalf("%s list has tails %v for seconds %v", name, l.tails, seconds)
					}
				}
				var c Cursor
				for e := d.Walk(&c); e != nil; e = d.Walk(&c) {
					if i := slices.Index(walk, e); i < 0 {
						t.Fatalf("walked over %+v", e)
					} else {
						walk = slices.Delete(walk, i, i+1)
					}
				}
				if len(walk) != 0 || len(d.cursors) != 0 {
					t.Fatalf("the walk left out %d, %d cursors left", len(walk), len(d.cursors))
				}
			},
		})
	})
}

// floor64 is the second of a moment.
func floor64(at time.Duration) int64 {
	return int64(math.Floor(at.Seconds()))
}

// TestCursor: what is removed or used in front of a cursor does not disturb it.
func TestCursor(t *testing.T) {
	d := New(time.Minute)
	for hash := range uint32(10) {
		d.Add(Key{Hash: hash}, hostA, time.Duration(hash)*time.Second)
	}
	d.Start(d.Get(Key{Hash: 5}), "five")
	var c Cursor
	var got []uint32
	for e := d.Walk(&c); e != nil; e = d.Walk(&c) {
		got = append(got, e.hash)
		switch e.hash {
		case 1:
			d.Remove(e)
			d.Remove(d.Get(Key{Hash: 2})) // the next one
			d.Refresh(d.Get(Key{Hash: 3}), time.Minute)
		case 6:
			d.Add(Key{Hash: 2}, hostA, 0) // behind the cursor
		}
	}
	if want := []uint32{0, 1, 4, 6, 7, 8, 9, 3, 5}; !slices.Equal(got, want) {
		t.Errorf("walked over %v, want %v", got, want)
	}

	// Cursors that nobody ends do not add up, and the one that lost its place begins again.
	var first Cursor
	d.Walk(&first)
	for range 2 * maxCursors {
		d.Walk(new(Cursor))
	}
	if len(d.cursors) != maxCursors {
		t.Errorf("%d cursors", len(d.cursors))
	}
	n := 0
	for e := d.Walk(&first); e != nil; e = d.Walk(&first) {
		n++
	}
	if n != d.Len() {
		t.Errorf("a second walk over %d of %d", n, d.Len())
	}
}

// TestSparse: the place of an entry of the past is found where many seconds have no entry.
func TestSparse(t *testing.T) {
	d := New(time.Minute)
	for i, at := range []int{0, 1000, 10, 500, -7, 999, 10} {
		d.Add(Key{Hash: uint32(i)}, hostA, time.Duration(at)*time.Second)
	}
	var order []uint32
	for e := d.Oldest(); e != nil; e = d.Oldest() {
		order = append(order, e.hash)
		d.Remove(e)
	}
	if want := []uint32{4, 0, 2, 6, 3, 5, 1}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if len(d.idle.tails) != 0 {
		t.Errorf("tails left: %v", d.idle.tails)
	}
}

// TestTagsReuse: tags and hosts that are not used any more give their numbers back, so that a peer
// that invents them cannot fill the tables.
func TestTagsReuse(t *testing.T) {
	d := New(time.Minute)
	for i := range 70000 {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		d.Remove(d.Add(Key{Hash: 1, Tag: fmt.Sprint(i)}, addr, 0))
	}
	if len(d.tags) != 1 || len(d.hosts) != 1 || len(d.tagNum) != 0 || len(d.hostNum) != 0 {
		t.Errorf("%d tags, %d hosts", len(d.tags), len(d.hosts))
	}
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
	if n := d.entries.len(); n > 103 {
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
	d.Restore(Key{Hash: 1}, hostA, 9, 3*time.Second)
	d.Restore(Key{Hash: 2}, hostA, 4, 1*time.Second)
	if e := d.Add(Key{Hash: 3}, hostA, 2*time.Second); e.Epoch() != 10 {
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
