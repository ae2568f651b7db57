package ring

import (
	"net/netip"
	"time"

	"usher/director/ring/wire"
)

const (
	aloneAfter     = 20 * time.Second // without a right that answers
	retryConnect   = time.Second      // when nobody could be reached, before we are alone
	retryAlone     = 5 * time.Second  // and after it
	retryPreferred = 30 * time.Second // when the right is not the nearest director
)

// connect finds somebody to the right of us: the first that has not failed lately. If nobody is left the
// failures are forgotten, and it begins again a little later.
func (r *Ring) connect() {
	if !r.started {
		return
	}
	r.retry = time.Time{}
	others := r.rightwards()
	if len(others) == 0 {
		r.beAlone()
		return
	}
	for _, m := range others {
		if m.usable(r.now) {
			r.connectTo(m)
			return
		}
	}
	wait := retryConnect
	if r.right == nil && r.now.Sub(r.rightless) >= aloneAfter {
		r.beAlone()
		wait = retryAlone
	}
	// All have failed, so that says nothing about one of them. (Protocol failures are not forgotten: they would
	// be repeated.)
	for _, m := range others {
		m.networkFailed = time.Time{}
	}
	r.retry = r.now.Add(wait)
}

// connectTo connects to a director, unless that is so already.
func (r *Ring) connectTo(m *member) {
	for _, c := range r.conns {
		if !c.incoming && c.member == m && c.closeAt.IsZero() {
			return
		}
	}
	r.mayBeRestarted(m)
	r.lastConn++
	r.addConn(&conn{id: r.lastConn, remote: m.addr, member: m})
	r.actions = append(r.actions, Connect{Conn: r.lastConn, Remote: m.addr})
}

// outgoing: there is a connection to somebody, or an attempt.
func (r *Ring) outgoing() bool {
	for _, c := range r.conns {
		if !c.incoming && c.closeAt.IsZero() {
			return true
		}
	}
	return false
}

// nextRight: a nearer right than the present one is being connected.
func (r *Ring) nextRight() bool {
	for _, c := range r.conns {
		if !c.incoming && c != r.right && r.right != nil && r.nearer(c.member, r.right.member) > 0 {
			return true
		}
	}
	return false
}

// alone: we have given up waiting for others, and decide by ourselves.
func (r *Ring) alone() bool { return r.left == nil && r.right == nil && r.handshaked && r.synced }

// beAlone: nobody can be reached. We serve without them.
func (r *Ring) beAlone() {
	if r.alone() {
		return
	}
	if len(r.rightwards()) > 0 {
		r.log(Warning, r.self.addr, "no other director can be reached: going on alone")
	}
	if left := r.left; left != nil {
		// It can reach us, and we not it: with one direction only no ring would ever be synced.
		r.quit(left, "no connection back to it is possible")
		r.forget(left)
	}
	r.minor, r.handshaked = wire.Minor, true
	r.becomeSynced()
}

// wantsToBeLeft: a director has connected to us and said who it is.
func (r *Ring) wantsToBeLeft(c *conn) {
	left := r.left
	switch {
	case left == nil:
		c.member.networkFailed = time.Time{}
		if r.right == nil && !r.outgoing() {
			r.connect()
		}
	case left.member == c.member:
		// It has lost the old connection, whether we have noticed it or not.
		r.log(Info, left.name(), "its old connection is replaced by a new one")
		r.drop(left, "Replacing with new incoming connection")
	case r.nearer(c.member, left.member) < 0:
		// It is between our left and us: our left should connect to it, not to us. If our left was told so
		// before, it has failed, or there would be no need to connect to us again.
		if left.elsewhere == c.member {
			left.elsewhere = nil
		}
		r.sendConnect(left, c.member)
	default:
		// Our left is between it and us, and it should connect there; unless our left is dead.
		left.verifying = true
		r.sendPing(left)
	}
}

// placeIncoming: an incoming handshake is done.
func (r *Ring) placeIncoming(c *conn) {
	if left := r.left; left != nil && left != c {
		switch {
		case left.member == c.member:
			r.quit(left, "Replacing with new incoming connection")
			r.forget(left)
		case r.nearer(left.member, c.member) < 0 && !left.verifying:
			r.sendElsewhere(c, left.member)
			return
		default:
			// It waits until the present left has gone, which may not have been our left yet when this
			// one said who it is.
			if r.nearer(c.member, left.member) < 0 {
				r.sendConnect(left, c.member)
			}
			return
		}
	}
	r.left = c
	r.placed()
}

// sendElsewhere tells a director that connected to us that this one is its right neighbour.
func (r *Ring) sendElsewhere(c *conn, right *member) {
	r.sendConnect(c, right)
	c.leaveBy = r.now.Add(leaveTimeout)
}

// sendConnect says where to connect to, once.
func (r *Ring) sendConnect(c *conn, right *member) {
	if c.elsewhere != right {
		c.elsewhere = right
		r.send(c, &wire.Connect{Addr: right.addr})
	}
}

// verified: our left has answered, nobody else may take its place.
func (r *Ring) verified(left *conn) {
	left.verifying = false
	r.sendOthersElsewhere()
}

// sendOthersElsewhere tells those that are connected to us, but are to the left of our left, to connect to that.
func (r *Ring) sendOthersElsewhere() {
	for _, c := range r.conns {
		if c.incoming && c.ready && c.leaveBy.IsZero() && r.nearer(r.left.member, c.member) < 0 {
			r.sendElsewhere(c, r.left.member)
		}
	}
}

// promoteLeft: our left has gone, the nearest of those who waited for it takes its place.
func (r *Ring) promoteLeft() {
	for _, c := range r.conns {
		if c.incoming && c.handshaked && c.leaveBy.IsZero() && (r.left == nil || r.nearer(c.member, r.left.member) < 0) {
			r.left = c
		}
	}
	if r.left != nil {
		r.sendOthersElsewhere()
		r.placed()
	}
}

// placeOutgoing: an outgoing handshake is done.
func (r *Ring) placeOutgoing(c *conn) {
	old := r.right
	if old != nil && r.nearer(c.member, old.member) <= 0 {
		r.drop(c, "a nearer right neighbour is connected")
		return
	}
	r.right, r.retry = c, time.Time{}
	if old != nil {
		r.drop(old, "CONNECT requested")
	}
	for _, other := range r.conns {
		// Attempts to reach others began when this one seemed to fail.
		if !other.incoming && other != c && r.nearer(other.member, c.member) < 0 {
			r.drop(other, "a nearer right neighbour is connected")
		}
	}
	r.placed()
	r.sendDelayed()
}

// placed: left or right has changed. Both together are a new ring, which must agree. With one alone we are not in a
// ring yet, but not alone any more either: the others may have users of whom we have not heard.
func (r *Ring) placed() {
	switch {
	case r.left != nil && r.right != nil:
		r.wantSync()
		return
	case r.synced:
		r.unsync()
	}
	r.sync.sent = r.now // nothing to send yet, and nothing to repeat
}

// hearConnect: somebody says who our right neighbour should be.
func (r *Ring) hearConnect(c *conn, right netip.AddrPort) {
	m := r.byAddr[right]
	if m == r.self {
		r.fail(c, "CONNECT", "we should connect to ourselves")
		return
	}
	if m == nil {
		if len(r.members) >= maxMembers {
			r.fail(c, "CONNECT", "there are too many directors")
			return
		}
		m = r.addMember(right)
		r.sync.ringChanged = true
	}
	if m.removed() || r.right != nil && r.nearer(m, r.right.member) <= 0 {
		// The sender does not know something yet, or we do not. Let the dust settle.
		r.log(Info, c.name(), "it asks us to connect to %v, but we have %v", right, r.rightName())
		c.closeAt = r.now.Add(wrongConnectWait)
		return
	}
	m.networkFailed, m.protocolFailed = time.Time{}, time.Time{}
	for _, other := range r.conns {
		other.asked = other.asked || !other.incoming && other.member == m
	}
	r.connectTo(m)
	// If this is our right it stays so until the new connection is ready: the ring stays whole meanwhile.
	if c != r.right && !c.incoming {
		r.drop(c, "CONNECT requested")
	}
}

func (r *Ring) rightName() netip.AddrPort {
	if r.right == nil {
		return netip.AddrPort{}
	}
	return r.right.member.addr
}

// connectPreferred: our right is not the nearest director, maybe that can be reached again.
func (r *Ring) connectPreferred() {
	r.preferred = time.Time{}
	if others := r.rightwards(); len(others) > 0 && r.right != nil && others[0] != r.right.member {
		r.connectTo(others[0])
		r.preferred = r.now.Add(retryPreferred)
	}
}
