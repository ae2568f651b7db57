package director

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// The benchmarks run over so many entries. Ten million need some 1.5 GB:
//
//	go test ./director -run '^$' -bench . -entries 10000000
var benchmarkEntries = flag.Int("entries", 1_000_000, "entries in benchmarks")

// cpu returns the CPU time of this process so far. On a machine that does other things as well it says
// more than the time that has passed.
func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// measure runs op in a loop, with random numbers below the number of entries.
func measure(b *testing.B, op func(i int)) {
	b.ReportAllocs()
	r := rand.New(rand.NewPCG(1, 2))
	order := make([]uint32, 1<<16) // drawing them is not to be measured
	for i := range order {
		order[i] = uint32(r.IntN(*benchmarkEntries))
	}
	runtime.GC()
	start := cpu()
	i := 0
	for b.Loop() {
		op(int(order[i&(1<<16-1)]) ^ i>>16&1)
		i++
	}
	b.ReportMetric(float64(cpu()-start)/float64(b.N), "cpu-ns/op")
}

// full returns a director with entries for all names, used within the last minute.
func full(b *testing.B, config Config) (*Director, []string) {
	d := newTestDirector(config)
	d.Step(testStart, RingState{Handshaked: true, Synced: true, Right: true, Whole: true, Minor: 9})
	names := make([]string, *benchmarkEntries)
	for i := range names {
		names[i] = fmt.Sprintf("user%d@example.com", i)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i, name := range names {
		d.Step(testStart.Add(time.Duration(i)*time.Minute/time.Duration(len(names))), Lookup{Request: 1, User: name})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	perEntry := float64(after.HeapAlloc-before.HeapAlloc) / float64(len(names))
	b.Cleanup(func() { b.ReportMetric(perEntry, "bytes/entry") })
	return d, names
}

// now is after all entries of full were made.
var benchmarkNow = testStart.Add(time.Minute)

// BenchmarkLookup is a lookup of a known user, in random order; in a ring each is a second that the others
// have not heard of.
func BenchmarkLookup(b *testing.B) {
	for _, ring := range []bool{false, true} {
		b.Run(fmt.Sprintf("ring=%v", ring), func(b *testing.B) {
			d, names := full(b, Config{Ring: ring})
			now := benchmarkNow
			measure(b, func(i int) {
				now = now.Add(50 * time.Microsecond)
				d.Step(now, Lookup{Request: 1, User: names[i]})
			})
		})
	}
}

// BenchmarkRefresh is traffic seen for a known user, in random order.
func BenchmarkRefresh(b *testing.B) {
	d, names := full(b, Config{})
	keys := make([]Key, len(names))
	for i, name := range names {
		keys[i] = d.KeyOf(name, "")
	}
	now := benchmarkNow
	measure(b, func(i int) {
		now = now.Add(time.Microsecond)
		d.Step(now, Active{keys[i]})
	})
}

// BenchmarkHear is a USER of another director for a known user, with a time of the last seconds, as of directors
// whose clocks differ.
func BenchmarkHear(b *testing.B) {
	d, names := full(b, Config{Ring: true})
	messages := make([]UserUpdate, len(names))
	for i, name := range names {
		key := d.KeyOf(name, "")
		e, _ := d.Entry(key)
		messages[i] = UserUpdate{Hash: key.Hash, Host: e.Host}
	}
	now := benchmarkNow
	measure(b, func(i int) {
		now = now.Add(50 * time.Microsecond)
		m := messages[i]
		m.Refreshed = now.Unix() - int64(i%4)
		d.Step(now, Heard{Message: m})
	})
}

// BenchmarkSession is a lookup, the start of a session and its end.
func BenchmarkSession(b *testing.B) {
	d, names := full(b, Config{})
	measure(b, func(i int) {
		d.Step(benchmarkNow, Lookup{Request: 1, User: names[i]})
		key := d.KeyOf(names[i], "")
		d.Step(benchmarkNow, SessionStart{key, names[i], 1})
		d.Step(benchmarkNow, SessionEnd{key, names[i], 1})
	})
}

// BenchmarkExpire is the making of an entry, and its end by age.
func BenchmarkExpire(b *testing.B) {
	d, _ := full(b, Config{})
	now := benchmarkNow
	hash := uint32(0)
	measure(b, func(int) {
		hash += 2654435761
		now = now.Add(DefaultUserExpire / time.Duration(*benchmarkEntries))
		d.Step(now, Tick{})
		d.lookup(lookup{id: 1, key: Key{Hash: hash | 1}})
		d.out = nil
	})
}

// BenchmarkDump is an entry of the list for a handshake.
func BenchmarkDump(b *testing.B) {
	d, names := full(b, Config{Ring: true})
	var c Cursor
	n := 0
	measure(b, func(int) {
		if n++; n%len(names) == 0 {
			c = Cursor{}
		}
		d.Dump(&c, 1, func(UserUpdate) {})
	})
}

// BenchmarkAdopt takes over entries in random order; ns/entry is the time of one of them.
func BenchmarkAdopt(b *testing.B) {
	var event Adopt
	r := rand.New(rand.NewPCG(1, 1))
	for i := range uint32(*benchmarkEntries) {
		event.Entries = append(event.Entries, Adopted{
			Key: Key{Hash: i*2654435761 | 1}, Host: netip.MustParseAddr("10.0.0.1"), Epoch: 1,
			LastRefresh: testStart.Add(-time.Duration(r.Int64N(int64(DefaultUserExpire)))),
		})
	}
	for b.Loop() {
		newTestDirector(Config{}).Step(testStart, event)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(*benchmarkEntries), "ns/entry")
}
