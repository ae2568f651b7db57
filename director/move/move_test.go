package move

import (
	"slices"
	"testing"
	"time"

	"usher/director/users"
)

const (
	timeout = 30 * time.Second
	delay   = 2 * time.Second
)

// TestSessions plays the number of sessions over time and checks when, and in which phase, a move ends.
func TestSessions(t *testing.T) {
	type change struct {
		at       time.Duration
		sessions uint32
	}
	for _, tt := range []struct {
		name     string
		sessions uint32
		changes  []change
		end      time.Duration
		phase    Phase
	}{
		{"no sessions", 0, nil, delay, Delay},
		{"one session ends", 1, []change{{time.Second, 0}}, 3 * time.Second, Delay},
		{"a session never ends", 2, []change{{time.Second, 1}}, timeout, Killing},
		{"a late session begins the delay again", 1,
			[]change{{time.Second, 0}, {2 * time.Second, 1}, {4 * time.Second, 0}}, 6 * time.Second, Delay},
		{"a late session that stays", 1, []change{{time.Second, 0}, {2 * time.Second, 1}}, timeout, Killing},
		{"the delay may pass the deadline", 1, []change{{timeout - 1, 0}}, timeout - 1 + delay, Delay},
		{"a late session behind the deadline ends it", 1,
			[]change{{timeout - 1, 0}, {timeout + 1, 1}}, timeout, Killing},
		{"gone behind the deadline", 1,
			[]change{{timeout - 1, 0}, {timeout + 1, 1}, {timeout + 1, 0}}, timeout + delay, Delay},
		{"none left twice does not begin the delay again", 1,
			[]change{{time.Second, 0}, {2 * time.Second, 0}}, 3 * time.Second, Delay},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := New(timeout, delay)
			m := &Move{Key: users.Key{Hash: 1}}
			table.Start(0, m, tt.sessions)
			for _, c := range tt.changes {
				table.Sessions(m, c.at, c.sessions)
			}
			if due, ok := table.Next(); !ok || due != tt.end {
				t.Fatalf("ends at %v (%v), want %v", due, ok, tt.end)
			}
			if got := table.Finish(tt.end - 1); got != nil {
				t.Fatal("finished too early")
			}
			if got := table.Finish(tt.end); got != m || m.Phase() != tt.phase {
				t.Fatalf("finished %v in phase %v, want %v", got, m.Phase(), tt.phase)
			}
			if table.Len() != 0 || table.Get(m.Key) != nil {
				t.Error("a finished move is still in the table")
			}
		})
	}
}

// TestRing is the table of ring.md section 9: what a move that all directors take part in does about what
// it hears, in every phase. Each step is done to the move; say and phase are what comes of it.
func TestRing(t *testing.T) {
	const everywhere = KilledEverywhere
	type step struct {
		do    string
		say   Say
		phase Phase
	}
	for _, tt := range []struct {
		name  string
		move  Move
		ring  string // alone, lost: no right neighbour; else there is one
		steps []step
	}{
		{"began here", Move{Self: true}, "", []step{
			{"start 1", 0, Killing}, {"sessions 0", Killed, WaitingForEveryone}, {"everywhere", 0, Delay}}},
		{"began here, nothing to kill", Move{Self: true}, "", []step{
			{"start 0", Killed, WaitingForEveryone}, {"killed", everywhere, Delay}}},
		{"began here, is notified too early", Move{Self: true}, "", []step{
			{"start 1", 0, Killing}, {"killed", 0, NotifyReceived}, {"killed", 0, NotifyReceived},
			{"sessions 0", Killed, WaitingForEveryone}}},
		{"began elsewhere", Move{}, "", []step{
			{"start 1", 0, Killing}, {"sessions 0", 0, WaitingForNotify}, {"killed", Killed, WaitingForEveryone},
			{"everywhere", 0, Delay}, {"everywhere", 0, Delay}, {"killed", everywhere, Delay}}},
		{"began elsewhere, is notified while killing", Move{}, "", []step{
			{"start 1", 0, Killing}, {"killed", 0, NotifyReceived}, {"sessions 0", Killed, WaitingForEveryone}}},
		{"everywhere too early is nothing", Move{}, "", []step{
			{"start 1", 0, Killing}, {"everywhere", 0, Killing}, {"sessions 0", 0, WaitingForNotify},
			{"everywhere", 0, WaitingForNotify}}},
		{"nobody else", Move{Self: true}, "alone", []step{{"start 1", 0, Killing}, {"sessions 0", 0, Delay}}},
		{"the right neighbour is lost, and there is another", Move{Self: true}, "lost", []step{
			{"start 1", 0, Killing}, {"sessions 0", 0, WaitingForNotify}, {"right", Killed, WaitingForEveryone}}},
		{"the others are gone", Move{Self: true}, "", []step{
			{"start 1", 0, Killing}, {"leave", 0, Killing}, {"sessions 0", 0, Delay}}},
		{"flush fails", Move{Self: true, Flush: true}, "", []step{
			{"start 0", Killed, WaitingForEveryone}, {"everywhere", Flush, Flushing},
			{"killed", everywhere, Flushing}, {"failed", 0, Delay}}},
		{"a late session is not told again", Move{Self: true}, "", []step{
			{"start 0", Killed, WaitingForEveryone}, {"sessions 1", 0, Killing}, {"everywhere", 0, Killing},
			{"sessions 0", 0, Delay}}},
		{"a late session before anything is told", Move{}, "", []step{
			{"start 0", 0, WaitingForNotify}, {"sessions 1", 0, Killing}, {"killed", 0, NotifyReceived},
			{"sessions 0", Killed, WaitingForEveryone}}},
		{"sessions may stay", Move{Keep: true, Self: true}, "", []step{
			{"start 3", Killed, WaitingForEveryone}, {"sessions 2", 0, WaitingForEveryone}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := New(timeout, delay)
			table.SetRing(tt.ring == "", tt.ring == "alone")
			m := &tt.move
			m.Key, m.Ring = users.Key{Hash: 1}, true
			for i, s := range tt.steps {
				var say Say
				switch s.do {
				case "start 0", "start 1", "start 3":
					say = table.Start(0, m, uint32(s.do[6]-'0'))
				case "sessions 0", "sessions 1", "sessions 2":
					say = table.Sessions(m, 0, uint32(s.do[9]-'0'))
				case "killed":
					say = table.Notified(m, 0)
				case "everywhere":
					var fits bool
					before := m.Phase()
					say, fits = table.Everywhere(m, 0)
					if want := before == WaitingForEveryone || m.told && before == Killing; fits != want {
						t.Fatalf("step %d: everywhere fits = %v in %s", i, fits, before)
					}
				case "right":
					table.SetRing(true, false)
					say = table.Retry(m, 0)
				case "leave":
					say = table.Leave(m, 0)
				case "failed":
					table.Flushed(m, 0, false)
				}
				if say != s.say || m.Phase() != s.phase {
					t.Fatalf("step %d, %s: say %b phase %s, want %b %s", i, s.do, say, m.Phase(), s.say, s.phase)
				}
			}
		})
	}
}

// TestLocal: a move that the others have no part in does not answer them, until it is made theirs.
func TestLocal(t *testing.T) {
	table := New(timeout, delay)
	table.SetRing(true, false)
	m := &Move{Key: users.Key{Hash: 1}}
	table.Start(0, m, 1)
	_, fits := table.Everywhere(m, 0)
	if say := table.Notified(m, 0); say != 0 || fits || m.Phase() != Killing {
		t.Errorf("say %b, fits %v, phase %s", say, fits, m.Phase())
	}
	table.Sessions(m, time.Second, 0)
	if m.Phase() != Delay {
		t.Errorf("phase %s", m.Phase())
	}
	if say := table.Join(m, 2*time.Second); say != 0 || m.Phase() != WaitingForNotify {
		t.Errorf("joined: say %b, phase %s", say, m.Phase())
	}
	if due, _ := table.Next(); due != 2*time.Second+timeout {
		t.Errorf("its deadline is %v", due)
	}
	if len(table.Waiting()) != 1 {
		t.Error("it does not wait")
	}
}

// TestFlushed: a successful flush ends the move at once, an answer that nobody waits for does nothing.
func TestFlushed(t *testing.T) {
	table := New(timeout, delay)
	m := &Move{Key: users.Key{Hash: 1}, Flush: true}
	table.Start(0, m, 1)
	table.Flushed(m, 0, true)
	if m.Phase() != Killing {
		t.Fatalf("phase %s", m.Phase())
	}
	if say := table.Sessions(m, time.Second, 0); say != Flush || m.Phase() != Flushing {
		t.Fatalf("say %b, phase %s", say, m.Phase())
	}
	if due, _ := table.Next(); due != timeout {
		t.Errorf("flushing may last until %v", due)
	}
	table.Flushed(m, 2*time.Second, true)
	if got := table.Finish(2 * time.Second); got != m || m.Phase() != Delay {
		t.Errorf("not finished, phase %s", m.Phase())
	}
}

// TestFlushedLate: the answer counts also if a late session has brought the move back to killing.
func TestFlushedLate(t *testing.T) {
	table := New(timeout, delay)
	m := &Move{Key: users.Key{Hash: 1}, Flush: true}
	table.Start(0, m, 0)
	table.Sessions(m, 0, 1)
	table.Flushed(m, time.Second, true)
	if got := table.Finish(time.Second); got != nil {
		t.Fatal("finished with a session left")
	}
	if say := table.Sessions(m, 2*time.Second, 0); say != 0 || m.Phase() != Delay {
		t.Errorf("say %b, phase %s, want the kick delay and no second flush", say, m.Phase())
	}
}

func TestOrder(t *testing.T) {
	table := New(timeout, delay)
	var moves []*Move
	for i := range uint32(50) {
		m := &Move{Key: users.Key{Hash: i}}
		table.Start(0, m, i%2)
		moves = append(moves, m)
	}
	var got []uint32
	for m := table.Finish(timeout); m != nil; m = table.Finish(timeout) {
		got = append(got, m.Key.Hash)
	}
	// Those without sessions first, then those that time out; each in the order they began.
	slices.SortStableFunc(moves, func(a, b *Move) int { return int(b.Phase()) - int(a.Phase()) })
	for i, m := range moves {
		if got[i] != m.Key.Hash {
			t.Fatalf("order %v", got)
		}
	}
}
