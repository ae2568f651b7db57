package director

import (
	"net/netip"

	"usher/director/users"
)

// kick ends the sessions of a user here, and tells the others to do so. A name with a mask in it is
// matched against all names; see Kick.
func (d *Director) kick(ev Kick) error {
	if ev.User == "" { // an empty name in Stop would mean everybody
		return ErrUnknownUser
	}
	if d.config.Ring {
		d.tell(UserKick{User: ev.User}, false)
	}
	if ev.Mask {
		d.kickMask(ev.User)
		return nil
	}
	e := d.users.Get(d.KeyOf(ev.User, ev.Tag))
	if e == nil {
		return ErrUnknownUser
	}
	d.kickName(e, ev.User)
	return nil
}

// kickName ends the sessions of one user. If these are all the entry has, a new epoch ends them in one
// write; sessions that are just logging in are then stopped as stale.
func (d *Director) kickName(e *users.Entry, user string) {
	epoch := e.Epoch()
	if n := d.users.SessionsOf(e, user); n > 0 && n == e.Sessions() {
		e.Bump()
		d.put(e)
	}
	d.emit(Stop{Key: d.users.Key(e), User: user, Epoch: epoch, Reason: StopKicked})
}

// kickMask ends the sessions of all users whose name matches. It walks over all entries.
func (d *Director) kickMask(mask string) {
	for e := range d.users.All() {
		for _, user := range d.users.Names(e) {
			if d.users.SessionsOf(e, user) > 0 && match(mask, user) {
				d.kickName(e, user)
			}
		}
	}
}

// match reports whether name fits a mask of *, any text, and ?, any character (a byte, as in Dovecot).
func match(mask, name string) bool {
	star, from := -1, 0 // where to go on when the rest does not fit
	m, n := 0, 0
	for n < len(name) {
		switch {
		case m < len(mask) && mask[m] == '*':
			star, from = m, n
			m++
		case m < len(mask) && (mask[m] == '?' || mask[m] == name[n]):
			m++
			n++
		case star >= 0:
			from++
			m, n = star+1, from
		default:
			return false
		}
	}
	for m < len(mask) && mask[m] == '*' {
		m++
	}
	return m == len(mask)
}

func hasMask(name string) bool {
	for i := range len(name) {
		if name[i] == '*' || name[i] == '?' {
			return true
		}
	}
	return false
}

func (d *Director) kickAlt(ev KickAlt) {
	if d.config.Ring {
		d.tell(UserKickAlt{Field: ev.Field, Value: ev.Value}, false)
	}
	d.emit(StopAlt{Field: ev.Field, Value: ev.Value})
	d.emit(Done{ID: ev.ID})
}

// heardKick: a director has kicked a user by name. The message names no tag.
func (d *Director) heardKick(user string) {
	switch {
	case user == "":
	case hasMask(user):
		d.kickMask(user)
	default:
		for tag := range d.users.Tags() {
			if e := d.users.Get(d.KeyOf(user, tag)); e != nil {
				d.kickName(e, user)
			}
		}
	}
}

// heardKickHash: a director has found a user on two hosts. Sessions that are not on the host that won
// are ended; our entry stays where it is, as with Dovecot's director, until that director tells its own.
func (d *Director) heardKickHash(m UserKickHash) {
	except := m.Except.Unmap()
	winner, known := d.hosts.Get(except)
	for tag := range d.users.Tags() {
		e := d.users.Get(Key{Hash: m.Hash, Tag: tag})
		if e == nil || d.users.Host(e) == except || e.Sessions() == 0 || known && winner.Tag != tag {
			continue
		}
		d.cut(e, StopConflict)
	}
}

// cut ends all sessions of an entry, and those that are logging in, by a new epoch.
func (d *Director) cut(e *users.Entry, reason StopReason) {
	epoch := e.Epoch()
	e.Bump()
	d.put(e) // before Stop: from here on the kernel forwards nothing for the old sessions
	d.emit(Stop{Key: d.users.Key(e), Epoch: epoch, Reason: reason})
}

// tellKickHash tells everybody that a user's place is on this host.
func (d *Director) tellKickHash(hash uint32, winner netip.Addr) {
	d.tell(UserKickHash{Hash: hash, Except: winner}, true)
}
