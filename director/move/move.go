// Package move keeps the moves that are going on. While a user is moved, its old sessions are stopped
// and its logins wait; only when the old sessions are gone may a new one begin elsewhere:
//
//	          sessions > 0               sessions = 0
//	Start ─────────────────► Stopping ──────────────────► Settling ── kick delay ──► finished
//	  │                         │  ▲                       ▲   │                        ▲
//	  │ sessions = 0            │  └── a late session ─────│───┘                        │
//	  └─────────────────────────│──────────────────────────┘                            │
//	                            └────────────────── deadline ───────────────────────────┘
//
// Stopping ends at one deadline, set when the move starts, whatever happens; so a move takes at most
// the timeout plus the kick delay. The kick delay gives the old host time to write what it still has
// (behaviours.md section 3). Time is a duration since a moment that the caller chooses.
package move

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"usher/director/users"
)

// A Phase is the state of a move.
type Phase uint8

// The phases of a move. A move that has finished is gone from the table.
const (
	Stopping Phase = iota // old sessions still live
	Settling              // none left, the kick delay runs
)

func (p Phase) String() string { return [...]string{"stopping", "settling"}[p] }

// A Move is one user on its way to another host, or (Evict) away from a host that was removed.
type Move struct {
	Key   users.Key
	Asked bool   // somebody waits for the result
	ID    uint64 // of the request, when Asked
	Evict bool   // the entry is to be dropped at the end

	phase    Phase
	deadline time.Duration // when Stopping ends at the latest
	due      time.Duration // when the present phase ends
	seq      uint64        // order of start, so that equal times finish in one order
	place    int           // index in the heap
	waiting  []uint64      // lookups, in the order they came
}

// Phase returns the present phase.
func (m *Move) Phase() Phase { return m.phase }

// Waiting returns the lookups that wait for the end of the move, in the order they came.
func (m *Move) Waiting() []uint64 { return m.waiting }

// A Table holds all moves, ordered by when their phase ends.
type Table struct {
	timeout, delay time.Duration
	seq            uint64
	moves          map[users.Key]*Move
	requests       map[uint64]*Move
	queue          queue
}

// New returns an empty table. timeout bounds the Stopping phase, delay is the length of Settling.
func New(timeout, delay time.Duration) *Table {
	return &Table{
		timeout:  timeout,
		delay:    delay,
		moves:    make(map[users.Key]*Move),
		requests: make(map[uint64]*Move),
	}
}

// Start begins a move of key, which must not be moving, with so many old sessions.
func (t *Table) Start(now time.Duration, key users.Key, sessions uint32) *Move {
	t.seq++
	m := &Move{Key: key, deadline: now + t.timeout, seq: t.seq}
	m.due = m.deadline
	t.moves[key] = m
	heap.Push(&t.queue, m)
	t.Sessions(m, now, sessions)
	return m
}

// Get returns the move of key, nil if it is not being moved.
func (t *Table) Get(key users.Key) *Move { return t.moves[key] }

// Sessions tells a move how many old sessions there are now.
func (t *Table) Sessions(m *Move, now time.Duration, sessions uint32) {
	if sessions == 0 {
		// Measured from the deadline at the latest, so that late sessions cannot prolong it for ever.
		m.phase, m.due = Settling, min(now, m.deadline)+t.delay
	} else {
		m.phase, m.due = Stopping, m.deadline
	}
	heap.Fix(&t.queue, m.place)
}

// Wait queues a lookup until the move is finished.
func (t *Table) Wait(m *Move, request uint64) {
	m.waiting = append(m.waiting, request)
	t.requests[request] = m
}

// Forget removes a lookup from wherever it waits. Unknown ones are ignored.
func (t *Table) Forget(request uint64) {
	if m, ok := t.requests[request]; ok {
		delete(t.requests, request)
		m.waiting = slices.DeleteFunc(m.waiting, func(r uint64) bool { return r == request })
	}
}

// Finish removes and returns a move whose time has come, nil if there is none. A move that is still
// Stopping ran into its deadline.
func (t *Table) Finish(now time.Duration) *Move {
	if len(t.queue) == 0 || t.queue[0].due > now {
		return nil
	}
	m := heap.Pop(&t.queue).(*Move)
	delete(t.moves, m.Key)
	for _, request := range m.waiting {
		delete(t.requests, request)
	}
	return m
}

// Next returns when Finish will have something to return, false if nothing is moving.
func (t *Table) Next() (time.Duration, bool) {
	if len(t.queue) == 0 {
		return 0, false
	}
	return t.queue[0].due, true
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
