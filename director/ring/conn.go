package ring

import (
	"net/netip"
	"time"

	"usher/director"
	"usher/director/ring/wire"
)

// goodConnection is how long a connection must have lived for its loss not to count as a failure of the peer.
const goodConnection = 40 * time.Second

// maxIncoming bounds the connections from one address.
const maxIncoming = 16

// A conn is one TCP connection, from the attempt on.
type conn struct {
	id       Conn
	incoming bool
	remote   netip.AddrPort // of the socket
	member   *member        // who it is; nil: incoming, before ME
	began    time.Time      // the attempt, or the accept

	connected  bool
	since      time.Time // connected
	parser     wire.Parser
	version    bool // VERSION has come
	minor      int  // the lower of the peer's and ours
	ready      bool // ME has come: news are sent
	hosts      hostList
	handshaked bool // both have said DONE

	// Of our side of an outgoing handshake.
	cursor   *director.Cursor // how far the users have been told; nil: not begun, or all
	progress time.Time        // last time that some were written
	saidDone bool
	peerDone bool

	listed map[*member]bool // directors that it has listed in an incoming handshake

	users int // of the handshake, in either direction

	asked     bool      // our attempt: somebody has said meanwhile that its director can be reached
	elsewhere *member   // where it was told to connect to
	closeAt   time.Time // after a CONNECT that is wrong; zero: no
	leaveBy   time.Time // it was told to connect elsewhere, and has to go; zero: no
	verifying bool      // somebody else wants to be our left: is this one still alive?

	in       []byte // a line without its end so far
	lastRead time.Time
	received uint64

	out       []byte  // not given to the network yet
	queue     []piece // given, not written yet
	queued    int     // their sum
	peak      int     // most that waited
	lastWrite time.Time
	sent      uint64

	pinged time.Time // when the PING was sent that has no PONG yet; zero: none
	ping   time.Duration
}

// piece is some output.
type piece struct {
	size int
	at   time.Time
}

// addConn puts a new connection at the end: the order is that of time.
func (r *Ring) addConn(c *conn) {
	c.began, c.lastRead = r.now, r.now
	r.conns = append(r.conns[:len(r.conns):len(r.conns)], c)
	r.byConn[c.id] = c
}

// peer is what the form of lines to it depends on.
func (c *conn) peer() wire.Peer {
	return wire.Peer{Minor: c.minor, Usher: c.member != nil && c.member.usher() && c.ready}
}

// waiting is how many bytes have not been written yet.
func (c *conn) waiting() int { return c.queued + len(c.out) }

// name is the peer for people.
func (c *conn) name() netip.AddrPort {
	if c.member != nil {
		return c.member.addr
	}
	return c.remote
}

// send writes a line to a connection. A line that the peer would not take is not written: the user name of a
// kick may be too long.
func (r *Ring) send(c *conn, l wire.Line) { r.sendAs(c, l, c.peer()) }

func (r *Ring) sendAs(c *conn, l wire.Line, to wire.Peer) {
	before := len(c.out)
	c.out = l.Append(c.out, to)
	if n := len(c.out) - before; n > wire.MaxLine {
		r.log(Error, c.name(), "a line of %d bytes is not sent, %d are allowed: %.100q", n, wire.MaxLine, c.out[before:])
		c.out = c.out[:before]
	}
	c.peak = max(c.peak, c.waiting())
}

// flush gives what was written to the network.
func (r *Ring) flush(c *conn) {
	if len(c.out) == 0 || !c.connected {
		return
	}
	r.actions = append(r.actions, Send{Conn: c.id, Data: c.out})
	c.queue = append(c.queue, piece{len(c.out), r.now})
	c.queued += len(c.out)
	c.out = make([]byte, 0, min(len(c.out)+len(c.out)/4, 64<<10)) // the network keeps this one, the next is probably as long
}

// written: the network has got rid of so many bytes.
func (c *conn) written(now time.Time, n int) {
	c.lastWrite = now
	c.sent += uint64(n)
	c.queued -= n
	done := 0
	for done < len(c.queue) && n >= c.queue[done].size {
		n -= c.queue[done].size
		done++
	}
	c.queue = append(c.queue[:0], c.queue[done:]...)
	if len(c.queue) > 0 {
		c.queue[0].size -= n
	}
}

// lag is how long the oldest byte that is not written has been waiting.
func (c *conn) lag(now time.Time) time.Duration {
	if len(c.queue) == 0 {
		return 0
	}
	return now.Sub(c.queue[0].at)
}

// quit says why and closes.
func (r *Ring) quit(c *conn, reason string) {
	// Without VERSION nobody knows whether the peer knows QUIT.
	if c.version && c.minor >= 3 {
		r.send(c, &wire.Quit{Reason: reason})
	}
	r.flush(c)
	r.actions = append(r.actions, Close{Conn: c.id, Reason: reason})
}

// drop closes a connection that we do not want any more.
func (r *Ring) drop(c *conn, reason string) {
	if r.byConn[c.id] == nil {
		return
	}
	r.quit(c, reason)
	r.gone(c)
}

// fail closes a connection whose peer does not keep to the protocol. We avoid it for a while: the same would
// probably happen again.
func (r *Ring) fail(c *conn, command, why string) {
	if r.byConn[c.id] == nil {
		return
	}
	r.log(Error, c.name(), "protocol failure: %s", why)
	if c.member != nil {
		c.member.protocolFailed = r.now
		c.member.lastError = "protocol failure: " + why
		c.member.missing = c.member.missing || c == r.left || c == r.right
	}
	r.drop(c, "Invalid input: "+command)
}

// lost is for a connection that has ended without our doing. An attempt that fails as the last one did is not
// worth a line: it is repeated for as long as nobody is there.
func (r *Ring) lost(c *conn, why string) {
	switch {
	case c.connected:
		r.log(Warning, c.name(), "connection lost: %s", why)
	case c.member.lastError != why:
		r.log(Warning, c.name(), "cannot connect: %s", why)
	}
	r.blame(c, why)
	r.gone(c)
	r.again(c)
}

// again repeats an attempt that began before its director could be reached.
func (r *Ring) again(c *conn) {
	if c.asked && !c.connected && !c.member.removed() && (r.right == nil || r.nearer(c.member, r.right.member) > 0) {
		c.member.networkFailed = time.Time{}
		r.connectTo(c.member)
	}
}

// blame remembers that a connection was lost: its peer is missing if it was a neighbour, and is avoided for a
// while if the connection did not live for long.
func (r *Ring) blame(c *conn, why string) {
	if c.member == nil {
		return
	}
	if c == r.left || c == r.right {
		c.member.missing = true
	}
	c.member.lastError = why
	if !c.connected || r.now.Sub(c.since) < goodConnection {
		c.member.networkFailed = r.now
	}
}

// timeout closes a connection whose peer is silent.
func (r *Ring) timeout(c *conn, reason string) {
	if c.connected || c.member.lastError != reason {
		r.log(Warning, c.name(), "%s", reason)
	}
	r.blame(c, reason)
	r.drop(c, reason)
	r.again(c)
}

// forget takes a connection out of the ring. What that means is looked at afterwards.
func (r *Ring) forget(c *conn) {
	delete(r.byConn, c.id)
	if c.cursor != nil {
		r.director.DumpStop(c.cursor)
		c.cursor = nil
	}
	rest := make([]*conn, 0, len(r.conns))
	for _, other := range r.conns {
		if other != c {
			rest = append(rest, other)
		}
	}
	r.conns = rest
	if r.left == c {
		r.left = nil
	}
	if r.right == c {
		r.right = nil
		if r.rightless.IsZero() {
			r.rightless = r.now
		}
	}
}

// gone is for a connection that has ended: others take its place.
func (r *Ring) gone(c *conn) {
	wasAlone := r.alone() // then it was an attempt to find the others, and nothing has changed
	r.forget(c)
	if !wasAlone {
		r.closeRanks()
	}
	if r.right == nil && r.retry.IsZero() {
		r.connect()
	}
}

// closeRanks: a neighbour may be missing.
func (r *Ring) closeRanks() {
	if r.left == nil {
		r.promoteLeft()
	}
	if r.left == nil || r.right == nil {
		r.unsync()
	}
}
