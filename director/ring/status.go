package ring

import (
	"net/netip"
	"slices"
	"time"

	"usher/director"
	"usher/director/ring/wire"
)

// Status is the ring for people and for DIRECTOR-LIST.
type Status struct {
	Self       netip.AddrPort
	Handshaked bool
	Synced     bool
	LastSync   time.Time     // our last SYNC that came around, zero: never
	SyncTime   time.Duration // how long it took
	Minor      int
	Directors  []Member // sorted, self included
	Conns      []ConnStatus
	// Silent are the directors that owe us a PONG for longer than usual, sorted: what is written now
	// reaches them late or never.
	Silent []netip.AddrPort
}

// Member is a director of the list.
type Member struct {
	Addr       netip.AddrPort
	Removed    bool
	LastFailed time.Time
	Usher      bool          // one of us, not Dovecot's
	ClockDiff  time.Duration // its clock minus ours, as of ME
	LastError  string
}

// ConnStatus is one connection.
type ConnStatus struct {
	Conn       Conn
	Remote     netip.AddrPort // the director; before ME that of the socket
	Incoming   bool
	Role       string // "left", "right", "in", "out"
	State      string // "connecting", "handshaking", "syncing", "synced"
	Users      int    // received or sent in the handshake
	Ping       time.Duration
	Received   uint64 // bytes
	Sent       uint64 // bytes written
	Queued     int    // bytes not yet written
	QueuedPeak int
	LastRead   time.Time
	LastWrite  time.Time
	Lag        time.Duration // age of the oldest byte not yet written
}

// Status returns the present state.
func (r *Ring) Status(now time.Time) Status {
	s := Status{
		Self: r.self.addr, Handshaked: r.handshaked, Synced: r.synced,
		LastSync: r.sync.last, SyncTime: r.sync.took, Minor: r.minor,
	}
	for _, m := range r.members {
		failed := m.networkFailed
		if m.protocolFailed.After(failed) {
			failed = m.protocolFailed
		}
		s.Directors = append(s.Directors, Member{
			Addr: m.addr, Removed: m.removed(), LastFailed: failed,
			Usher: m.usher() || m == r.self, ClockDiff: m.clockDiff, LastError: m.lastError,
		})
	}
	for _, c := range r.conns {
		s.Conns = append(s.Conns, r.connStatus(c, now))
		if !c.pinged.IsZero() && now.Sub(c.pinged) >= silentAfter && !slices.Contains(s.Silent, c.member.addr) {
			s.Silent = append(s.Silent, c.member.addr)
		}
	}
	slices.SortFunc(s.Silent, before)
	return s
}

// connStatus describes a connection. Its role is its place in the ring, if it has one.
func (r *Ring) connStatus(c *conn, now time.Time) ConnStatus {
	s := ConnStatus{
		Conn: c.id, Remote: c.name(), Incoming: c.incoming, Role: "out", State: "synced",
		Users: c.users, Ping: c.ping, Received: c.received, Sent: c.sent, Queued: c.waiting(), QueuedPeak: c.peak,
		LastWrite: c.lastWrite, Lag: c.lag(now),
	}
	if c.received > 0 {
		s.LastRead = c.lastRead
	}
	switch {
	case c == r.left:
		s.Role = "left"
	case c == r.right:
		s.Role = "right"
	case c.incoming:
		s.Role = "in"
	}
	switch {
	case !c.connected:
		s.State = "connecting"
	case !c.handshaked:
		s.State = "handshaking"
	case !r.synced:
		s.State = "syncing"
	}
	return s
}

// Add adds a director to the list and tells the ring: doveadm director ring add.
func (r *Ring) Add(now time.Time, addr netip.AddrPort) []director.Effect {
	r.enter(now)
	m := r.byAddr[unmap(addr)]
	if m == nil {
		m = r.addMember(unmap(addr))
	}
	if m != r.self {
		// The operator knows that it is there again.
		m.removedAt, m.networkFailed, m.protocolFailed = time.Time{}, time.Time{}, time.Time{}
		r.sync.ringChanged = true
		r.broadcast(&wire.Director{Addr: m.addr}, nil)
		if r.right == nil {
			r.connect()
		}
	}
	return r.leave()
}

// Remove removes a director and tells the ring. False: there is none. If it is ourselves we forget all
// others, and are alone.
func (r *Ring) Remove(now time.Time, addr netip.AddrPort) ([]director.Effect, bool) {
	r.enter(now)
	m := r.byAddr[unmap(addr)]
	if m == nil || m.removed() {
		return r.leave(), false
	}
	if m != r.self {
		r.remove(m, nil)
		return r.leave(), true
	}
	// The others would close their connections to us; we do it ourselves, so that we are alone at once and do not
	// try to come back.
	r.broadcast(&wire.DirectorRemove{Addr: m.addr}, nil)
	for _, other := range r.rightwards() {
		other.removedAt = r.now
	}
	for _, c := range r.conns {
		r.quit(c, "Removing from ring")
		r.forget(c)
	}
	r.connect()
	return r.leave(), true
}
