package health

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The world's checks are 5 s apart (4.5 to 5.5), fall 3, rise 2. So a host that dies is down after 9 to 16.5 s
// and one more answer of another host, and sometimes a check or two later where there is only one other; one that comes back is up
// after 4.5 to 11 s.
const (
	surelyDown = 40 * time.Second
	surelyUp   = 12 * time.Second
)

func TestDownAndUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3, nil)
		n := w.directors[0]
		w.wait(time.Minute)
		n.expect()
		w.kill(2)
		w.wait(8 * time.Second)
		n.expect() // not by one bad check or two
		w.wait(surelyDown - 8*time.Second)
		n.expect("10.2.0.2 down")
		n.expectFlushed("10.2.0.2 at 10")
		if s := n.Hosts()[1]; s.Up || s.Opinion != Down || s.Failure.reason() != Refused || s.Checks[Refused] < 3 || s.Checks[""] < 10 || !s.Since.Before(time.Now()) {
			t.Errorf("status is %+v", s)
		}
		w.wait(time.Minute)
		n.expect()
		n.expectFlushed() // once is enough
		w.revive(2)
		w.wait(surelyUp)
		n.expect("10.2.0.2 up")
		if s := n.Hosts()[1]; !s.Up || s.Opinion != Up || s.Failure != nil {
			t.Errorf("status is %+v", s)
		}
		w.wait(time.Minute)
		n.expect()
		w.end()
		n.expectLog("10.2.0.2", "check failed", "imap on port 143", "greeting", "refused", `"bad":1`, `"fall":3`)
		if lines := strings.Count(n.log.String(), `"check failed"`); lines != 1 {
			t.Errorf("%d lines tell that a check failed, want the first only:\n%s", lines, &n.log)
		}
		n.expectLog("10.2.0.2", "our checks find the host down", "refused")
		n.expectLog("10.2.0.2", `"error"`, "host is down", `"directors":1`, `"say_down":1`)
		n.expectLog("moving the users", `"users":100`, `"rate":10`)
		n.expectLog("10.2.0.2", "were moved")
		n.expectLog("10.2.0.2", "host is up")
	})
}

// TestHanging: a host that accepts and then says nothing.
func TestHanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, nil)
		w.wait(time.Minute)
		w.host(1, func(f *fake) { f.hangs = true })
		w.wait(surelyDown)
		w.directors[0].expect("10.2.0.1 down")
		if s := w.directors[0].Hosts()[0]; s.Failure.reason() != Timeout || s.Took != 3*time.Second {
			t.Errorf("status is %+v", s)
		}
		w.end()
	})
}

// TestDeadFromTheStart: the director believes that every host is up; the checks do not.
func TestDeadFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, nil)
		w.kill(2)
		w.wait(surelyDown)
		w.directors[0].expect("10.2.0.2 down")
		w.end()
	})
}

// TestUplink: a director whose own way out breaks says nothing, and takes down nothing, alone or not.
func TestUplink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 10, nil)
		n := w.directors[0]
		w.wait(time.Minute)
		n.mu.Lock()
		n.uplink = false
		n.mu.Unlock()
		w.wait(20 * time.Second)
		for _, s := range n.Hosts() {
			if s.Opinion != Unknown || s.Tally.Counted != 0 {
				t.Errorf("after three bad checks, status is %+v", s)
			}
		}
		w.wait(10 * time.Minute)
		n.expect()
		if s := n.Hosts()[3]; s.Opinion != Unknown || !s.Up || s.Tally.Counted != 0 {
			t.Errorf("status is %+v", s)
		}
		n.mu.Lock()
		n.uplink = true
		n.mu.Unlock()
		w.wait(time.Minute)
		n.expect()
		if s := n.Hosts()[3]; s.Opinion != Up || s.Tally.Counted != 1 {
			t.Errorf("status is %+v", s)
		}
		w.end()
		n.expectLog("no opinion", "10.2.0.4", "timeout")
	})
}

// TestAllHostsDie: the last host that is up is not taken down; see the package documentation.
func TestAllHostsDie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, nil)
		n := w.directors[0]
		w.wait(time.Minute)
		w.kill(1)
		w.wait(surelyDown)
		n.expect("10.2.0.1 down")
		w.kill(2)
		w.wait(10 * time.Minute)
		n.expect()
		w.revive(1)
		w.wait(surelyUp + surelyDown)
		n.expect("10.2.0.1 up", "10.2.0.2 down")
		w.end()
	})
}

// TestLocal: faults of our own are not the hosts'.
func TestLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, nil)
		n := w.directors[0]
		w.wait(time.Minute)
		n.mu.Lock()
		n.local = true
		n.mu.Unlock()
		w.wait(time.Minute)
		n.expect()
		// The opinion is the old one, but nobody may count on it any more.
		if s := n.Hosts()[0]; s.Opinion != Up || s.Tally.Counted != 0 || s.Checks[Local] < 10 {
			t.Errorf("status is %+v", s)
		}
		w.end()
	})
}

// TestVotes: three directors, of which some do not reach a host that others reach.
func TestVotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 4, nil)
		cut := func(director int, is bool) {
			n := w.directors[director]
			n.mu.Lock()
			defer n.mu.Unlock()
			n.cut[address(1)] = is
		}
		all := func(want ...string) {
			t.Helper()
			for _, n := range w.directors {
				n.expect(want...)
			}
		}
		w.wait(time.Minute)
		cut(0, true)
		w.wait(5 * time.Minute)
		all() // one of three
		if s := w.directors[0].Hosts()[0]; s.Opinion != Down || !s.Up || s.Tally.Down != 1 || s.Tally.Counted != 3 {
			t.Errorf("status is %+v", s)
		}
		cut(1, true)
		w.wait(time.Minute)
		all("10.2.0.1 down") // two of three: also where it is reached
		cut(0, false)
		w.wait(time.Minute)
		all("10.2.0.1 up")
		w.end()
	})
}

// TestPartition: a director whose words do not arrive is not waited for longer than three intervals.
func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 3, nil)
		w.wait(time.Minute)
		a, b := w.directors[0], w.directors[1]
		a.mu.Lock()
		a.cut[address(1)] = true
		a.mu.Unlock()
		w.wait(5 * time.Minute)
		a.expect()
		b.expect()
		b.mu.Lock()
		b.quiet = true
		b.mu.Unlock()
		w.wait(9 * time.Second) // its last words are up to 5.5 s old
		a.expect()
		w.wait(surelyDown)
		a.expect("10.2.0.1 down")
		b.expect() // it hears the other, and disagrees
		b.mu.Lock()
		b.quiet = false
		b.mu.Unlock()
		w.wait(surelyUp)
		a.expect("10.2.0.1 up")
		w.end()
	})
}

// TestBrokenMember: one of two has no uplink any more. Its old opinion must not keep a dead host up.
func TestBrokenMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 3, nil)
		a, b := w.directors[0], w.directors[1]
		w.wait(time.Minute)
		b.mu.Lock()
		b.uplink = false
		b.mu.Unlock()
		w.kill(2)
		w.wait(time.Minute)
		a.expect("10.2.0.2 down")
		b.expect("10.2.0.2 down") // by the vote of the other alone
		a.expectFlushed("10.2.0.2 at 10")
		b.expectFlushed()
		w.end()
	})
}

// TestLeader: the users of a host are moved by one director, and by the next when it vanishes.
func TestLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 3, nil)
		w.wait(time.Minute)
		w.kill(3)
		w.wait(surelyDown)
		w.directors[0].expectFlushed("10.2.0.3 at 10")
		w.directors[0].stop()
		w.wait(surelyDown)
		w.directors[0].expectFlushed()
		w.directors[1].expectFlushed("10.2.0.3 at 10")
		w.wait(time.Minute)
		w.directors[1].expectFlushed()
		w.directors[2].expectFlushed()
		w.directors[2].expect("10.2.0.3 down")
		w.end()
	})
}

// TestNoDrain: the rules of drains.
func TestNoDrain(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*world)
		undo   func(*world) // then it is drained; nil: no
	}{
		{"no users", func(w *world) { w.directors[0].change(1, func(h *Host) { h.Users = 0 }) },
			func(w *world) { w.directors[0].change(1, func(h *Host) { h.Users = 1 }) }},
		{"drained by an operator", func(w *world) { w.directors[0].change(1, func(h *Host) { h.Draining = true }) },
			func(w *world) { w.directors[0].change(1, func(h *Host) { h.Draining = false }) }},
		{"no other host of the tag", func(w *world) { w.directors[0].change(2, func(h *Host) { h.Tag = "other" }) },
			func(w *world) { w.directors[0].change(2, func(h *Host) { h.Tag = "" }) }},
		{"the other host takes no new users", func(w *world) { w.directors[0].change(2, func(h *Host) { h.Weight = 0 }) },
			func(w *world) { w.directors[0].change(2, func(h *Host) { h.Weight = 1 }) }},
		{"the other host is down by order", func(w *world) { w.directors[0].change(2, func(h *Host) { h.Up = false }) },
			func(w *world) { w.directors[0].change(2, func(h *Host) { h.Up = true }) }},
		{"rate 0", func(w *world) { w.group.DrainRate = 0 }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, 2, nil)
				n := w.directors[0]
				w.wait(time.Minute)
				tt.change(w)
				w.kill(1)
				w.wait(time.Minute)
				n.expect("10.2.0.1 down")
				n.expectFlushed()
				if tt.undo != nil {
					tt.undo(w)
					w.wait(6 * time.Second)
					n.expectFlushed("10.2.0.1 at 10")
				}
				w.end()
			})
		})
	}
}

// TestOverride: a host that is down by its checks and up by order is not drained, and the order is not fought.
func TestOverride(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, nil)
		n := w.directors[0]
		w.wait(time.Minute)
		n.change(1, func(h *Host) { h.Users = 0 })
		w.kill(1)
		w.wait(time.Minute)
		n.expect("10.2.0.1 down")
		n.change(1, func(h *Host) { h.Up, h.Users = true, 100 })
		w.wait(time.Minute)
		n.expect()
		n.expectFlushed()
		w.revive(1)
		w.wait(surelyUp)
		n.expect("10.2.0.1 up")
		w.end()
	})
}

// TestDrainFails: the answer of a drain is for the log; it is not tried again for the same reason.
func TestDrainFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, nil)
		n := w.directors[0]
		n.mu.Lock()
		n.flush = errMoves
		n.mu.Unlock()
		w.wait(time.Minute)
		w.kill(1)
		w.wait(2 * time.Minute)
		n.expectFlushed("10.2.0.1 at 10")
		w.revive(1)
		w.wait(time.Minute)
		w.kill(1)
		w.wait(time.Minute)
		n.expectFlushed("10.2.0.1 at 10") // it is down again: another drain
		w.end()
		n.expectLog("not all moved", errMoves.Error())
	})
}

// TestHostsComeAndGo: hosts are checked as long as the director has them.
func TestHostsComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3, nil)
		n := w.directors[0]
		w.wait(time.Minute)
		w.kill(2)
		w.wait(time.Minute)
		n.expect("10.2.0.2 down")
		// Removed and put again between two rounds: the director has forgotten.
		n.change(2, func(h *Host) { h.Up, h.Marked = true, false })
		w.wait(6 * time.Second)
		n.expect("10.2.0.2 down")
		// Removed for good.
		n.mu.Lock()
		hosts := n.hosts
		n.hosts = []Host{hosts[0], hosts[2]}
		n.hosts[1].Group = nil // not to be checked any more
		n.mu.Unlock()
		w.wait(6 * time.Second)
		before := len(w.hosts[address(2)].checks)
		w.wait(time.Minute)
		if after := len(w.hosts[address(2)].checks); after != before || len(n.Hosts()) != 1 {
			t.Errorf("%d more checks of a host that is gone; hosts %+v", after-before, n.Hosts())
		}
		n.expect()
		// A new one of the same address is up until its own checks have failed.
		hosts[1].Up, hosts[1].Marked = true, false
		n.mu.Lock()
		n.hosts = hosts[:2]
		n.mu.Unlock()
		w.wait(8 * time.Second)
		n.expect()
		w.wait(surelyDown)
		n.expect("10.2.0.2 down")
		w.end()
	})
}

// TestJitter: checks are spread over the interval from the start, and do not fall into step.
func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 100, nil)
		w.wait(2 * time.Minute)
		w.end()
		var early int
		spans := map[time.Duration]int{}
		for addr, f := range w.hosts {
			first := f.checks[0].Sub(w.start)
			if first > 5*time.Second {
				t.Errorf("%v: first check after %v", addr, first)
			}
			if first < 2500*time.Millisecond {
				early++
			}
			for i, at := range f.checks[1:] {
				span := at.Sub(f.checks[i])
				if span < 4500*time.Millisecond || span > 5500*time.Millisecond {
					t.Fatalf("%v: %v between two checks", addr, span)
				}
				spans[span.Truncate(100*time.Millisecond)]++
			}
		}
		// 100 throws of a coin: outside with a probability of 10^-7.
		if early < 25 || early > 75 {
			t.Errorf("%d of 100 first checks were in the first half of the interval", early)
		}
		if len(spans) != 10 {
			t.Errorf("the intervals are %v", spans)
		}
	})
}

// TestParallel: however many hosts hang, no more than so many are checked at the same time.
func TestParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 200, nil)
		for i := range 200 {
			w.host(i+1, func(f *fake) { f.hangs = true })
		}
		most := 0
		for range 400 {
			w.wait(100 * time.Millisecond)
			now := len(w.directors[0].slots)
			most = max(most, now)
		}
		if most != parallel {
			t.Errorf("%d checks at the same time, want %d", most, parallel)
		}
		w.end()
	})
}

// TestFlaps: a host that goes up and down all the time is held down in the end, and changes less and less.
func TestFlaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, nil)
		n := w.directors[0]
		w.wait(time.Minute)
		for range 60 { // an hour
			w.kill(2)
			w.wait(30 * time.Second)
			w.revive(2)
			w.wait(30 * time.Second)
		}
		// Down at 0, 1 and 2 min at no cost; at 3 until 13, and so on: 14 until 34, 35 until 75.
		down := 0
		n.mu.Lock()
		for _, d := range n.decided {
			if d == "10.2.0.2 down" {
				down++
			}
		}
		n.mu.Unlock()
		if down != 6 {
			t.Errorf("down %d times in an hour, want 6", down)
		}
		if s := n.Hosts()[1]; s.Up || !s.Held.After(time.Now()) || s.Failure != nil {
			t.Errorf("status is %+v", s)
		}
		w.wait(2 * time.Hour)
		if s := n.Hosts()[1]; !s.Up || s.Held.After(time.Now()) {
			t.Errorf("status is %+v", s)
		}
		w.end()
		n.expectLog("10.2.0.2", "flaps", "held_until")
	})
}

// TestHearsay: what is said of unknown hosts, or by ourselves over the ring, is nothing; old words are forgotten.
func TestHearsay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, nil)
		n := w.directors[0]
		w.wait(time.Minute)
		n.Hear(n.self, address(1), false)
		n.Hear(director(9), address(99), false)
		for i := range 100 {
			n.Hear(director(10+i), address(1), false) // they find no host up: not counted
		}
		w.wait(time.Second)
		n.expect()
		ballots := func() int {
			n.Checker.mu.Lock()
			defer n.Checker.mu.Unlock()
			return len(n.ballots)
		}
		if got := ballots(); got != 101 {
			t.Errorf("%d ballots, want 101", got)
		}
		w.wait(30 * time.Second)
		if got := ballots(); got != 1 {
			t.Errorf("%d ballots after 30 s, want 1", got)
		}
		n.expect()
		w.end()
	})
}
