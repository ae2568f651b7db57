package ring

import (
	"net/netip"
	"time"

	"usher/director/ring/wire"
)

const (
	resendSync     = 5 * time.Second // while it has not come around
	staleSyncReset = 120             // seconds after which a lower number means a restart
	syncCopies     = 4               // of the same SYNC that are passed on
)

// ownSync is our own SYNC.
type ownSync struct {
	seq    uint32
	wanted bool // to be sent when the present block of input is done
	done   bool // it has come around; the director is to be told

	began time.Time     // the first with this number was sent
	sent  time.Time     // the last one
	last  time.Time     // when one came around
	took  time.Duration // how long that one took

	// Somebody has joined or left since our last SYNC was sent: that one may have got lost with a
	// connection, and is sent again when another's shows that there is a way.
	ringChanged bool
}

// receivedSync is what is remembered of another director's SYNC.
type receivedSync struct {
	seq       uint32
	time      int64
	copies    int
	wrongHash uint32     // of hosts, that came once
	delayed   *wire.Sync // to be passed on when there is a right, or a new one
}

// wantSync: the ring or its hosts have changed, all must agree again.
func (r *Ring) wantSync() {
	r.sync.seq++
	if r.alone() {
		r.sync.done = true // there is nobody to ask
		return
	}
	if !r.sync.wanted {
		r.sync.wanted, r.sync.began = true, r.now
	}
	r.synced = false
}

// unsync: a neighbour is missing.
func (r *Ring) unsync() {
	r.sync.seq++
	r.synced = false
}

// sendSync sends our own SYNC to the right, and PINGs both neighbours: if one of them is dead we want to know
// now.
func (r *Ring) sendSync() {
	r.sync.wanted = false
	if r.right == nil {
		return
	}
	r.sync.sent = r.now
	r.sync.ringChanged = false
	r.send(r.right, &wire.Sync{
		Director: r.self.addr, Seq: r.sync.seq, Minor: wire.Minor, Time: r.now.Unix(), HostsHash: r.director.HostsHash(),
	})
	if r.left != nil {
		r.sendPing(r.left)
	}
	r.sendPing(r.right)
}

// hearSync: a SYNC has come, our own or another's.
func (r *Ring) hearSync(c *conn, s wire.Sync) {
	s.Minor = min(s.Minor, wire.Minor)
	if s.Time == 0 {
		s.Time = r.now.Unix() // from minor 0
	}
	m := r.byAddr[unmap(s.Director)]
	switch {
	case m == nil && r.isStranger(unmap(s.Director)):
		r.hearDirector(c, unmap(s.Director))
		return // it will be sent again
	case m == nil || m.removed():
		return
	case m == r.self:
		r.hearOwnSync(s)
		return
	}
	if r.acceptSync(m, s) {
		m.sync.wrongHash, m.missing = 0, false
		if r.right != nil {
			r.send(r.right, &s)
		}
		// While a nearer right is being connected, its own SYNC comes by here and goes around behind
		// its back. It gets it from us when it is our right.
		if r.right == nil || r.nextRight() {
			m.sync.delayed = &s
		}
	}
	// A new SYNC has found a way around a ring that has changed; ours may have been lost in the change. Copies
	// are no news, otherwise we would send ours for each other's for ever.
	if news := m.sync.copies == 1; r.sync.ringChanged && !r.synced && (news || r.now.Unix() != r.sync.sent.Unix()) {
		r.sendSync()
	}
}

// isStranger notes the SYNC of a director that is not in the list. One may be left over from a director that was
// removed. But who still asks seconds later is in the ring, and we have missed its coming: while somebody was
// remembered as removed here it came back elsewhere. Without us it would ask for ever.
func (r *Ring) isStranger(addr netip.AddrPort) bool {
	first, known := r.strangers[addr]
	switch age := r.now.Sub(first); {
	case known && age >= resendSync-time.Second && age < failureBackoff:
		delete(r.strangers, addr)
		return true
	case !known && len(r.strangers) >= maxMembers:
		clear(r.strangers) // somebody makes them up
	case known && age < failureBackoff:
		return false
	}
	r.strangers[addr] = r.now
	return false
}

// acceptSync says whether another's SYNC is to be passed on. If its hosts are not ours it is not: it must not
// come back to its director. Two in a row with the same other hosts are no race, and all hear ours.
func (r *Ring) acceptSync(m *member, s wire.Sync) bool {
	last := &m.sync
	switch {
	case s.Seq < last.seq && s.Time < last.time+staleSyncReset:
		return false
	case s.Seq != last.seq || s.Time > last.time:
		last.seq, last.time, last.copies = s.Seq, s.Time, 1
	default:
		// It is the same again: by another way, while connections change.
		last.copies++
		if last.copies > syncCopies {
			return false
		}
	}
	ours := r.director.HostsHash()
	if s.HostsHash == 0 || s.HostsHash == ours {
		return true
	}
	if last.wrongHash != s.HostsHash {
		last.wrongHash = s.HostsHash
		return false
	}
	last.wrongHash = 0
	r.log(Error, m.addr, "it has other hosts than we (their hash is %d, ours %d): all are told again", s.HostsHash, ours)
	for _, h := range r.director.HostStates() {
		r.tell(h, nil)
	}
	return false
}

// hearOwnSync: ours has come around.
func (r *Ring) hearOwnSync(s wire.Sync) {
	if s.Seq != r.sync.seq || r.synced {
		return
	}
	if ours := r.director.HostsHash(); s.HostsHash != 0 && s.HostsHash != ours {
		r.log(Warning, r.self.addr, "our SYNC came back with other hosts (hash %d, not %d): once more", s.HostsHash, ours)
		r.sync.wanted = true
		return
	}
	r.minor = s.Minor
	if r.minor < 7 && r.tagged() {
		r.log(Error, r.self.addr, "a director in the ring speaks version 1.%d, which does not know tags, and hosts have tags", r.minor)
	}
	r.handshaked = true
	r.sync.last, r.sync.took = r.now, r.now.Sub(r.sync.began)
	r.becomeSynced()
}

// whole: no director that was our neighbour is missing. (Of others we do not hear when they are lost: their
// neighbours do.)
func (r *Ring) whole() bool {
	for _, m := range r.members {
		if m.missing && !m.removed() {
			return false
		}
	}
	return !r.alone()
}

// becomeSynced: all agree, or we are alone.
func (r *Ring) becomeSynced() {
	r.synced, r.sync.done = true, true
	if r.right != nil {
		r.rightless = time.Time{}
	}
	r.purge(true)
	if others := r.rightwards(); r.right != nil && len(others) > 0 && others[0] != r.right.member && r.preferred.IsZero() {
		r.preferred = r.now.Add(retryPreferred)
	}
}

// sendDelayed passes on what came while there was no right.
func (r *Ring) sendDelayed() {
	for _, m := range r.members {
		if s := m.sync.delayed; s != nil {
			m.sync.delayed = nil
			r.send(r.right, s)
		}
	}
}
