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

	e := d.users.Get(key)
	if e == nil {
		d.create(key, to)
		d.emit(Done{ID: ev.ID})
		return nil
	}
	d.users.Refresh(e, d.now)
	if d.users.Host(e) == to {
		d.emit(Done{ID: ev.ID})
		return nil
	}
	d.users.SetHost(e, to)
	m := d.stopAll(e, StopMoved)
	m.Asked, m.ID = true, ev.ID
	return nil
}

// stopAll ends all sessions of an entry and makes its lookups wait until they are gone.
func (d *Director) stopAll(e *users.Entry, reason StopReason) *move.Move {
	epoch := e.Epoch()
	e.Bump()
	d.users.Hold(e)
	d.put(e) // before Stop: from here on the kernel forwards nothing for the old sessions
	d.emit(Stop{Key: d.users.Key(e), Epoch: epoch, Reason: reason})
	return d.moves.Start(d.now, d.users.Key(e), e.Sessions())
}

// finishMoves ends the moves whose time has come and answers who waited for them.
func (d *Director) finishMoves() {
	for m := d.moves.Finish(d.now); m != nil; m = d.moves.Finish(d.now) {
		e := d.users.Get(m.Key)
		var err error
		switch {
		case m.Evict:
			err = ErrHostRemoved
			d.drop(e)
		case m.Phase() == move.Stopping:
			// Nothing of theirs is forwarded any more. Waiting longer would only lock the user out.
			err = fmt.Errorf("%d left: %w", e.Sessions(), ErrMoveTimeout)
			fallthrough
		default:
			d.users.Release(e)
			d.users.Refresh(e, d.now)
		}
		if m.Asked {
			d.emit(Done{ID: m.ID, Err: err})
		}
		for _, request := range m.Waiting() {
			d.lookup(request, m.Key)
		}
	}
}

func (d *Director) hostPut(h Host) {
	h.Addr = h.Addr.Unmap()
	if before, existed := d.hosts.Put(h); existed && before.Tag != h.Tag {
		d.evict(h.Addr)
	}
}

// evict takes all users off a host that was removed. It walks over all entries; hosts are removed
// seldom, and an index by host would cost every entry eight bytes.
func (d *Director) evict(addr netip.Addr) {
	for e := range d.users.All() {
		if d.users.Host(e) == addr {
			d.evictEntry(e)
		}
	}
}

func (d *Director) evictEntry(e *users.Entry) {
	if m := d.moves.Get(d.users.Key(e)); m != nil {
		m.Evict = true // it was on its way to that host; its sessions are being stopped already
		return
	}
	if e.Sessions() > 0 {
		d.stopAll(e, StopHostRemoved).Evict = true
		return
	}
	// No sessions to wait for, but there may be some about to start.
	key, epoch := d.users.Key(e), e.Epoch()
	d.drop(e)
	d.emit(Stop{Key: key, Epoch: epoch, Reason: StopHostRemoved})
}
