package ring

import (
	"bytes"
	"fmt"
	"time"

	"usher/director"
	"usher/director/ring/wire"
)

// Users are told in pieces, so that a million of them neither fill the buffer nor hold up everything else.
const (
	usersAtOnce = 10000   // lines
	usersQueued = 1 << 20 // bytes that may wait before the next piece is written
)

// maxHosts bounds a list of hosts.
const maxHosts = 1 << 16

// clockTolerance is how much clocks may differ before people hear of it.
const clockTolerance = time.Second

// A hostList is where the list of hosts of an incoming handshake stands.
type hostList struct {
	open bool // between HOST-HAND-START and HOST-HAND-END
	mode hostListMode
	list []director.HostUpdate // of replace
}

type hostListMode uint8

const (
	mergeHosts   hostListMode = iota // both are in a ring, or none is
	replaceHosts                     // the sender is in a ring that we join: its list is the one
	ignoreHosts                      // we are in a ring that the sender joins
)

// accepted: somebody has connected. Who it is we learn by ME; until then it can only waste a little memory, and that
// is bounded by the number of connections per address.
func (r *Ring) accepted(ev Accepted) {
	r.lastConn = max(r.lastConn, ev.Conn)
	if !r.Allowed(ev.Remote.Addr()) { // not any more
		r.actions = append(r.actions, Close{Conn: ev.Conn, Reason: "it is not a director of the ring"})
		return
	}
	c := &conn{id: ev.Conn, incoming: true, remote: unmap(ev.Remote), connected: true, since: r.now}
	n := 0
	for _, other := range r.conns {
		if other.incoming && other.remote.Addr() == c.remote.Addr() {
			n++
		}
	}
	if n >= maxIncoming {
		r.log(Warning, c.remote, "it has %d connections already, one more is refused", n)
		r.actions = append(r.actions, Close{Conn: c.id, Reason: "too many connections"})
		return
	}
	r.addConn(c)
	r.greet(c)
}

// connected: an attempt of ours has succeeded. Whoever connects tells whom it knows, so that two directors that
// were configured with different lists end up with the same one.
func (r *Ring) connected(c *conn) {
	c.connected, c.since, c.lastRead = true, r.now, r.now
	r.greet(c)
	for _, m := range r.members {
		if !m.removed() {
			r.send(c, &wire.Director{Addr: m.addr})
		}
	}
}

// greet says what both ends say first.
func (r *Ring) greet(c *conn) {
	r.send(c, &wire.Version{Name: wire.Protocol, Major: wire.Major, Minor: wire.Minor})
	r.send(c, &wire.Me{Addr: r.self.addr, Time: r.now.Unix(), Usher: r.life})
}

// received cuts input into lines. What is left over is bounded by the longest line.
func (r *Ring) received(c *conn, data []byte) {
	c.lastRead = r.now
	c.received += uint64(len(data))
	for len(data) > 0 && r.byConn[c.id] == c {
		i := bytes.IndexByte(data, '\n')
		if n := len(c.in) + i; i >= 0 && n >= wire.MaxLine || i < 0 && len(c.in)+len(data) >= wire.MaxLine {
			r.fail(c, string(wire.Command(append(c.in, data[:min(len(data), 32)]...))), "a line is too long")
			return
		}
		if i < 0 {
			c.in = append(c.in, data...)
			return
		}
		line := data[:i]
		if len(c.in) > 0 {
			c.in = append(c.in, line...)
			line, c.in = c.in, c.in[:0]
		}
		data = data[i+1:]
		r.line(c, line)
		r.heard = heard{}
		r.push()
	}
}

// line handles one line: first what may come at all at this moment, then what it says.
func (r *Ring) line(c *conn, text []byte) {
	l, err := c.parser.Parse(text)
	if err != nil {
		r.fail(c, string(wire.Command(text)), fmt.Sprintf("%v in %.200q", err, text))
		return
	}
	bad := func(why string) { r.fail(c, string(wire.Command(text)), fmt.Sprintf("%s: %.200q", why, text)) }

	// These three may come before we know who it is.
	switch l := l.(type) {
	case *wire.Quit:
		r.hearQuit(c, l.Reason)
		return
	case *wire.Version:
		if c.version {
			bad("VERSION twice")
		} else {
			r.hearVersion(c, l)
		}
		return
	case *wire.Me:
		if !c.version || c.ready {
			bad("ME comes once, after VERSION")
		} else {
			r.hearMe(c, l)
		}
		return
	}
	if !c.ready {
		bad("not before ME")
		return
	}
	// Within the list of hosts HOST has another form, and nothing else is told.
	if c.hosts.open {
		switch l := l.(type) {
		case *wire.HandHost:
			r.hearHandHost(c, l)
		case *wire.HandEnd:
			r.hearHandEnd(c)
		default:
			bad("in the list of hosts")
		}
		return
	}
	switch l := l.(type) {
	case *wire.User:
		// Older peers list the users of a handshake this way; only there they tell a time.
		hand := c.minor < 9 && l.Refreshed != 0
		l.Weak = l.Weak && hand
		r.hear(c, l, director.Heard{Message: l.UserUpdate, Handshake: hand})
	case *wire.HandUser:
		c.users++
		r.hear(c, l, director.Heard{Message: l.UserUpdate, Handshake: true})
	case *wire.Told:
		r.hearTold(c, l)
	case *wire.UserKilled:
		r.hear(c, l, director.Heard{Message: l.UserKilled})
	case *wire.Health:
		if !c.member.usher() {
			bad("unknown command")
			return
		}
		r.hearHealth(c, l)
	case *wire.Sync:
		r.hearSync(c, *l)
	case *wire.Ping:
		r.send(c, &wire.Pong{Time: r.now.Unix(), Queued: uint64(c.waiting())})
	case *wire.Pong:
		r.hearPong(c)
	case *wire.Director:
		r.hearDirector(c, unmap(l.Addr))
	case *wire.DirectorRemove:
		r.hearRemove(c, unmap(l.Addr))
	case *wire.Connect:
		r.hearConnect(c, unmap(l.Addr))
	case *wire.Options:
		if !l.ConsistentHashing {
			bad("a director without consistent hashing puts users elsewhere")
		}
	case *wire.HandStart:
		if !c.incoming || c.handshaked {
			bad("only who connects lists hosts, and only in the handshake")
			return
		}
		r.hearHandStart(c, l)
	case *wire.Done:
		if c.peerDone {
			bad("DONE twice")
			return
		}
		r.hearDone(c)
	default:
		bad("not here")
	}
}

// hearVersion: the major version must be ours; the lower of the minor versions decides what we say (append.go of
// package wire, and understands).
func (r *Ring) hearVersion(c *conn, v *wire.Version) {
	c.version, c.minor = true, min(v.Minor, wire.Minor)
	switch {
	case v.Name != wire.Protocol || v.Major != wire.Major:
		r.fail(c, "VERSION", fmt.Sprintf("it speaks %q version %d, not %q version %d", v.Name, v.Major, wire.Protocol, wire.Major))
	case v.Minor < 7 && r.tagged():
		// It would put users with a tag on hosts of any tag.
		r.fail(c, "VERSION", fmt.Sprintf("it speaks version 1.%d, which does not know tags, and hosts have tags", v.Minor))
	}
}

// tagged: a host that users may be on has a tag.
func (r *Ring) tagged() bool {
	for _, h := range r.director.HostStates() {
		if h.Host.Tag != "" && h.Host.Weight > 0 {
			return true
		}
	}
	return false
}

// hearMe: the peer says who it is.
func (r *Ring) hearMe(c *conn, me *wire.Me) {
	addr := unmap(me.Addr)
	m := r.byAddr[addr]
	switch {
	case addr == r.self.addr: // a mistake of the configuration: two have the same address, or a way leads back to us
		r.fail(c, "ME", "it says that it is us")
		return
	case !c.incoming && addr != c.member.addr:
		r.fail(c, "ME", fmt.Sprintf("it says that it is %v", addr))
		return
	case addr.Addr() != c.remote.Addr(): // otherwise any member could speak as any other
		r.fail(c, "ME", fmt.Sprintf("it says that it is %v", addr))
		return
	case m == nil && len(r.members) >= maxMembers:
		r.fail(c, "ME", "there are too many directors")
		return
	case m == nil:
		m = r.addMember(addr)
	}
	c.member, c.ready = m, true
	// A director that was removed cannot connect. Here another one at the same address was, or it came back.
	m.removedAt = time.Time{}
	if m.life != me.Usher || !m.usher() {
		m.restarted()
	}
	m.life = me.Usher
	if me.Time != 0 {
		m.clockDiff = time.Duration(me.Time-r.now.Unix()) * time.Second
		if m.clockDiff.Abs() > clockTolerance {
			r.log(Warning, addr, "its clock differs from ours by %v", m.clockDiff)
		}
	}
	if !c.incoming {
		r.tellAll(c)
		return
	}
	// What it did wrong it would do again; a minute later somebody may have mended it.
	if recent(m.protocolFailed, r.now) {
		r.drop(c, "Invalid input: ME")
		return
	}
	r.wantsToBeLeft(c)
}

// tellAll is our side of an outgoing handshake: all hosts, then all users.
func (r *Ring) tellAll(c *conn) {
	// The list is written in one go: no news may come in between, since HOST there means something else.
	r.send(c, &wire.HandStart{Handshaked: r.handshaked})
	for _, h := range r.director.HostStates() {
		r.send(c, &wire.HandHost{HostUpdate: h})
	}
	r.send(c, &wire.HandEnd{Handshaked: r.handshaked})
	c.progress = r.now
	// Entries that we have although we were never in this ring come from an earlier life. The ring may have
	// moved these users since, so they are told as ordinary news, by the director, when we know what
	// the others know.
	if r.handshaked {
		c.cursor = new(director.Cursor)
		r.dump(c)
		return
	}
	r.allTold(c)
}

// dump writes the next piece of the users, if there are more and there is room.
func (r *Ring) dump(c *conn) {
	for c.cursor != nil && c.waiting() < usersQueued && r.byConn[c.id] == c {
		c.progress = r.now
		before := c.users
		more := r.director.Dump(c.cursor, usersAtOnce, func(u director.UserUpdate) {
			c.users++
			r.send(c, &wire.HandUser{UserUpdate: u})
		})
		if !more {
			c.cursor = nil
			r.allTold(c)
		} else if c.users > before {
			return // the next when this is written
		}
	}
}

// allTold ends our side. Peers older than minor 5 know no DONE, and so no end of a handshake: they time out.
func (r *Ring) allTold(c *conn) {
	if c.minor >= 5 {
		r.send(c, &wire.Options{ConsistentHashing: true})
		r.send(c, &wire.Done{})
		c.saidDone = true
	}
	if c.peerDone {
		r.handshakeDone(c)
	}
}

// hearHandStart: whose hosts count? Those of a ring, when one of the two is in a ring and the other is not.
func (r *Ring) hearHandStart(c *conn, l *wire.HandStart) {
	c.hosts = hostList{open: true}
	switch {
	case l.Handshaked && !r.handshaked:
		c.hosts.mode = replaceHosts
	case !l.Handshaked && r.handshaked:
		c.hosts.mode = ignoreHosts
	}
}

// hearHandHost: a host of the list. In the place of ours they come all at once, when the list is complete.
func (r *Ring) hearHandHost(c *conn, l *wire.HandHost) {
	switch c.hosts.mode {
	case mergeHosts:
		r.hear(c, l, director.Heard{Message: l.HostUpdate, Handshake: true})
	case replaceHosts:
		if c.hosts.list = append(c.hosts.list, l.HostUpdate); len(c.hosts.list) > maxHosts {
			r.fail(c, "HOST", "there are too many hosts")
		}
	}
}

// hearHandEnd: the list is complete.
func (r *Ring) hearHandEnd(c *conn) {
	list := c.hosts
	c.hosts = hostList{}
	if list.mode == replaceHosts {
		r.heard = heard{conn: c, line: &wire.HandEnd{}, handed: true}
		r.decide(director.HostsReplace{Hosts: list.list})
	}
}

// hearDone: the peer has told everything. If it has connected to us this is the moment to let the others know it.
func (r *Ring) hearDone(c *conn) {
	c.peerDone = true
	if c.incoming {
		r.send(c, &wire.Done{})
		c.saidDone = true
		r.tellUnlisted(c)
		r.broadcast(&wire.Director{Addr: c.member.addr}, c.member)
	}
	if c.saidDone || c.minor < 5 {
		r.handshakeDone(c)
	}
}

// handshakeDone: both have said everything, the connection gets its place.
func (r *Ring) handshakeDone(c *conn) {
	c.handshaked = true
	c.member.networkFailed = time.Time{}
	c.member.lastError = ""
	if took := r.now.Sub(c.since); took >= 29*time.Second {
		r.log(Warning, c.name(), "the handshake took %v", took.Round(time.Second))
	}
	if c.incoming {
		r.placeIncoming(c)
	} else {
		r.placeOutgoing(c)
	}
	if r.byConn[c.id] == c && c.member.usher() {
		r.tellHealth(c)
	}
}

// hearQuit: the peer is about to close. It would not be polite to count that as a failure, but if it happens
// soon after connecting it would happen again; unless it was we who should go elsewhere.
func (r *Ring) hearQuit(c *conn, reason string) {
	r.log(Info, c.name(), "closed by the peer: %s", reason)
	if reason != "CONNECT requested" {
		r.blame(c, "closed by the peer: "+reason)
	}
	r.drop(c, "Invalid input: QUIT")
}
