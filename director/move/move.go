// Package move keeps the moves that are going on. While a user is moved, its old sessions are stopped
// and its logins wait; only when the old sessions are gone, here and at every other director, may a new
// one begin elsewhere. The phases are those of ring.md section 9, with the names that operators know:
//
//	Start ──► killing ──────────── no sessions left ──────────────┐
//	             │ USER-KILLED                                     │
//	             ▼                                                 ▼
//	     notify-received ──────────────┐        began here? ── no ──► waiting-for-notify
//	                                   ▼             │ yes               │ USER-KILLED
//	                    no sessions: tell USER-KILLED ◄──────────────────┘
//	                                   ▼
//	                        waiting-for-everyone ── USER-KILLED-EVERYWHERE, or USER-KILLED came around
//	                                   ▼
//	                               flushing ── failed, or there is none ──► delay ──► finished
//	                                   └────────────── done ─────────────────────────────▲
//
// A move that other directors have no part in (there is no ring, or only this director was wrong about
// the user) goes from killing to flushing. A session that shows itself late brings a move back to killing,
// but what the others were told is not told again.
//
// Everything before delay ends at one deadline, set when the move starts (or sessions that could stay no longer can),
// whatever happens; so a move takes at most the timeout plus the kick delay. The kick delay gives the old host time to write what it
// still has (behaviours.md section 3). Time is a duration since a moment that the caller chooses.
package move

import (
	"cmp"
	"container/heap"
	"net/netip"
	"slices"
	"time"

	"usher/director/users"
)

// A Phase is the state of a move.
type Phase uint8

// The phases of a move. A move that has finished is gone from the table.
const (
	Killing            Phase = iota // old sessions still live here
	NotifyReceived                  // the same, and the directors before us have none left
	WaitingForNotify                // none left here; the directors before us have not said so yet
	WaitingForEveryone              // none up to here; the directors behind us have not said so yet
	Flushing                        // none anywhere; the operator's flush program runs
	Delay                           // the kick delay runs
)

func (p Phase) String() string {
	return [...]string{"killing", "notify-received", "waiting-for-notify", "waiting-for-everyone", "flushing", "delay"}[p]
}

// A Say is what a change of a move asks the caller to do: a set of the values below.
type Say uint8

// What there is to do.
const (
	Killed           Say = 1 << iota // tell the right neighbour USER-KILLED
	KilledEverywhere                 // tell everybody USER-KILLED-EVERYWHERE
	Flush                            // run the flush program, then call Flushed
)

// A Move is one user on its way to another host, or (Evict) away from a host that was removed.
type Move struct {
	Key   users.Key
	Asked bool       // somebody waits for the result
	ID    uint64     // of the request, when Asked
	Evict bool       // the entry is to be dropped at the end
	Ring  bool       // the other directors take part
	Self  bool       // it began here
	Keep  bool       // the sessions are at the right host already and go on
	Flush bool       // the flush program is to be run
	Old   netip.Addr // the host before, invalid if there was none
	Batch uint64     // number of the host flush it belongs to, 0: none

	Contested bool // somebody said meanwhile that the user is elsewhere

	phase    Phase
	sessions uint32
	notified bool // USER-KILLED was heard
	told     bool // USER-KILLED was told
	everyone bool // nobody has sessions left
	flushing bool // the flush program was asked for, and has not answered
	flushed  bool // it has

	deadline time.Duration // when everything before Delay ends at the latest
	due      time.Duration // when the present phase ends
	seq      uint64        // order of start, so that equal times finish in one order
	place    int           // index in the heap
}

// Phase returns the present phase.
func (m *Move) Phase() Phase { return m.phase }

// A Table holds all moves, ordered by when their phase ends.
type Table struct {
	timeout, delay time.Duration
	right, alone   bool
	seq            uint64
	moves          map[users.Key]*Move
	queue          queue
}

// New returns an empty table. timeout bounds everything before Delay, delay is the length of that.
func New(timeout, delay time.Duration) *Table {
	return &Table{timeout: timeout, delay: delay, moves: make(map[users.Key]*Move)}
}

// SetRing notes whether there is a right neighbour, and whether nobody else is in the ring: then a move waits for
// nobody. With neither, the right neighbour is lost and the next not yet found, and moves wait for that.
func (t *Table) SetRing(right, alone bool) { t.right, t.alone = right, alone }

// Start begins a move, whose key must not be moving, with so many old sessions.
func (t *Table) Start(now time.Duration, m *Move, sessions uint32) Say {
	if m.Keep {
		sessions = 0
	}
	t.seq++
	m.seq, m.sessions, m.deadline = t.seq, sessions, now+t.timeout
	m.due = m.deadline
	t.moves[m.Key] = m
	heap.Push(&t.queue, m)
	return t.advance(m, now)
}

// Join makes a move one that the other directors take part in, from its beginning, if it is not already.
func (t *Table) Join(m *Move, now time.Duration) Say {
	if m.Ring {
		return 0
	}
	m.Ring, m.deadline = true, now+t.timeout
	return t.advance(m, now)
}

// Extend gives a move the whole timeout again.
func (t *Table) Extend(m *Move, now time.Duration) {
	m.deadline = now + t.timeout
	if m.phase != Delay {
		m.due = m.deadline
		heap.Fix(&t.queue, m.place)
	}
}

// Retry lets a move go on that waited for a right neighbour.
func (t *Table) Retry(m *Move, now time.Duration) Say { return t.advance(m, now) }

// Leave makes a move one that waits for no other director.
func (t *Table) Leave(m *Move, now time.Duration) Say {
	m.everyone = true
	return t.advance(m, now)
}

// Over reports whether all directors know that the user has no sessions left: what is heard from now on belongs
// to another move.
func (m *Move) Over() bool { return m.Ring && m.everyone }

// Remove takes a move out before its end.
func (t *Table) Remove(m *Move) {
	heap.Remove(&t.queue, m.place)
	delete(t.moves, m.Key)
}

// Get returns the move of key, nil if it is not being moved.
func (t *Table) Get(key users.Key) *Move { return t.moves[key] }

// Sessions tells a move how many old sessions there are now.
func (t *Table) Sessions(m *Move, now time.Duration, sessions uint32) Say {
	if m.sessions = sessions; m.Keep {
		m.sessions = 0
	}
	return t.advance(m, now)
}

// Notified tells a move that USER-KILLED was heard: the directors up to our left have no sessions left.
func (t *Table) Notified(m *Move, now time.Duration) Say {
	switch {
	case !m.Ring:
		return 0 // the others do not know of this move
	case m.everyone:
		return KilledEverywhere // somebody is late
	case m.told:
		m.everyone = true // it has been around the ring
		return KilledEverywhere | t.advance(m, now)
	}
	m.notified = true
	return t.advance(m, now)
}

// Everywhere tells a move that USER-KILLED-EVERYWHERE was heard. It reports whether that fits; if not
// nothing happens.
func (t *Table) Everywhere(m *Move, now time.Duration) (say Say, fits bool) {
	if !m.Ring || !m.told || m.everyone {
		return 0, false
	}
	m.everyone = true
	return t.advance(m, now), true
}

// Flushed is the flush program's answer. When all went well the move is finished at once; unless a late session
// has brought it back to killing.
func (t *Table) Flushed(m *Move, now time.Duration, ok bool) {
	if !m.flushing {
		return
	}
	m.flushing, m.flushed = false, true
	t.advance(m, now)
	if ok && m.phase == Delay {
		m.due = now
		heap.Fix(&t.queue, m.place)
	}
}

// advance finds the phase that follows from what is known, and what it asks for.
func (t *Table) advance(m *Move, now time.Duration) (say Say) {
	if m.sessions == 0 {
		if m.Ring && !m.everyone && !m.told {
			switch {
			case t.alone:
				m.everyone = true
			case t.right && (m.Self || m.notified):
				m.told = true
				say |= Killed
			}
		}
		if (m.everyone || !m.Ring) && m.Flush && !m.flushing && !m.flushed {
			m.flushing = true
			say |= Flush
		}
	}
	before := m.phase
	m.phase = m.now()
	switch {
	case m.phase != Delay:
		m.due = m.deadline
	case before != Delay:
		// Measured from the deadline at the latest, so that late sessions cannot prolong it for ever.
		m.due = min(now, m.deadline) + t.delay
	}
	heap.Fix(&t.queue, m.place)
	return say
}

func (m *Move) now() Phase {
	alone := m.everyone || !m.Ring
	switch {
	case m.sessions > 0 && m.notified && !m.told:
		return NotifyReceived
	case m.sessions > 0:
		return Killing
	case !alone && m.told:
		return WaitingForEveryone
	case !alone:
		return WaitingForNotify
	case m.flushing:
		return Flushing
	}
	return Delay
}

// Finish removes and returns a move whose time has come, nil if there is none. A move in another phase
// than Delay ran into its deadline.
func (t *Table) Finish(now time.Duration) *Move {
	if len(t.queue) == 0 || t.queue[0].due > now {
		return nil
	}
	m := heap.Pop(&t.queue).(*Move)
	delete(t.moves, m.Key)
	return m
}

// Next returns when Finish will have something to return, false if nothing is moving.
func (t *Table) Next() (time.Duration, bool) {
	if len(t.queue) == 0 {
		return 0, false
	}
	return t.queue[0].due, true
}

// Waiting returns the moves that wait for other directors, in the order they began.
func (t *Table) Waiting() []*Move {
	var all []*Move
	for _, m := range t.queue {
		if m.Ring && !m.everyone {
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b *Move) int { return cmp.Compare(a.seq, b.seq) })
	return all
}

// Len returns the number of moves.
func (t *Table) Len() int { return len(t.queue) }

// queue implements heap.Interface.
type queue []*Move

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].due, q[j].due), cmp.Compare(q[i].seq, q[j].seq)) < 0
}
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}
func (q *queue) Push(m any) {
	m.(*Move).place = len(*q)
	*q = append(*q, m.(*Move))
}
func (q *queue) Pop() any {
	last := len(*q) - 1
	m := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return m
}
