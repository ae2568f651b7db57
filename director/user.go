package director

import (
	"net/netip"
	"time"

	"usher/director/move"
	"usher/director/users"
)

// used notes that an entry is used here: it is not weak, whatever the others will say.
func (d *Director) used(e *users.Entry) {
	if e.Weak() {
		d.users.Refresh(e, d.now)
		d.strengthen(e)
		return
	}
	d.refresh(e)
}

// refresh notes that an entry was used. The others are told when that is a new second for them.
func (d *Director) refresh(e *users.Entry) {
	before := d.clock.unix(e.LastRefresh())
	d.users.Refresh(e, d.now)
	if d.config.Ring && d.clock.unix(e.LastRefresh()) != before {
		d.tellUser(e, false)
	}
}

// strengthen ends the weakness of an entry and tells everybody.
func (d *Director) strengthen(e *users.Entry) {
	d.users.SetWeak(e, false)
	d.tellUser(e, true)
	d.retryUser(d.users.Key(e))
}

// tellUser tells the ring where a user is. To whom a message just heard came from, it goes if source is set.
func (d *Director) tellUser(e *users.Entry, source bool) {
	if d.config.Ring && d.stays(e) {
		d.tell(d.update(e), source)
		if d.ring.Handshaked {
			e.SetUntold(false)
		} else {
			d.tellLater(e) // perhaps nobody is there yet
		}
	}
}

// stays reports whether an entry is not being dropped because its host is gone or was told to be forgotten. One
// that is, is nobody's business any more: the others would make it anew.
func (d *Director) stays(e *users.Entry) bool {
	if d.moves.Len() == 0 {
		return true
	}
	m := d.moves.Get(d.users.Key(e))
	return m == nil || !m.Evict
}

// update is an entry as the others are told of it.
func (d *Director) update(e *users.Entry) UserUpdate {
	u := UserUpdate{Hash: e.Hash(), Host: d.users.Host(e), Refreshed: d.clock.unix(e.LastRefresh()), Weak: e.Weak()}
	if len(d.ordered) > 0 {
		u.Ordered = d.ordered[d.users.Key(e)]
	}
	return u
}

// refreshActive refreshes entries with sessions before the other directors, who do not see those, forget them.
func (d *Director) refreshActive() {
	if !d.config.Ring {
		return
	}
	for range maxExpiries {
		e := d.users.OldestActive()
		if e == nil || d.now-e.LastRefresh() < d.config.UserExpire/2 {
			return
		}
		d.used(e)
	}
}

// heardUser: a director says where a user is. The numbers are those of the rules in ring.md section 6.
func (d *Director) heardUser(msg UserUpdate, handshake bool) {
	to := msg.Host.Unmap()
	host, ok := d.hosts.Get(to)
	if !ok { // 1
		if handshake {
			d.invalid("user %d is on %s: %w", msg.Hash, to, ErrUnknownHost)
		}
		return
	}
	if msg.Hash == 0 {
		return // nobody's
	}
	msg.Ordered = bounded(msg.Ordered)
	at, unknown := d.clock.moment(msg.Refreshed), msg.Refreshed == 0
	if unknown { // 2
		at = d.now
	}
	if at+d.config.UserExpire <= d.now { // 3
		return
	}
	at = min(at, d.now) // a sender whose clock is ahead must not keep entries for longer
	key := Key{Hash: msg.Hash, Tag: host.Tag}
	e := d.users.Get(key)
	switch {
	case e == nil: // 4
		e = d.users.Add(key, to, at)
		d.users.SetWeak(e, msg.Weak)
		d.setOrdered(key, msg.Ordered)
		if handshake && d.lately(msg.Ordered) {
			d.pause(e)
		}
		if !msg.Weak {
			d.passUser(e, handshake)
		}
		return
	case msg.Weak:
		d.heardWeak(e, to, at)
		return
	}

	changed, everybody := false, false
	m := d.moves.Get(key)
	switch from := d.users.Host(e); {
	case e.Weak(): // 5
		changed = true
		d.users.SetWeak(e, false)
		d.relocate(e, to, msg.Ordered)
		defer d.retryUser(key)
	case from == to: // 7
		d.setOrdered(key, max(msg.Ordered, d.ordered[key]))
		if m != nil {
			m.Evict = false // somebody has it there again
		}
	case d.nearExpiry(e): // 8
		changed = true
		d.relocate(e, to, msg.Ordered)
	case m != nil && m.Evict: // ours is gone, theirs may be taken
		changed = true
		d.relocate(e, to, msg.Ordered)
	case m != nil && m.Ring: // 9
		if msg.Ordered != 0 && d.overrules(to, msg.Ordered, e) { // a move of the other side of a split, and ours is going on
			d.setOrdered(key, msg.Ordered)
			d.redirect(e, to, m)
		} else {
			m.Contested = true
		}
		return
	default: // 10
		everybody = d.conflict(e, to, msg.Ordered)
		changed = everybody || !d.ring.Handshaked
	}
	if was := e.LastRefresh(); d.clock.unix(at) > d.clock.unix(was) && // 11
		!(unknown && at-was < min(d.config.UserExpire/4, 15*time.Second)) {
		changed = true
		d.users.Refresh(e, at)
	}
	switch { // 12
	case everybody:
		d.tellUser(e, true)
	case changed:
		d.passUser(e, handshake)
	}
}

// passUser tells the others what was just heard. While we are only joining, most of a handshake is known to
// everybody, but perhaps not to a neighbour that joins as well: all of it is told when that is over.
func (d *Director) passUser(e *users.Entry, handshake bool) {
	if handshake && !d.ring.Handshaked {
		d.tellLater(e)
		return
	}
	d.tellUser(e, false)
}

// conflict decides between two directors that have a user on different hosts (rule 10): the newer order of
// an operator wins, and between equals, as nearly always, the lower address. A director that has not yet
// joined the ring is the one that is wrong. Unlike Dovecot's director we tell everybody the end of it even if
// it is what we had: the other side would go on to give out its host until we happen to use the user.
// It reports whether that is to be told.
func (d *Director) conflict(e *users.Entry, theirs netip.Addr, ordered int64) bool {
	key, ours := d.users.Key(e), d.users.Host(e)
	if !d.ring.Handshaked {
		if e.Sessions() > 0 {
			d.countConflict(e, theirs, theirs)
		}
		d.relocate(e, theirs, ordered)
		if d.lately(ordered) {
			d.pause(e)
		}
		return false
	}
	mine, winner := d.ordered[key], ours
	lower := theirs.Less(ours)
	if d.overrules(theirs, ordered, e) {
		winner = theirs
	}
	// A newer order may only be quicker than the move that goes with it, over another way.
	if ordered <= mine || e.Sessions() > 0 {
		d.countConflict(e, theirs, winner)
	}
	d.tellKickHash(key.Hash, winner)
	switch {
	case (winner == theirs) != lower:
		d.impose(e, winner, max(ordered, mine))
		return false // a move tells it
	case winner == theirs:
		d.relocate(e, theirs, ordered)
		if ordered > mine {
			d.pause(e)
		}
	}
	return true
}

// lately reports whether a move that was ordered then may still be going on.
func (d *Director) lately(ordered int64) bool {
	return ordered != 0 && d.clock.moment(ordered)+d.config.MoveTimeout > d.now
}

// pause makes the lookups of an entry wait for the kick delay: we hear by a list that it was moved, and the others may
// still be ending its sessions. How far they are the list does not say.
func (d *Director) pause(e *users.Entry) {
	if key := d.users.Key(e); d.moves.Get(key) == nil {
		m := &move.Move{Key: key}
		d.users.Hold(e)
		d.say(m, d.moves.Start(d.now, m, e.Sessions()))
	}
}

func (d *Director) countConflict(e *users.Entry, theirs, winner netip.Addr) {
	d.conflicts++
	d.emit(Conflict{Key: d.users.Key(e), Users: d.users.Names(e), Ours: d.users.Host(e), Theirs: theirs, Winner: winner})
}

// relocate puts an entry on another host because others have it there. That is no move for them; here its
// sessions end and its lookups wait for that.
func (d *Director) relocate(e *users.Entry, to netip.Addr, ordered int64) {
	key := d.users.Key(e)
	if d.users.Host(e) == to {
		d.setOrdered(key, max(ordered, d.ordered[key]))
		return
	}
	m := d.moves.Get(key)
	if m != nil && m.Ring && !m.Evict {
		return // rule 9
	}
	d.setOrdered(key, ordered)
	d.users.SetHost(e, to)
	switch {
	case m != nil: // its old sessions are being waited for already
		m.Evict = false
		d.cut(e, StopConflict)
	case e.Sessions() == 0:
		d.cut(e, StopConflict)
	default:
		d.stopAll(e, StopConflict, &move.Move{Key: key})
	}
}

func (d *Director) setOrdered(key Key, ordered int64) {
	if ordered != 0 {
		d.ordered[key] = ordered
	} else {
		delete(d.ordered, key)
	}
}

// heardUserWeak: a director asks whether we use a user whose entry is about to expire (ring.md section 8).
// The question goes around the ring, to the one that asked: so one that was seen before goes on too, unlike
// everything else. (A ring in which the asker is gone must stop it: package ring passes each one twice at most.)
func (d *Director) heardUserWeak(msg UserWeak, h Heard) {
	to := msg.Host.Unmap()
	host, ok := d.hosts.Get(to)
	if !ok || msg.Hash == 0 {
		return
	}
	key := Key{Hash: msg.Hash, Tag: host.Tag}
	e := d.users.Get(key)
	switch {
	case h.Own: // it has been around, nobody objected
		if h.Seen && e != nil && e.Weak() {
			d.users.Refresh(e, d.now)
			d.strengthen(e)
		}
		return
	case e == nil:
		e = d.users.Add(key, to, d.now)
		d.users.SetWeak(e, true)
	default:
		if !d.weaken(e, to, d.now) {
			d.tellUser(e, true)
			return
		}
	}
	d.emit(Pass{})
}

// heardWeak is heardUserWeak for a list of users.
func (d *Director) heardWeak(e *users.Entry, to netip.Addr, at time.Duration) {
	if !d.weaken(e, to, at) {
		d.tellUser(e, true)
	}
}

// weaken makes an entry weak unless it was used lately (rules 5 and 6), and reports whether it is weak.
func (d *Director) weaken(e *users.Entry, to netip.Addr, at time.Duration) bool {
	if d.moves.Get(d.users.Key(e)) != nil {
		return false
	}
	if !e.Weak() {
		if e.Sessions() > 0 {
			d.users.Refresh(e, d.now)
		}
		if d.now-e.LastRefresh() <= d.config.UserExpire/2 {
			return false
		}
	}
	d.relocate(e, to, d.ordered[d.users.Key(e)])
	d.users.SetWeak(e, true)
	d.users.Refresh(e, at)
	return true
}
