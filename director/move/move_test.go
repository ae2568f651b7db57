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

// TestPhases plays the number of sessions over time and checks when, and in which phase, a move ends.
func TestPhases(t *testing.T) {
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
		{"no sessions", 0, nil, delay, Settling},
		{"one session ends", 1, []change{{time.Second, 0}}, 3 * time.Second, Settling},
		{"a session never ends", 2, []change{{time.Second, 1}}, timeout, Stopping},
		{"a late session begins the delay again", 1,
			[]change{{time.Second, 0}, {2 * time.Second, 1}, {4 * time.Second, 0}}, 6 * time.Second, Settling},
		{"a late session that stays", 1, []change{{time.Second, 0}, {2 * time.Second, 1}}, timeout, Stopping},
		{"the delay may pass the deadline", 1, []change{{timeout - 1, 0}}, timeout - 1 + delay, Settling},
		{"a late session behind the deadline ends it", 1,
			[]change{{timeout - 1, 0}, {timeout + 1, 1}}, timeout, Stopping},
		{"gone behind the deadline", 1,
			[]change{{timeout - 1, 0}, {timeout + 1, 1}, {timeout + 1, 0}}, timeout + delay, Settling},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := New(timeout, delay)
			m := table.Start(0, users.Key{Hash: 1}, tt.sessions)
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

func TestOrder(t *testing.T) {
	table := New(timeout, delay)
	var moves []*Move
	for i := range uint32(50) {
		moves = append(moves, table.Start(0, users.Key{Hash: i}, i%2))
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

func TestWaiting(t *testing.T) {
	table := New(timeout, delay)
	m := table.Start(0, users.Key{Hash: 1}, 0)
	for request := range uint64(4) {
		table.Wait(m, request)
	}
	table.Forget(1)
	table.Forget(99)
	if got := table.Finish(delay).Waiting(); !slices.Equal(got, []uint64{0, 2, 3}) {
		t.Errorf("waiting = %v", got)
	}
	table.Forget(0)
	if len(table.requests) != 0 {
		t.Errorf("requests left: %v", table.requests)
	}
}
