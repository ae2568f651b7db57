package ring

import (
	"time"

	"usher/director/ring/wire"
)

// How long is waited for what (ring.md section 12).
const (
	connectTimeout   = 10 * time.Second
	meTimeout        = 10 * time.Second
	doneTimeoutOut   = 30 * time.Second
	doneTimeoutIn    = 40 * time.Second
	leaveTimeout     = 10 * time.Second // after a CONNECT that we have sent
	wrongConnectWait = time.Second

	// Without input, until a PING is sent.
	pingIdle          = 5 * time.Second
	pingIdleHandshake = 15 * time.Second
	pingIdleUnsynced  = time.Second

	// silentAfter is how long a PONG may take until we say that a neighbour does not answer.
	silentAfter = 2 * time.Second
	slowPong    = 5 * time.Second
)

// timer says what a connection waits for.
type timer uint8

const (
	timerNone timer = iota
	timerConnect
	timerMe
	timerDone
	timerLeave
	timerClose
	timerPing
	timerNoInput
	timerNoPong
)

// connTimer returns what is due next on a connection.
func (r *Ring) connTimer(c *conn) (at time.Time, what timer) {
	earlier := func(t time.Time, w timer) {
		if what == timerNone || t.Before(at) {
			at, what = t, w
		}
	}
	if !c.connected {
		return c.began.Add(connectTimeout), timerConnect
	}
	if !c.closeAt.IsZero() {
		earlier(c.closeAt, timerClose)
	}
	if !c.leaveBy.IsZero() {
		earlier(c.leaveBy, timerLeave)
		return at, what // nothing else is expected of it
	}
	if !c.ready {
		earlier(c.since.Add(meTimeout), timerMe)
		return at, what
	}
	if !c.handshaked {
		last, wait := c.lastRead, doneTimeoutIn
		if !c.incoming {
			// A million users take their time, and the peer has nothing to say meanwhile.
			wait = doneTimeoutOut
			if c.progress.After(last) {
				last = c.progress
			}
		}
		earlier(last.Add(wait), timerDone)
	}
	// While the ring is unsynced users wait, so a dead neighbour has to be found soon.
	if c.pinged.IsZero() {
		wait := pingIdleUnsynced
		switch {
		case !c.handshaked:
			wait = pingIdleHandshake
		case r.synced:
			wait = pingIdle
		}
		earlier(c.lastRead.Add(wait), timerPing)
		return at, what
	}
	// Any input is a sign of life, but an answer is wanted as well, if later: the peer may be stuck in
	// reading what we say.
	last := c.pinged
	if c.lastRead.After(last) {
		last = c.lastRead
	}
	earlier(last.Add(r.config.PingIdleTimeout), timerNoInput)
	earlier(c.pinged.Add(r.config.PingMaxTimeout), timerNoPong)
	return at, what
}

// runConnTimers does what is due on all connections.
func (r *Ring) runConnTimers() {
	for _, c := range r.conns {
		for r.byConn[c.id] == c {
			at, what := r.connTimer(c)
			if what == timerNone || at.After(r.now) {
				break
			}
			// The words are those of Dovecot's directors, whose logs people know.
			switch what {
			case timerConnect:
				r.timeout(c, "no connection within 10 seconds")
			case timerMe:
				r.timeout(c, "Handshake timed out")
			case timerDone:
				r.timeout(c, "Handshake timed out")
			case timerLeave, timerClose:
				r.drop(c, "CONNECT requested")
			case timerPing:
				r.sendPing(c)
			case timerNoInput:
				r.timeout(c, "Ping timeout")
			case timerNoPong:
				r.timeout(c, "Pong timeout")
			}
		}
	}
}

// due: a time is set, and has come.
func (r *Ring) due(at time.Time) bool { return !at.IsZero() && !at.After(r.now) }

// runTimers does everything that is due.
func (r *Ring) runTimers() {
	r.runConnTimers()
	r.purge(false)
	if r.due(r.retry) {
		r.retry = time.Time{}
		if r.right == nil {
			r.connect()
		}
	}
	if at := r.aloneAt(); r.due(at) {
		r.beAlone()
	}
	if r.due(r.preferred) {
		r.connectPreferred()
	}
	if at := r.resendAt(); r.due(at) {
		r.sendSync()
	}
	r.push()
}

// aloneAt is when we stop waiting for others: when no connection has gone beyond an attempt for long. (If
// attempts fail one by one, connect sees to it.)
func (r *Ring) aloneAt() time.Time {
	if r.right != nil || r.alone() || r.rightless.IsZero() {
		return time.Time{}
	}
	for _, c := range r.conns {
		if !c.incoming && c.connected {
			return time.Time{}
		}
	}
	return r.rightless.Add(aloneAfter)
}

// resendAt is when our SYNC is sent again, since it did not come around.
func (r *Ring) resendAt() time.Time {
	if r.synced || r.right == nil {
		return time.Time{}
	}
	return r.sync.sent.Add(resendSync)
}

// nextTimer is when something is due next; zero: never.
func (r *Ring) nextTimer() time.Time {
	var next time.Time
	earlier := func(at time.Time) {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	for _, c := range r.conns {
		if at, what := r.connTimer(c); what != timerNone {
			earlier(at)
		}
	}
	for _, m := range r.members {
		if m.removed() {
			earlier(m.removedAt.Add(removedFor))
		}
	}
	earlier(r.retry)
	earlier(r.aloneAt())
	earlier(r.preferred)
	earlier(r.resendAt())
	return next
}

// sendPing asks for a sign of life, unless we wait for one already.
func (r *Ring) sendPing(c *conn) {
	if !c.pinged.IsZero() || !c.ready {
		return
	}
	c.pinged = r.now
	r.send(c, &wire.Ping{Time: r.now.Unix(), Queued: uint64(c.waiting())})
}

// hearPong: a neighbour is alive. One that comes unasked says nothing.
func (r *Ring) hearPong(c *conn) {
	if c.pinged.IsZero() {
		return
	}
	c.ping = r.now.Sub(c.pinged)
	c.pinged = time.Time{}
	if c.ping >= slowPong {
		r.log(Warning, c.name(), "it took %v to answer a PING, with %d bytes to write", c.ping.Round(time.Millisecond), c.waiting())
	}
	if c.verifying {
		r.verified(c)
	}
}
