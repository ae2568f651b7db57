package director

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"
	"time"

	"usher/director/users"
)

// ringTimeout is how long a lookup waits for the other directors (ring.md section 12).
const ringTimeout = 30 * time.Second

// Near its expiry an entry is not used before the other directors were asked (ring.md section 8). The
// window is a tenth of its life, within these bounds.
const (
	minNearExpiry = 3 * time.Second
	maxNearExpiry = 30 * time.Second
)

// lookup is a request for the host of a user.
type lookup struct {
	id    uint64
	key   Key
	since time.Duration // when it came
	peek  bool
}

// lookup answers a request: from the entry, by a new entry, or when what it waits for has happened.
func (d *Director) lookup(l lookup) {
	switch {
	case d.config.Ring && !d.ring.Handshaked:
		d.wait(l, forHandshake)
		return
	case d.moves.Get(l.key) != nil:
		d.wait(l, forMove)
		return
	}
	e := d.users.Get(l.key)
	known := e != nil
	switch {
	case known && l.peek:
	case known:
		if cause, free := d.free(e); !free {
			d.wait(l, cause)
			return
		}
		d.refresh(e)
	case d.config.Ring && !d.ring.Synced:
		d.wait(l, forSync)
		return
	default:
		addr, ok := d.hosts.Place(l.key.Tag, l.key.Hash)
		if !ok {
			d.emit(Refused{Request: l.id, Reason: noHosts(l.key.Tag)})
			return
		}
		if l.peek {
			host, _ := d.hosts.Get(addr)
			d.emit(Assigned{Request: l.id, Key: l.key, Host: host.Host})
			return
		}
		e = d.create(l.key, addr)
		d.tellUser(e, false)
	}
	if !l.peek {
		d.store(e) // before somebody builds on it
	}
	host, _ := d.hosts.Get(d.users.Host(e)) // there is one: evict leaves no entry behind
	d.emit(Assigned{Request: l.id, Key: l.key, Host: host.Host, Epoch: e.Epoch(), Known: known})
}

func noHosts(tag string) error {
	if tag == "" {
		return ErrNoHosts
	}
	return fmt.Errorf("tag %q: %w", tag, ErrNoHosts)
}

// free reports whether an entry may be used at once, or what a lookup has to wait for. Two directors must
// not disagree at the edge of expiry: one that uses the entry for another moment, and one that has
// dropped it and asks the hash. If the hash says the same host there is nothing to disagree about.
func (d *Director) free(e *users.Entry) (cause, bool) {
	if !d.config.Ring {
		return 0, true
	}
	if e.Weak() {
		if !d.alone() {
			return forOthers, false
		}
		d.users.SetWeak(e, false)
	}
	if !d.nearExpiry(e) {
		return 0, true
	}
	key := d.users.Key(e)
	switch hash, ok := d.hosts.Place(key.Tag, key.Hash); {
	case !ok || hash == d.users.Host(e):
		return 0, true
	case !d.ring.Synced:
		return forSync, false
	case d.alone() || d.ring.Minor < 1: // older directors do not know the question
		return 0, true
	}
	d.users.SetWeak(e, true)
	d.tell(UserWeak{Hash: key.Hash, Host: d.users.Host(e)}, false)
	return forOthers, false
}

// alone reports whether the ring is this director and nobody else.
func (d *Director) alone() bool { return !d.config.Ring || d.ring.Synced && !d.ring.Right }

func (d *Director) nearExpiry(e *users.Entry) bool {
	window := min(max(d.config.UserExpire/10, minNearExpiry), maxNearExpiry)
	return e.Sessions() == 0 && d.now-e.LastRefresh() > d.config.UserExpire-window
}

// cause is what a lookup waits for.
type cause uint8

const (
	forHandshake cause = iota
	forSync
	forOthers // a weak user: the others' answer
	forMove
)

func (c cause) String() string {
	return [...]string{"the handshake with the ring", "the ring to be synced", "the other directors to say whether the user is elsewhere",
		"the end of the user's move"}[c]
}

// waiter is a lookup that waits.
type waiter struct {
	lookup
	cause cause
	seq   uint64
	place int // in the queue
}

// waiting holds the lookups that wait.
type waiting struct {
	seq   uint64
	byID  map[uint64]*waiter
	byKey map[Key][]*waiter // forOthers and forMove
	queue waitQueue         // by when they came
}

func newWaiting() waiting {
	return waiting{byID: make(map[uint64]*waiter), byKey: make(map[Key][]*waiter)}
}

func (d *Director) wait(l lookup, c cause) {
	q := &d.waiting
	q.seq++
	w := &waiter{lookup: l, cause: c, seq: q.seq}
	q.byID[l.id] = w
	if c == forOthers || c == forMove {
		q.byKey[l.key] = append(q.byKey[l.key], w)
	}
	heap.Push(&q.queue, w)
}

// forget takes a lookup out. Unknown ones are ignored.
func (q *waiting) forget(id uint64) {
	w, ok := q.byID[id]
	if !ok {
		return
	}
	q.unqueue(w)
	if all, ok := q.byKey[w.key]; ok {
		if all = slices.DeleteFunc(all, func(x *waiter) bool { return x == w }); len(all) == 0 {
			delete(q.byKey, w.key)
		} else {
			q.byKey[w.key] = all
		}
	}
}

func (q *waiting) unqueue(w *waiter) {
	delete(q.byID, w.id)
	heap.Remove(&q.queue, w.place)
}

func (q *waiting) next() (time.Duration, bool) {
	if len(q.queue) == 0 {
		return 0, false
	}
	return q.queue[0].since + ringTimeout, true
}

// retryUser runs the lookups again that wait for something about one user.
func (d *Director) retryUser(key Key) {
	all := d.waiting.byKey[key]
	if len(all) == 0 {
		return
	}
	delete(d.waiting.byKey, key)
	defer func(hearing bool) { d.hearing = hearing }(d.hearing)
	d.hearing = false // what a lookup changes is news to everybody
	for _, w := range all {
		d.waiting.unqueue(w)
	}
	for _, w := range all {
		d.lookup(w.lookup)
	}
}

// retryAll runs the lookups again that wait for the ring.
func (d *Director) retryAll() {
	all := slices.DeleteFunc(slices.Clone(d.waiting.queue), func(w *waiter) bool {
		return w.cause == forMove || w.cause == forOthers && !d.alone()
	})
	slices.SortFunc(all, func(a, b *waiter) int { return cmp.Compare(a.seq, b.seq) })
	for _, w := range all {
		d.waiting.forget(w.id)
	}
	for _, w := range all {
		d.lookup(w.lookup)
	}
}

// refuseLate ends lookups that the ring did not answer. The user of one that waited for the others' word
// is served the next time: they had their chance.
func (d *Director) refuseLate() {
	if !d.config.Ring {
		return // they wait for the end of a move, which is certain
	}
	for q := &d.waiting; len(q.queue) > 0 && q.queue[0].since+ringTimeout <= d.now; {
		w := q.queue[0]
		q.forget(w.id)
		d.emit(Refused{Request: w.id, Reason: fmt.Errorf("%w: waited for %s", ErrRingTimeout, w.cause)})
		if e := d.users.Get(w.key); w.cause == forOthers && e != nil && e.Weak() {
			d.used(e)
		}
	}
}

// waitQueue implements heap.Interface.
type waitQueue []*waiter

func (q waitQueue) Len() int { return len(q) }
func (q waitQueue) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].since, q[j].since), cmp.Compare(q[i].seq, q[j].seq)) < 0
}
func (q waitQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}
func (q *waitQueue) Push(w any) {
	w.(*waiter).place = len(*q)
	*q = append(*q, w.(*waiter))
}
func (q *waitQueue) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return w
}
