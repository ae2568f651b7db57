package director

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var together = RingState{Handshaked: true, Synced: true, Right: true, Whole: true, Minor: 9}

// TestRingDeterminism plays the same random events of node and ring twice and compares all effects.
func TestRingDeterminism(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	play := func() (all []Effect) {
		r := rand.New(rand.NewPCG(seed, 1))
		d := newTestDirector(Config{Ring: true, UserExpire: 20 * time.Second, KickDelay: time.Second, MaxParallelMoves: 3})
		now := testStart
		addrs := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")}
		for i := range uint64(4000) {
			user := fmt.Sprint("user", r.IntN(60))
			key := d.KeyOf(user, "")
			info, _ := d.Entry(key)
			addr := addrs[r.IntN(len(addrs))]
			second := now.Unix() - int64(r.IntN(25))
			events := []Event{
				Lookup{Request: i, User: user}, Lookup{Request: i, User: user}, SessionStart{key, user, info.Epoch},
				SessionEnd{key, user, info.Epoch}, Move{ID: i, User: user, To: addr}, Kick{ID: i, User: "user1*", Mask: true},
				RingState{Handshaked: i > 100, Synced: r.IntN(2) == 0, Right: r.IntN(4) > 0, Minor: 9}, together, RingSynced{},
				HostUp{Addr: addr, Up: r.IntN(2) == 0, Health: r.IntN(2) == 0},
				HostPut{Host: Host{Addr: addr, Weight: r.IntN(100)}},
				Heard{Message: UserUpdate{Hash: key.Hash, Host: addr, Refreshed: second, Weak: r.IntN(4) == 0}, Handshake: r.IntN(2) == 0},
				Heard{Message: UserMove{Hash: key.Hash, Host: addr, Ordered: second}},
				Heard{Message: UserKilled{Hash: key.Hash}}, Heard{Message: UserKilledEverywhere{Hash: key.Hash}},
				Heard{Message: UserWeak{Hash: key.Hash, Host: addr}},
			}
			switch r.IntN(200) {
			case 0:
				events = []Event{HostRemove{Addr: addr}}
			case 1:
				events = []Event{HostFlush{ID: i}}
			case 2:
				events = []Event{HostForgetUsers{ID: i, Addr: addr}}
			}
			all = append(all, d.Step(now, events[r.IntN(len(events))])...)
			now = now.Add(time.Duration(r.IntN(500)) * time.Millisecond)
		}
		return all
	}
	first, second := play(), play()
	sameAddr := cmpopts.EquateComparable(netip.Addr{})
	sameText := cmp.Comparer(func(a, b error) bool { return fmt.Sprint(a) == fmt.Sprint(b) })
	if diff := cmp.Diff(first, second, sameAddr, sameText); diff != "" {
		t.Error(diff)
	}
	if len(first) < 1000 {
		t.Errorf("only %d effects", len(first))
	}
}

// TestClock: a moment is one second for ever, unless the wall clock is set; both ways are exact.
func TestClock(t *testing.T) {
	var c clock
	start := time.Unix(1_000_000, 700_000_000)
	c.set(start, 0)
	steps := []struct {
		at   time.Duration
		wall time.Time
		want int64 // second of moment 0.4 s, the edge to the next second being at 0.3 s
	}{
		{time.Second, start.Add(time.Second + 900*time.Millisecond), 1_000_001}, // drift
		{2 * time.Second, start.Add(2*time.Second - time.Second), 1_000_001},    // drift
		{3 * time.Second, start.Add(3*time.Second + 2*time.Second), 1_000_003},  // set forward
		{4 * time.Second, start.Add(4*time.Second + 1100*time.Millisecond), 1_000_003},
		{5 * time.Second, start.Add(5*time.Second - 10*time.Second), 1_000_000 - 9}, // set back
	}
	for _, s := range steps {
		c.set(s.wall, s.at)
		if got := c.unix(400 * time.Millisecond); got != s.want {
			t.Errorf("at %v: second %d, want %d", s.at, got, s.want)
		}
		for _, unix := range []int64{999_000, 1_000_000, 1_000_003} {
			if got := c.unix(c.moment(unix)); got != unix {
				t.Errorf("second %d comes back as %d", unix, got)
			}
		}
	}
	// What peers say must not overflow.
	for _, unix := range []int64{-1 << 63, -1, 1<<63 - 1} {
		if at := c.moment(unix); at+1000*time.Hour < at || at-1000*time.Hour > at {
			t.Errorf("second %d is the moment %v", unix, at)
		}
	}
}

// TestDump: a list in portions, with changes in between. What is used meanwhile is told as it is used, and
// may be left out; everything else must be there.
func TestDump(t *testing.T) {
	d := newTestDirector(Config{Ring: true})
	d.Step(testStart, together)
	const n = 500
	now := testStart
	for i := range uint64(n) {
		now = now.Add(100 * time.Millisecond)
		d.Step(now, Lookup{Request: i, User: fmt.Sprint("user", i)})
	}
	now = now.Add(10 * time.Second)
	told := make(map[uint32]bool)
	tell := func(effects []Effect) {
		for _, e := range effects {
			if e, ok := e.(Tell); ok {
				if u, ok := e.Message.(UserUpdate); ok {
					told[u.Hash] = true
				}
			}
		}
	}
	var c Cursor
	var last int64
	for round, more := 0, true; more; round++ {
		if round > 100 {
			t.Fatal("the walk does not end")
		}
		count := 0
		more = d.Dump(&c, 20, func(u UserUpdate) {
			count++
			told[u.Hash] = true
			if u.Refreshed < last {
				t.Fatalf("second %d behind %d", u.Refreshed, last)
			}
			last = u.Refreshed
		})
		if count > 20 {
			t.Fatalf("%d entries at once", count)
		}
		now = now.Add(time.Second)
		for i := range uint64(10) {
			tell(d.Step(now, Lookup{Request: i, User: fmt.Sprint("user", (uint64(round)*37+i*11)%(n+20))}))
		}
	}
	for i := range n {
		if !told[d.KeyOf(fmt.Sprint("user", i), "").Hash] {
			t.Errorf("user%d is missing", i)
		}
	}

	// A walk over a directory that does not change finds each once, with its sessions and moves.
	d.Step(now, Move{ID: 1, User: "user1", To: netip.MustParseAddr("fd00::1")})
	c = Cursor{}
	seen := make(map[uint32]int)
	for d.Dump(&c, 7, func(u UserUpdate) { seen[u.Hash]++ }) {
	}
	if len(seen) != d.Users() {
		t.Errorf("%d of %d entries", len(seen), d.Users())
	}
	var stopped Cursor
	d.Dump(&stopped, 1, func(UserUpdate) {})
	d.DumpStop(&stopped)
}

// TestUntoldInPortions: after the handshake the entries of an earlier process are told some at a time.
func TestUntoldInPortions(t *testing.T) {
	d := newTestDirector(Config{Ring: true, UserExpire: time.Hour})
	var adopt Adopt
	const n = 2*untoldPart + 500
	for i := range uint32(n) {
		adopt.Entries = append(adopt.Entries, Adopted{Key: Key{Hash: i + 1}, Host: netip.MustParseAddr("10.0.0.1"), Epoch: 1,
			LastRefresh: testStart.Add(-time.Minute)})
	}
	d.Step(testStart, adopt)
	if next := d.Next(); !next.Equal(testStart.Add(59 * time.Minute)) {
		t.Errorf("before the handshake Next() = %v", next)
	}
	// A neighbour knows some of them: others may not. What is used when the ring is there is told by that.
	for i := range uint32(100) {
		d.Step(testStart, Heard{Message: UserUpdate{Hash: i + 1, Host: netip.MustParseAddr("10.0.0.1"),
			Refreshed: testStart.Unix() - 60}, Handshake: true})
	}
	d.ring = together
	for i := range uint32(50) {
		d.used(d.users.Get(Key{Hash: i + 1}))
	}
	d.out = nil
	var portions []int
	var times []time.Duration
	for len(portions) < 10 {
		next := d.Next()
		if next.After(testStart.Add(time.Minute)) {
			break
		}
		told := 0
		for _, e := range d.Step(next, Tick{}) {
			if _, ok := e.(Tell); ok {
				told++
			}
		}
		portions = append(portions, told)
		times = append(times, next.Sub(testStart))
	}
	if want := []int{untoldPart, untoldPart, 450}; !slices.Equal(portions, want) {
		t.Errorf("told %v, want %v", portions, want)
	}
	if want := []time.Duration{0, untoldPause, 2 * untoldPause}; !slices.Equal(times, want) {
		t.Errorf("told at %v, want %v", times, want)
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		mask, name string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a@b", true}, {"a", "a", true}, {"a", "A", false},
		{"?", "", false}, {"?", "a", true}, {"?", "ab", false}, {"a*c", "ac", true}, {"a*c", "abbc", true}, {"a*c", "abcb", false},
		{"*@x", "a@x@x", true}, {"*a*a*", "a", false}, {"*a*a*", "bacad", true}, {"a**", "a", true}, {"?*?", "a", false},
		{"*aab", "aaaaab", true}, {"a.b", "axb", false},
	} {
		if got := match(tt.mask, tt.name); got != tt.want {
			t.Errorf("match(%q, %q) = %v", tt.mask, tt.name, got)
		}
	}
}

// TestMaskCost: a mask with many stars does not take for ever.
func TestMaskCost(t *testing.T) {
	mask, name := "", ""
	for range 200 {
		mask += "*a"
		name += "aa"
	}
	if match(mask+"b", name) {
		t.Error("it matches")
	}
}

// TestManyHosts: peers cannot fill the memory with hosts.
func TestManyHosts(t *testing.T) {
	d := New(Config{Ring: true})
	d.Step(testStart, together)
	var last []Effect
	for i := range maxHosts + 1 {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		last = d.Step(testStart, Heard{Message: HostUpdate{Host: Host{Addr: addr}, Up: true}})
	}
	if e, ok := last[0].(Invalid); !ok || !errors.Is(e.Err, ErrTooManyHosts) || len(d.Hosts()) != maxHosts {
		t.Errorf("%d hosts, and then %v", len(d.Hosts()), last)
	}
}

// TestTimesOfPeers: what a peer says about times, however wrong, keeps no entry for longer than its life.
func TestTimesOfPeers(t *testing.T) {
	for _, used := range []int64{0, -1, 1, testStart.Unix() + 1000, 1<<63 - 1, -1 << 63} {
		d := newTestDirector(Config{Ring: true, UserExpire: time.Minute})
		d.Step(testStart, together)
		host := netip.MustParseAddr("10.0.0.1")
		d.Step(testStart, Heard{Message: UserUpdate{Hash: 7, Host: host, Refreshed: used, Ordered: 1<<63 - 1}})
		d.Step(testStart, Heard{Message: UserUpdate{Hash: 7, Host: host, Refreshed: used}})
		d.Step(testStart, Heard{Message: UserMove{Hash: 8, Host: host, Ordered: used}})
		d.Step(testStart, Move{ID: 1, Hash: 8, To: netip.MustParseAddr("10.0.0.2")})
		d.Step(testStart.Add(time.Minute), Tick{}) // the end of the move is a use
		d.Step(testStart.Add(3*time.Minute), Tick{})
		if d.Users() != 0 {
			t.Errorf("used %d: %d entries after three minutes", used, d.Users())
		}
	}
}

// TestPeekLeavesNothing: invented names make no entries, tell nobody, and do not wait for ever.
func TestPeekLeavesNothing(t *testing.T) {
	d := newTestDirector(Config{Ring: true})
	d.Step(testStart, together)
	for i := range uint64(100_000) {
		effects := d.Step(testStart, Lookup{Request: i, User: fmt.Sprint("invented", i), Peek: true})
		if len(effects) != 1 {
			t.Fatalf("effects %v", effects)
		}
		if a, ok := effects[0].(Assigned); !ok || a.Known || a.Epoch != 0 {
			t.Fatalf("effects %v", effects)
		}
	}
	if d.Users() != 0 || d.LookupsWaiting() != 0 || !d.Next().IsZero() {
		t.Errorf("%d users, %d lookups wait, Next() = %v", d.Users(), d.LookupsWaiting(), d.Next())
	}
}
