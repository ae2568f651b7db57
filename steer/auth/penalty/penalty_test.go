package penalty

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"usher/steer/prelogin"
)

var (
	home   = netip.MustParseAddr("192.0.2.1")
	others = netip.MustParseAddr("192.0.2.2")
)

func login(user, password string) prelogin.Login {
	return prelogin.Login{User: user, Password: password}
}

// attempt plays a login that fails in no time, and returns how long the client waited before it was looked at, and after.
func attempt(t *testing.T, table *Table, from netip.Addr, l prelogin.Login, kind prelogin.Kind) (before, after time.Duration) {
	t.Helper()
	begin := time.Now()
	a, err := table.Begin(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	defer a.End()
	begun := time.Now()
	if err := a.Failed(t.Context(), l, kind, 0); err != nil {
		t.Fatal(err)
	}
	return begun.Sub(begin), time.Since(begun)
}

func expect(t *testing.T, step string, got, want time.Duration) {
	t.Helper()
	if got != want {
		t.Errorf("%s: waited %v, want %v", step, got, want)
	}
}

// Dovecot's own times: 2 s behind the first failure, then 4, 8, 15 and 15 s before the next ones.
func TestDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New(Config{})
		for i, want := range []time.Duration{0, 4 * time.Second, 8 * time.Second, 15 * time.Second, 15 * time.Second} {
			before, after := attempt(t, table, home, login("fred", fmt.Sprint(i)), prelogin.AuthFailed)
			expect(t, fmt.Sprint("before ", i), before, want)
			expect(t, fmt.Sprint("after ", i), after, 2*time.Second)
		}
		before, _ := attempt(t, table, others, login("fred", "x"), prelogin.AuthFailed)
		expect(t, "another address", before, 0)

		a, err := table.Begin(t.Context(), home)
		if err != nil {
			t.Fatal(err)
		}
		a.Accepted()
		a.End()
		before, _ = attempt(t, table, home, login("fred", "x"), prelogin.AuthFailed)
		expect(t, "after a success", before, 0)
		if s := table.Stats(); s.Addresses != 2 || s.Failed != 7 || s.Delayed != 5 {
			t.Errorf("%+v", s)
		}
	})
}

// What is not a wrong password costs nothing; the same wrong one costs no more than once.
func TestNotGuessing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New(Config{})
		for _, kind := range []prelogin.Kind{prelogin.TempFail, prelogin.Unavailable, prelogin.InUse, prelogin.PermFail} {
			before, after := attempt(t, table, home, login("fred", "x"), kind)
			expect(t, kind.String(), before+after, 0)
		}
		if n := table.Stats().Addresses; n != 0 {
			t.Errorf("%d addresses", n)
		}
		attempt(t, table, home, login("fred", "old"), prelogin.AuthFailed)
		for range 20 {
			before, _ := attempt(t, table, home, login("fred", "old"), prelogin.AuthFailed)
			expect(t, "the same password", before, 4*time.Second)
		}
		// Ten others make it forgotten.
		for i := range remembered {
			attempt(t, table, home, login("fred", fmt.Sprint(i)), prelogin.AuthFailed)
		}
		before, _ := attempt(t, table, home, login("fred", "old"), prelogin.AuthFailed)
		expect(t, "after ten others", before, 15*time.Second)
	})
}

// The refusal comes two seconds after the beginning, not after whatever took its time; a hook may want it later.
func TestFailureDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New(Config{})
		for _, tt := range []struct{ worked, atLeast, want time.Duration }{
			{0, 0, 2 * time.Second}, {500 * time.Millisecond, 0, 2 * time.Second}, {3 * time.Second, 0, 3 * time.Second},
			{time.Second, 10 * time.Second, 10 * time.Second}, {time.Second, time.Second, 2 * time.Second},
		} {
			a, err := table.Begin(t.Context(), netip.MustParseAddr("192.0.2.77"))
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			time.Sleep(tt.worked)
			if err := a.Failed(t.Context(), login("fred", "x"), prelogin.AuthFailed, tt.atLeast); err != nil {
				t.Error(err)
			}
			a.End()
			expect(t, fmt.Sprint(tt), time.Since(begin), tt.want)
		}
		off := New(Config{FailureDelay: -1})
		for i := range 5 {
			before, after := attempt(t, off, home, login("fred", fmt.Sprint(i)), prelogin.AuthFailed)
			expect(t, "switched off", before+after, 0)
		}
	})
}

func TestForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New(Config{Expire: time.Minute})
		attempt(t, table, home, login("fred", "1"), prelogin.AuthFailed)
		time.Sleep(57 * time.Second) // and the two that the refusal took
		before, _ := attempt(t, table, home, login("fred", "2"), prelogin.AuthFailed)
		expect(t, "before it expires", before, 4*time.Second)
		time.Sleep(61 * time.Second)
		before, _ = attempt(t, table, home, login("fred", "3"), prelogin.AuthFailed)
		expect(t, "expired", before, 0)
		time.Sleep(time.Hour)
		attempt(t, table, others, login("fred", "3"), prelogin.AuthFailed)
		if n := table.Stats().Addresses; n != 1 {
			t.Errorf("%d addresses, those expired are there", n)
		}
	})
}

// One customer's network is one address; its neighbour's is another.
func TestAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New(Config{Exempt: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}})
		attempt(t, table, netip.MustParseAddr("2001:db8::1"), login("fred", "1"), prelogin.AuthFailed)
		attempt(t, table, netip.MustParseAddr("192.0.2.1"), login("fred", "1"), prelogin.AuthFailed)
		for text, want := range map[string]time.Duration{
			"2001:db8::ffff:ffff:ffff:ffff": 4 * time.Second, "2001:db8:0:1::1": 0, "::192.0.2.1": 0, "0:0:c000:201::1": 0, "::ffff:192.0.2.1": 4 * time.Second, "192.0.2.3": 0,
		} {
			a, err := table.Begin(t.Context(), netip.MustParseAddr(text))
			if err != nil {
				t.Fatal(err)
			}
			expect(t, text, time.Since(a.begun), 0)
			begin := time.Now()
			b, err := table.Begin(t.Context(), netip.MustParseAddr(text))
			if err != nil {
				t.Fatal(err)
			}
			expect(t, text, time.Since(begin), want)
			a.End()
			b.End()
		}
		for i := range 5 {
			for _, text := range []string{"10.1.2.3", "::ffff:10.1.2.3", "fd00::1"} {
				before, after := attempt(t, table, netip.MustParseAddr(text), login("fred", fmt.Sprint(i)), prelogin.AuthFailed)
				expect(t, "exempt "+text, before, 0)
				expect(t, "exempt "+text, after, 2*time.Second)
			}
		}
	})
}

// A punished address gains nothing by many connections.
func TestParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New(Config{Parallel: 3})
		attempt(t, table, home, login("fred", "0"), prelogin.AuthFailed)
		var wg sync.WaitGroup
		var mu sync.Mutex
		busy := 0
		for i := range 10 {
			wg.Go(func() {
				a, err := table.Begin(t.Context(), home)
				if errors.Is(err, ErrBusy) {
					mu.Lock()
					busy++
					mu.Unlock()
					return
				}
				defer a.End()
				_ = a.Failed(t.Context(), login("fred", fmt.Sprint(i)), prelogin.AuthFailed, 0)
			})
		}
		wg.Wait()
		if busy != 7 || table.Stats().Busy != 7 {
			t.Errorf("%d were refused, want 7", busy)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for range 10 { // who gives up gives its place back
			if _, err := table.Begin(ctx, home); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		if before, _ := attempt(t, table, home, login("fred", "x"), prelogin.AuthFailed); before == 0 {
			t.Error("not delayed")
		}
	})
}

// provisional plays a login with an unknown name and returns its error and how long it waited.
func provisional(t *testing.T, table *Table, from netip.Addr, end func(*Attempt)) (time.Duration, error) {
	t.Helper()
	a, err := table.Begin(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	defer a.End()
	begin := time.Now()
	if err := a.Provisional(t.Context()); err != nil {
		return time.Since(begin), err
	}
	d := time.Since(begin)
	end(a)
	return d, nil
}

func TestProvisional(t *testing.T) {
	accepted := func(a *Attempt) { a.Accepted() }
	left := func(*Attempt) {} // the client went away
	temporary := func(a *Attempt) { _ = a.Failed(t.Context(), login("x", "y"), prelogin.Unavailable, 0) }
	synctest.Test(t, func(t *testing.T) {
		config := Config{FailureDelay: -1, PerAddress: Rate{1, 3}, Total: Rate{10, 8}, MaxWait: 2 * time.Second}
		table := New(config)
		for range 100 { // honest ones, and those that could not be verified, cost nothing
			for _, end := range []func(*Attempt){accepted, temporary} {
				if d, err := provisional(t, table, home, end); err != nil || d != 0 {
					t.Fatalf("waited %v, %v", d, err)
				}
			}
		}
		if n := table.Stats().Addresses; n != 0 {
			t.Errorf("%d addresses are remembered for nothing", n)
		}
		for i, want := range []time.Duration{0, 0, 0, time.Second, time.Second, time.Second} {
			if d, err := provisional(t, table, home, left); err != nil || d != want {
				t.Errorf("invented name %d: waited %v, %v, want %v", i, d, err, want)
			}
		}
		// Four at once are more than there will be tokens for in two seconds.
		var wg sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		for range 4 {
			wg.Go(func() {
				if _, err := provisional(t, table, home, left); errors.Is(err, ErrRate) {
					mu.Lock()
					refused++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if refused != 2 {
			t.Errorf("%d were refused, want 2", refused)
		}
		if d, err := provisional(t, table, others, accepted); err != nil || d != 0 {
			t.Errorf("another address waited %v, %v", d, err)
		}
		time.Sleep(time.Minute)
		if d, err := provisional(t, table, home, left); err != nil || d != 0 {
			t.Errorf("a minute later: %v, %v", d, err)
		}

		// All together: eight at once, then ten a second.
		table = New(config)
		for i := range 8 {
			if d, err := provisional(t, table, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), left); err != nil || d != 0 {
				t.Errorf("address %d: %v, %v", i, d, err)
			}
		}
		if d, err := provisional(t, table, home, left); err != nil || d != 100*time.Millisecond {
			t.Errorf("the ninth: %v, %v", d, err)
		}
	})
}

// Who gives up while waiting has cost the backends nothing.
func TestProvisionalGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New(Config{PerAddress: Rate{1, 1}})
		if _, err := provisional(t, table, home, func(*Attempt) {}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		for range 100 {
			a, err := table.Begin(t.Context(), home)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Provisional(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			a.End()
		}
		if d, err := provisional(t, table, home, func(*Attempt) {}); err != nil || d > time.Second {
			t.Errorf("waited %v, %v", d, err)
		}
	})
}

func TestSizes(t *testing.T) {
	if size := unsafe.Sizeof(entry{}); size > 128 {
		t.Errorf("an entry has %d bytes", size)
	}
}

// The list and the index say the same after any number of changes.
func TestCacheConsistent(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	config := Config{Expire: 50, PerAddress: Rate{PerSecond: 1, Burst: 1}}
	c := newCache(20)
	for now := time.Duration(0); now < 20000; now++ {
		k := key{bits: r.Uint64N(60)}
		switch e := c.get(k); {
		case e == nil:
			c.add(k, now, config)
		case r.IntN(3) == 0:
			c.remove(e)
		case r.IntN(2) == 0:
			c.touch(e, now)
		default:
			c.tidy(e, config, now)
		}
		seen, last := 0, time.Duration(-1)
		for i := c.entries[0].newer; i != 0; i = c.entries[i].newer {
			e := &c.entries[i]
			if e.self != i || c.index[e.key] != i || e.used < last || c.entries[e.newer].older != i {
				t.Fatalf("place %d: %+v", i, *e)
			}
			last = e.used
			seen++
		}
		if seen != len(c.index) || seen > 20 || len(c.entries)-1-len(c.free) != seen {
			t.Fatalf("%d in the list, %d in the index, %d places, %d free", seen, len(c.index), len(c.entries)-1, len(c.free))
		}
	}
}
