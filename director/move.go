package director

import (
	"fmt"
	"net/netip"

	"usher/director/move"
	"usher/director/users"
)

// move begins a move, or says why not. Done is emitted here only if there is nothing to do.
func (d *Director) move(ev Move) error {
	key := Key{Hash: ev.Hash, Tag: ev.Tag}
	if ev.User != "" {
		key = d.KeyOf(ev.User, ev.Tag)
	}
	to := ev.To.Unmap()
	switch host, ok := d.hosts.Get(to); {
	case key.Hash == 0:
		return ErrUnknownUser
	case !ok:
		return fmt.Errorf("%s: %w", to, ErrUnknownHost)
	case host.Tag != ev.Tag:
		return fmt.Errorf("%s has tag %q, not %q: %w", to, host.Tag, ev.Tag, ErrTagMismatch)
	case d.moves.Get(key) != nil:
		return ErrMoveInProgress
	}
	d.order(to, &move.Move{Key: key, Asked: true, ID: ev.ID})
	return nil
}

// order moves a user, which is not being moved, on behalf of this director's operator.
func (d *Director) order(to netip.Addr, m *move.Move) {
	ordered := max(d.clock.unix(d.now), d.ordered[m.Key]+1)
	m.Self, m.Ring, m.Flush = true, d.config.Ring, d.config.FlushCommand
	if m.Ring {
		d.tell(UserMove{Hash: m.Key.Hash, Host: to, Ordered: ordered}, true)
	}
	d.begin(to, m)
	d.ordered[m.Key] = ordered
}

// begin puts a user on a host and starts the move. Without others to ask there is nothing to wait for if
// the user was not elsewhere.
func (d *Director) begin(to netip.Addr, m *move.Move) {
	e := d.users.Get(m.Key)
	switch {
	case e == nil:
		e = d.create(m.Key, to)
		m.Keep = true
	case d.users.Host(e) == to:
		d.users.Refresh(e, d.now)
		m.Keep = true
	default:
		d.users.Refresh(e, d.now)
		m.Old = d.users.Host(e)
		d.users.SetHost(e, to)
	}
	d.users.SetWeak(e, false)
	if !d.ring.Handshaked {
		d.tellLater(e)
	}
	m.Flush = m.Flush && m.Old.IsValid()
	switch {
	case !m.Keep:
		d.stopAll(e, StopMoved, m)
	case m.Ring:
		d.users.Hold(e)
		d.say(m, d.moves.Start(d.now, m, e.Sessions()))
	default:
		d.finishMove(m, nil)
	}
}

// stopAll ends all sessions of an entry and makes its lookups wait until they are gone.
func (d *Director) stopAll(e *users.Entry, reason StopReason, m *move.Move) {
	d.users.Hold(e)
	d.cut(e, reason)
	d.say(m, d.moves.Start(d.now, m, e.Sessions()))
}

// say does what a change of a move asks for.
func (d *Director) say(m *move.Move, s move.Say) {
	if s&move.Killed != 0 {
		d.tell(UserKilled{Hash: m.Key.Hash}, true)
	}
	if s&move.KilledEverywhere != 0 {
		d.tell(UserKilledEverywhere{Hash: m.Key.Hash}, true)
	}
	if s&move.Flush != 0 {
		oldUp := false
		old := Host{Addr: m.Old} // removed meanwhile
		if h, ok := d.hosts.Get(m.Old); ok {
			old, oldUp = h.Host, h.Up
		}
		to, _ := d.hosts.Get(d.users.Host(d.users.Get(m.Key)))
		d.emit(Flush{Key: m.Key, Old: old, New: to.Host, OldUp: oldUp})
	}
}

// finishMoves ends the moves whose time has come and answers who waited for them.
func (d *Director) finishMoves() {
	for m := d.moves.Finish(d.now); m != nil; m = d.moves.Finish(d.now) {
		e := d.users.Get(m.Key)
		var err error
		switch phase := m.Phase(); {
		case m.Evict:
			err = ErrHostRemoved
			d.drop(e)
		case phase == move.Delay:
		case phase == move.Killing || phase == move.NotifyReceived:
			// Nothing of theirs is forwarded any more. Waiting longer would only lock the user out.
			err = fmt.Errorf("%d left: %w", e.Sessions(), ErrMoveTimeout)
		default:
			err = fmt.Errorf("%s: %w", phase, ErrMoveTimeout)
		}
		if err != nil && m.Ring && !m.Evict {
			d.warn("move of user %s: %v; other directors may have it elsewhere", m.Key, err)
		}
		if !m.Evict {
			d.users.Release(e)
			switch {
			case !d.config.Ring:
				d.users.Refresh(e, d.now)
			case m.Self, m.Contested, err != nil:
				// All have noted the move as a use when they heard of it, which may be a while ago for us and not
				// for others. And somebody may have the user elsewhere, or not at all.
				d.users.Refresh(e, d.now)
				d.tellUser(e, true)
			}
		}
		d.finishMove(m, err)
		d.retryUser(m.Key)
	}
}

// finishMove tells whoever wanted the move that it is over.
func (d *Director) finishMove(m *move.Move, err error) {
	if m.Asked {
		d.emit(Done{ID: m.ID, Err: err})
	}
	d.flushMoved(m, err)
}

// evict takes all users off hosts that were removed. It walks over all entries; hosts are removed
// seldom, and an index by host would cost every entry eight bytes.
func (d *Director) evict(reason StopReason, from func(netip.Addr) bool) {
	var weak []Key // with lookups that wait for something else than the end of a move
	for e := range d.users.All() {
		if from(d.users.Host(e)) {
			if e.Weak() {
				weak = append(weak, d.users.Key(e))
			}
			d.evictEntry(e, reason)
		}
	}
	for _, key := range weak {
		if d.moves.Get(key) == nil {
			d.retryUser(key)
		}
	}
}

func (d *Director) evictHost(addr netip.Addr, reason StopReason) {
	d.evict(reason, func(host netip.Addr) bool { return host == addr })
}

func (d *Director) evictEntry(e *users.Entry, reason StopReason) {
	key := d.users.Key(e)
	if m := d.moves.Get(key); m != nil {
		// It was on its way to that host; its sessions are being stopped already, unless they may stay.
		m.Evict = true
		if m.Keep {
			m.Keep = false
			d.moves.Extend(m, d.now) // they have all the time to end
			d.cut(e, reason)
		}
		d.say(m, d.moves.Leave(m, d.now)|d.moves.Sessions(m, d.now, e.Sessions()))
		return
	}
	if e.Sessions() > 0 {
		d.stopAll(e, reason, &move.Move{Key: key, Evict: true})
		return
	}
	// No sessions to wait for, but there may be some about to start.
	epoch := e.Epoch()
	d.drop(e)
	d.emit(Stop{Key: key, Epoch: epoch, Reason: reason})
}

// heardMove: an operator of another director moves a user (ring.md section 9).
func (d *Director) heardMove(msg UserMove) {
	to := msg.Host.Unmap()
	host, ok := d.hosts.Get(to)
	if !ok || msg.Hash == 0 {
		return
	}
	key := Key{Hash: msg.Hash, Tag: host.Tag}
	e, ours := d.users.Get(key), d.ordered[key]
	msg.Ordered = bounded(msg.Ordered)
	if msg.Ordered == 0 { // Dovecot's directors do not say when: it is new to us
		msg.Ordered = max(d.clock.unix(d.now), ours+1)
	}
	if e != nil && d.users.Host(e) != to && d.stays(e) && !d.overrules(to, msg.Ordered, e) {
		d.impose(e, d.users.Host(e), ours) // an order from before a split, or two at the same time
		return
	}
	d.emit(Pass{})
	switch m := d.moves.Get(key); {
	case m == nil:
		d.begin(to, &move.Move{Key: key, Ring: true})
	case m.Over(), m.Ring && d.users.Host(e) != to:
		// The round of that move is over everywhere, or overtaken: this one has its own, and a USER-KILLED on its
		// way must not be taken for that of the other. What is left of its sessions is to be waited for even if
		// the host is the same.
		var err error
		if !m.Over() {
			err = ErrOvertaken
		}
		d.moves.Remove(m)
		d.finishMove(m, err)
		next := &move.Move{Key: key, Ring: true}
		d.begin(to, next)
		next.Keep = next.Keep && m.Keep
		d.tellMove(e)
	default:
		d.redirect(e, to, m)
	}
	d.ordered[key] = msg.Ordered
}

// overrules reports whether an order to put a user on another host holds against the one that has put it where it
// is: if it is newer, and in the same second if the address is lower, so that all directors come to the same end.
func (d *Director) overrules(to netip.Addr, ordered int64, e *users.Entry) bool {
	ours := d.ordered[d.users.Key(e)]
	return ordered > ours || ordered == ours && to.Less(d.users.Host(e))
}

// redirect gives a move that is going on another host.
func (d *Director) redirect(e *users.Entry, to netip.Addr, m *move.Move) {
	m.Evict = false // if it was to be dropped, there is a place for it again
	if d.users.Host(e) != to {
		d.users.SetHost(e, to)
		if m.Keep && e.Sessions() > 0 {
			d.moves.Extend(m, d.now) // they could stay so far, and have all the time to end
		}
		if m.Asked { // whoever wanted it elsewhere must not think that it is there
			m.Asked = false
			d.emit(Done{ID: m.ID, Err: ErrOvertaken})
		}
		m.Keep = false
		d.cut(e, StopMoved)
	}
	d.say(m, d.moves.Join(m, d.now)|d.moves.Sessions(m, d.now, e.Sessions()))
}

// impose tells all directors to have a user on a host, as a move does: by the newer order that is right, but by
// the address of the host, which is all that Dovecot's directors look at, it is not.
func (d *Director) impose(e *users.Entry, to netip.Addr, ordered int64) {
	key := d.users.Key(e)
	d.tell(UserMove{Hash: key.Hash, Host: to, Ordered: ordered}, true)
	if m := d.moves.Get(key); m != nil {
		m.Self = true
		d.redirect(e, to, m)
	} else {
		d.begin(to, &move.Move{Key: key, Ring: true, Self: true})
	}
	d.setOrdered(key, ordered)
}

// heardKilled: USER-KILLED has no tag, it means the hash under every tag.
func (d *Director) heardKilled(hash uint32) {
	for tag := range d.users.Tags() {
		if m := d.moves.Get(Key{Hash: hash, Tag: tag}); m != nil {
			d.say(m, d.moves.Notified(m, d.now))
		}
	}
}

func (d *Director) heardKilledEverywhere(hash uint32) {
	passed := false
	for tag := range d.users.Tags() {
		m := d.moves.Get(Key{Hash: hash, Tag: tag})
		if m == nil {
			continue
		}
		say, fits := d.moves.Everywhere(m, d.now)
		if fits && !passed {
			passed = true
			d.emit(Pass{})
		}
		d.say(m, say)
	}
}
