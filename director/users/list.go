package users

import "time"

// WeakGrace is how much longer a weak entry lives (ring.md section 8).
const WeakGrace = 30 * time.Second

// unlinked marks an entry that is in no list, for the moment.
const unlinked = ^uint32(0)

// list is a circle of entries ordered by the second of their last use, and within a second by when they
// came. Every entry is in one of three: the idle list, whose first entry expires first; the active list
// (entries with sessions), whose first entry was refreshed longest ago; or the list of those that are held.
//
// Entries are refreshed with times of the past too, those that other directors tell, at tens of thousands a
// second. Therefore the last entry of each second is known: finding the place of one is looking it up.
type list struct {
	head  uint32
	tails map[int64]uint32 // last entry by second
}

// second returns the second under which an entry is linked. A weak entry is linked where it expires.
func (e *Entry) second() int64 {
	at := e.refresh
	if e.flags&(weak|active) == weak {
		at += WeakGrace
	}
	s := int64(at / time.Second)
	if at < 0 && at%time.Second != 0 {
		s-- // rounded down: times before the first Step are negative
	}
	return s
}

// settle links an entry into the list it belongs to, if any. It must be unlinked.
func (d *Directory) settle(e *Entry) {
	e.set(active, e.sessions > 0)
	l := d.listOf(e)
	at := e.second()
	after := d.entries.at(d.entries.at(l.head).prev)
	if after.self != l.head && after.second() > at {
		after = d.before(l, at)
	}
	e.prev, e.next = after.self, after.next
	d.entries.at(e.next).prev = e.self
	after.next = e.self
	l.tails[at] = e.self
}

func (d *Directory) listOf(e *Entry) *list {
	switch {
	case e.is(active):
		return &d.active
	case e.is(held):
		return &d.held
	}
	return &d.idle
}

// before returns the last entry of a second, or of the one before it that has entries, or the head.
func (d *Directory) before(l *list, at int64) *Entry {
	first := d.entries.at(d.entries.at(l.head).next).second()
	for ; at >= first; at-- {
		if i, ok := l.tails[at]; ok {
			return d.entries.at(i)
		}
	}
	return d.entries.at(l.head)
}

// unlink must come before anything changes that second depends on.
func (d *Directory) unlink(e *Entry) {
	if e.next == unlinked { // it is new
		return
	}
	l := d.listOf(e)
	if at := e.second(); l.tails[at] == e.self {
		if before := d.entries.at(e.prev); before.self != l.head && before.second() == at {
			l.tails[at] = before.self
		} else {
			delete(l.tails, at)
		}
	}
	for _, c := range d.cursors {
		if c.next == e.self {
			c.next = e.next
		}
	}
	d.entries.at(e.prev).next = e.next
	d.entries.at(e.next).prev = e.prev
	e.prev, e.next = unlinked, unlinked
}

// Refresh notes that an entry was used. A moment before the last use changes nothing.
func (d *Directory) Refresh(e *Entry, at time.Duration) {
	if at > e.refresh {
		d.unlink(e)
		e.refresh = at
		d.settle(e)
	}
}

// SetWeak makes an entry weak, or strong again: it is about to expire, and the other directors are
// being asked whether they use it. A weak one lives for WeakGrace longer.
func (d *Directory) SetWeak(e *Entry, on bool) {
	d.unlink(e)
	e.set(weak, on)
	d.settle(e)
}

// Hold keeps an entry from expiring until Release, sessions or not.
func (d *Directory) Hold(e *Entry) {
	d.unlink(e)
	e.set(held, true)
	d.settle(e)
}

// Release ends Hold.
func (d *Directory) Release(e *Entry) {
	d.unlink(e)
	e.set(held, false)
	d.settle(e)
}

// ExpiresAt returns when an entry expires, and false while it cannot. It may be dropped later by less than
// a second, behind one that was used in the same second.
func (d *Directory) ExpiresAt(e *Entry) (time.Duration, bool) {
	at := e.refresh + d.expire
	if e.is(weak) {
		at += WeakGrace
	}
	return at, e.sessions == 0 && !e.is(held)
}

// Oldest returns the entry that expires first, nil if none can.
func (d *Directory) Oldest() *Entry { return d.first(&d.idle) }

// OldestActive returns the entry with sessions that was refreshed longest ago, nil if there is none.
func (d *Directory) OldestActive() *Entry { return d.first(&d.active) }

func (d *Directory) first(l *list) *Entry {
	if first := d.entries.at(l.head).next; first != l.head {
		return d.entries.at(first)
	}
	return nil
}

// A Cursor is a place on the way through all entries, oldest first: the idle ones, then the held ones, then
// those with sessions. The zero value is the beginning. Entries that are used meanwhile may come again or not at all.
type Cursor struct {
	state cursorState
	next  uint32
}

type cursorState uint8

const (
	fresh cursorState = iota
	inIdle
	inHeld
	inActive
	finished
)

// maxCursors bounds what a cursor that nobody walks any more costs: with more of them the oldest begins
// again from the start.
const maxCursors = 16

// Walk returns the next entry, nil at the end.
func (d *Directory) Walk(c *Cursor) *Entry {
	if c.state == fresh {
		if len(d.cursors) == maxCursors {
			d.cursors[0].state = fresh
			d.Leave(d.cursors[0])
		}
		d.cursors = append(d.cursors, c)
		c.state, c.next = inIdle, d.entries.at(d.idle.head).next
	}
	if c.state == inIdle && c.next == d.idle.head {
		c.state, c.next = inHeld, d.entries.at(d.held.head).next
	}
	if c.state == inHeld && c.next == d.held.head {
		c.state, c.next = inActive, d.entries.at(d.active.head).next
	}
	if c.state == inActive && c.next == d.active.head {
		c.state = finished
		d.Leave(c)
	}
	if c.state == finished {
		return nil
	}
	e := d.entries.at(c.next)
	c.next = e.next
	return e
}

// Skip goes on behind the list that the cursor is in.
func (d *Directory) Skip(c *Cursor) {
	switch c.state {
	case inIdle:
		c.next = d.idle.head
	case inHeld:
		c.next = d.held.head
	case inActive:
		c.next = d.active.head
	}
}

// Leave ends a walk before its end.
func (d *Directory) Leave(c *Cursor) {
	for i, other := range d.cursors {
		if other == c {
			d.cursors = append(d.cursors[:i], d.cursors[i+1:]...)
			return
		}
	}
}
