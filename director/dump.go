package director

import (
	"time"

	"usher/director/users"
)

// untoldPart is how many entries are told in one go, and untoldPause what lies between two: 4 MB a second
// to each neighbour, which neither fills its output buffer nor keeps this director from its work.
const (
	untoldPart  = 10000
	untoldPause = 100 * time.Millisecond
)

// A Cursor is a place on the way through all entries, for Dump. The zero value is the beginning.
type Cursor struct {
	walk  users.Cursor
	begun bool
	since int64 // the second in which the walk began
}

// Dump yields up to max entries, for a handshake, those used longest ago first. It reports whether there may
// be more; the next call goes on behind the last entry, whatever has changed in between. Entries used since the
// walk began are left out: they are told as they are used. A walk that is not brought to its end
// should be given up with DumpStop.
func (d *Director) Dump(c *Cursor, max int, yield func(UserUpdate)) (more bool) {
	if !c.begun {
		c.begun, c.since = true, d.clock.unix(d.now)
	}
	for max > 0 {
		e := d.users.Walk(&c.walk)
		if e == nil {
			return false
		}
		if at := d.clock.unix(e.LastRefresh()); at > c.since {
			if !e.Weak() && at > c.since+int64(users.WeakGrace/time.Second) {
				d.users.Skip(&c.walk) // so are all that follow
			}
			continue
		}
		if d.stays(e) { // a host that is not there would break the protocol
			yield(d.update(e))
			max--
		}
	}
	return true
}

// DumpStop gives up a walk.
func (d *Director) DumpStop(c *Cursor) { d.users.Leave(&c.walk) }

// tellLater notes that the ring may not know of an entry: one that an earlier process left, or that was
// heard of while joining. It is told when the handshake is over, unless it was used by then.
func (d *Director) tellLater(e *users.Entry) {
	if d.config.Ring && !e.Untold() {
		e.SetUntold(true)
		d.untold = append(d.untold, e.Number())
	}
}

// tellUntold tells the handshaked ring of entries it may not know, some at a time.
func (d *Director) tellUntold() {
	if !d.ring.Handshaked || len(d.untold) == 0 || d.now < d.untoldAt {
		return
	}
	told := 0
	for len(d.untold) > 0 && told < untoldPart {
		e := d.users.At(d.untold[0])
		d.untold = d.untold[1:]
		if e == nil || !e.Untold() || e.Weak() {
			continue
		}
		if e.Sessions() > 0 {
			d.users.Refresh(e, d.now)
		}
		d.tellUser(e, false)
		told++
	}
	if len(d.untold) == 0 {
		d.untold = nil
	}
	d.untoldAt = d.now + untoldPause
}
