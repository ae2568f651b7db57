package director

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var testStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// newTestDirector returns a director with three hosts.
func newTestDirector(config Config) *Director {
	d := New(config)
	for _, addr := range []string{"10.0.0.1", "10.0.0.2", "fd00::1"} {
		d.Step(testStart, HostPut{Host: Host{Addr: netip.MustParseAddr(addr), Weight: 100}})
	}
	return d
}

// TestDeterminism plays the same random events twice and compares all effects, so that no map order,
// clock or chance has crept in.
func TestDeterminism(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	play := func() (all []Effect) {
		r := rand.New(rand.NewPCG(seed, 1))
		d := newTestDirector(Config{UserExpire: 10 * time.Second, KickDelay: time.Second})
		now := testStart
		addr := func() netip.Addr { return d.Hosts()[r.IntN(len(d.Hosts()))].Addr }
		for i := range uint64(3000) {
			user := fmt.Sprint("user", r.IntN(60))
			key := d.KeyOf(user, "")
			info, _ := d.Entry(key)
			events := []Event{
				Lookup{Request: i, User: user}, SessionStart{key, user, info.Epoch}, SessionEnd{key, user, info.Epoch},
				Move{ID: i, User: user, To: addr()}, Kick{ID: i, User: user}, Tick{},
			}
			ev := events[r.IntN(len(events))]
			if r.IntN(300) == 0 {
				a := addr()
				all = append(all, d.Step(now, HostRemove{Addr: a})...)
				ev = HostPut{Host: Host{Addr: a, Weight: 1 + r.IntN(100)}}
			}
			all = append(all, d.Step(now, ev)...)
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

// TestExpiryInPortions: entries that expire together are dropped over several steps, and Next says so.
func TestExpiryInPortions(t *testing.T) {
	d := newTestDirector(Config{UserExpire: time.Minute})
	const n = 2*maxExpiries + 10
	for i := range uint64(n) {
		d.Step(testStart, Lookup{Request: i, User: fmt.Sprint("user", i)})
	}
	if got := d.Next(); !got.Equal(testStart.Add(time.Minute)) {
		t.Fatalf("Next() = %v", got)
	}
	now := testStart.Add(2 * time.Minute)
	var dropped []int
	for next := d.Next(); !next.IsZero() && !next.After(now); next = d.Next() {
		dropped = append(dropped, len(d.Step(now, Tick{})))
	}
	if diff := cmp.Diff([]int{maxExpiries, maxExpiries, 10}, dropped); diff != "" {
		t.Errorf("dropped per step (-want +got):\n%s", diff)
	}
	if d.Users() != 0 || !d.Next().IsZero() {
		t.Errorf("%d users left, Next() = %v", d.Users(), d.Next())
	}
}

// TestClockBackwards: a caller's clock that is set back neither expires nor prolongs anything.
func TestClockBackwards(t *testing.T) {
	d := newTestDirector(Config{UserExpire: time.Minute})
	d.Step(testStart.Add(30*time.Second), Lookup{Request: 1, User: "a"})
	d.Step(testStart, Lookup{Request: 2, User: "b"}) // counts as 30 s
	d.Step(testStart.Add(89*time.Second), Tick{})
	if d.Users() != 2 {
		t.Errorf("%d users after 59 s, want 2", d.Users())
	}
	d.Step(testStart.Add(90*time.Second), Tick{})
	if d.Users() != 0 {
		t.Errorf("%d users after 60 s, want 0", d.Users())
	}
}

// TestMappedAddresses: an IPv4 address in IPv6 clothes is the same host.
func TestMappedAddresses(t *testing.T) {
	d := New(Config{})
	plain, mapped := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.1")
	d.Step(testStart, HostPut{Host: Host{Addr: mapped, Weight: 100}})
	d.Step(testStart, HostUp{Addr: mapped})
	if hosts := d.Hosts(); len(hosts) != 1 || hosts[0].Addr != plain || hosts[0].Up {
		t.Fatalf("hosts %+v", hosts)
	}
	d.Step(testStart, Move{User: "a", To: mapped})
	if info, ok := d.Entry(d.KeyOf("a", "")); !ok || info.Host != plain {
		t.Errorf("entry %+v", info)
	}
	d.Step(testStart, HostRemove{Addr: mapped})
	if len(d.Hosts()) != 0 || d.Users() != 0 {
		t.Errorf("hosts %+v, %d users", d.Hosts(), d.Users())
	}
}

// TestNoUser: hash 0 is no user's, and an empty name in Stop would mean everybody.
func TestNoUser(t *testing.T) {
	d := newTestDirector(Config{})
	d.Step(testStart, Lookup{Request: 1, User: ""})
	for _, ev := range []Event{Move{ID: 7, To: netip.MustParseAddr("10.0.0.1")}, Kick{ID: 7}} {
		got := d.Step(testStart, ev)
		if diff := cmp.Diff([]Effect{Done{ID: 7, Err: ErrUnknownUser}}, got, cmpopts.EquateErrors()); diff != "" {
			t.Errorf("%T (-want +got):\n%s", ev, diff)
		}
	}
}

// TestMoveByHash: the hash of a user names its entry.
func TestMoveByHash(t *testing.T) {
	d := newTestDirector(Config{})
	d.Step(testStart, Lookup{Request: 1, User: "heidi"})
	key := d.KeyOf("heidi", "")
	to := netip.MustParseAddr("10.0.0.1")
	if before, _ := d.Entry(key); before.Host == to {
		to = netip.MustParseAddr("10.0.0.2")
	}
	d.Step(testStart, Move{ID: 1, Hash: key.Hash, To: to})
	if info, _ := d.Entry(key); info.Host != to {
		t.Errorf("heidi is on %s, want %s", info.Host, to)
	}
}

func TestStopReasons(t *testing.T) {
	seen := make(map[string]bool)
	for i, r := range StopReasons {
		if int(r) != i || r.String() == "" || seen[r.String()] {
			t.Errorf("reason %d is %d %q", i, r, r)
		}
		seen[r.String()] = true
	}
}
