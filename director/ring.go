package director

import (
	"fmt"

	"usher/director/hosts"
)

// ringState takes what package ring says about the ring, and serves who waited for it.
func (d *Director) ringState(to RingState) {
	before, wasAlone := d.ring, d.alone()
	d.ring = to
	d.moves.SetRing(to.Right, d.alone())
	for _, m := range d.moves.Waiting() {
		switch {
		case d.alone() && !wasAlone: // it waits for directors that are gone
			d.say(m, d.moves.Leave(m, d.now))
		case to.Right && !before.Right:
			d.say(m, d.moves.Retry(m, d.now))
		}
	}
	if to.Synced && !before.Synced {
		d.agreed()
	}
	if to.Handshaked != before.Handshaked || to.Synced != before.Synced || d.alone() != wasAlone {
		d.retryAll()
	}
}

// ringSynced notes that our own SYNC has been around. If nobody is missing all have heard of our orders.
func (d *Director) ringSynced() {
	d.agreed()
	if d.ring.Whole {
		for _, s := range d.hosts.All() {
			d.hosts.Set(s.Addr, func(s *hosts.State) { s.Apart = false })
		}
		for addr, r := range d.gone {
			r.apart = false
			d.gone[addr] = r
		}
	}
	d.retryAll()
}

// agreed notes that all directors have the same hosts.
func (d *Director) agreed() {
	for _, s := range d.hosts.All() {
		d.hosts.Set(s.Addr, func(s *hosts.State) { s.Desynced = false })
	}
}

// hear takes a message of another director.
func (d *Director) hear(h Heard) {
	if msg, ok := h.Message.(UserWeak); ok {
		d.heardUserWeak(msg, h)
		return
	}
	if h.Seen || h.Own {
		return
	}
	switch msg := h.Message.(type) {
	case UserUpdate:
		d.heardUser(msg, h.Handshake)
	case UserMove:
		d.heardMove(msg)
	case UserKick:
		d.emit(Pass{})
		d.heardKick(msg.User)
	case UserKickAlt:
		d.emit(Pass{})
		d.emit(StopAlt(msg))
	case UserKickHash:
		d.emit(Pass{})
		d.heardKickHash(msg)
	case UserKilled:
		d.heardKilled(msg.Hash)
	case UserKilledEverywhere:
		d.heardKilledEverywhere(msg.Hash)
	case HostUpdate:
		d.heardHost(msg, h)
	case HostGone:
		d.heardHostGone(msg.Addr.Unmap())
	case HostForget:
		d.heardHostForget(msg.Addr.Unmap())
	}
}

func (d *Director) invalid(format string, args ...any) {
	d.emit(Invalid{Err: fmt.Errorf(format, args...)})
}
