package penalty

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"usher/steer/prelogin"
)

// Everybody is unknown after a restart: a large site logs in, all from their own addresses and many from one office, and
// nobody waits or is refused.
func TestHonestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New(Config{})
		var wg sync.WaitGroup
		for i := range 20000 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 50 * time.Microsecond) // all within one second
				from := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
				if i%4 == 0 {
					from = home
				}
				d, err := provisional(t, table, from, func(a *Attempt) {
					time.Sleep(20 * time.Millisecond) // a backend
					a.Accepted()
				})
				if err != nil || d != 0 {
					t.Errorf("user %d waited %v, %v", i, d, err)
				}
			})
		}
		wg.Wait()
		if s := table.Stats(); s.Addresses != 0 || s.Accepted != 20000 {
			t.Errorf("%+v", s)
		}
	})
}

// A million invented names, from many addresses: few reach a backend, none is accepted (only then the
// director makes an entry), and the table stays as small as it is meant to be. Users who are known are not concerned.
func TestMillionInventedUsers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		names int
		from  func(i int) netip.Addr
		most  func(seconds float64) float64 // how many may reach a backend
	}{
		{"from one address", 100_000, func(int) netip.Addr { return home }, func(s float64) float64 { return 200 + 2*(s+5) }},
		{"from a botnet", 1_000_000, func(i int) netip.Addr { return netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1}) }, func(s float64) float64 { return 5000 + 200*(s+5) }},
		{"from a /32 of IPv6", 100_000, func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(i >> 16), byte(i >> 8), byte(i), 15: byte(rand.Int())})
		}, func(s float64) float64 { return 5000 + 200*(s+5) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			table := New(Config{FailureDelay: -1, Addresses: 10000})
			gone, cancel := context.WithCancel(t.Context())
			cancel() // nobody waits for a token here: what is refused, and what waits, both do not reach a backend yet
			reached := 0
			begin := time.Now()
			for i := range tt.names {
				a, err := table.Begin(t.Context(), tt.from(i))
				if err != nil {
					t.Fatal(err)
				}
				if err := a.Provisional(gone); err == nil {
					reached++
					if err := a.Failed(t.Context(), login(fmt.Sprint("invented-", i), "x"), prelogin.AuthFailed, 0); err != nil {
						t.Fatal(err)
					}
				}
				a.End()
			}
			if most := tt.most(time.Since(begin).Seconds()); float64(reached) > most {
				t.Errorf("%d reached a backend, want at most %.0f", reached, most)
			}
			if reached == 0 {
				t.Error("none reached a backend: that is no test")
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			s := table.Stats()
			if s.Addresses > 10000 || len(table.cache.entries) > 10001 || s.Accepted != 0 {
				t.Errorf("%+v", s)
			}
			grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
			if grown > 4<<20 {
				t.Errorf("%d bytes more", grown)
			}
			t.Logf("%d reached a backend in %v; %d addresses, %d bytes", reached, time.Since(begin).Round(time.Millisecond), s.Addresses, grown)

			// Somebody whose name is known needs no token.
			a, err := table.Begin(t.Context(), others)
			if err != nil {
				t.Fatal(err)
			}
			a.Accepted()
			a.End()
			runtime.KeepAlive(table)
		})
	}
}

// Failures from more addresses than there are places; nothing is held back for the sake of the test.
func TestManyFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New(Config{Addresses: 1000})
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for i := range 100_000 {
			from := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
			a, err := table.Begin(gone, from)
			if err == nil {
				_ = a.Failed(gone, login("fred", "x"), prelogin.AuthFailed, 0)
				a.End()
			}
		}
		if s := table.Stats(); s.Addresses != 1000 || s.Failed != 100_000 || len(table.cache.entries) != 1001 {
			t.Errorf("%+v, %d places", s, len(table.cache.entries))
		}
	})
}

// A flood from strange addresses does not keep out those from which somebody has logged in, in the last hour or two.
func TestFamiliar(t *testing.T) {
	accepted := func(a *Attempt) { a.Accepted() }
	left := func(*Attempt) {}
	synctest.Test(t, func(t *testing.T) {
		table := New(Config{Total: Rate{0.001, 5}, Expire: time.Hour, Exempt: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
		if _, err := provisional(t, table, home, accepted); err != nil {
			t.Fatal(err)
		}
		flood := func() (reached int) {
			for i := range 1000 {
				if _, err := provisional(t, table, netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), left); err == nil {
					reached++
				}
			}
			return reached
		}
		if n := flood(); n != 5 {
			t.Errorf("%d reached a backend, want 5", n)
		}
		for _, from := range []string{"192.0.2.1", "10.1.1.1"} {
			if d, err := provisional(t, table, netip.MustParseAddr(from), left); err != nil || d != 0 {
				t.Errorf("%s: %v, %v", from, d, err)
			}
		}
		if _, err := provisional(t, table, others, accepted); !errors.Is(err, ErrRate) {
			t.Errorf("a stranger: %v", err)
		}
		for i, want := range []bool{true, true, false} { // a success is remembered into the next period, and renews itself
			if got := table.familiar.has(keyOf(home)); got != want {
				t.Errorf("period %d: familiar %v, want %v", i, got, want)
			}
			time.Sleep(time.Hour)
			table.familiar.turn(table.now(), time.Hour)
		}
		time.Sleep(5 * time.Hour)
		table.familiar.turn(table.now(), time.Hour)
		table.familiar.add(keyOf(home))
		time.Sleep(2 * time.Hour)
		table.familiar.turn(table.now(), time.Hour)
		if table.familiar.has(keyOf(home)) {
			t.Error("familiar after two periods without anybody")
		}
	})
}

func TestFamiliarMillion(t *testing.T) {
	f := newFamiliar(maphash.MakeSeed())
	for i := range uint64(1_000_000) {
		f.add(key{bits: i})
	}
	wrong := 0
	for i := range uint64(100_000) {
		if !f.has(key{bits: i}) {
			t.Fatalf("%d is strange", i)
		}
		if f.has(key{bits: i, v6: true}) {
			wrong++
		}
	}
	if wrong > 7000 {
		t.Errorf("%d of 100000 strangers look familiar", wrong)
	}
}
