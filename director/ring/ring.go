package ring

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"usher/director"
	"usher/director/ring/wire"
)

// Config says who we are in the ring. Zero values mean the defaults.
type Config struct {
	Self    netip.AddrPort   // our listening address, as the others know us
	Members []netip.AddrPort // all that were configured, with or without Self
	// Seq is the sequence number before our first command: the unix time of the start, so that the numbers
	// of a restarted director are higher than before, without anything stored, unless it told more than one
	// command a second. (Neighbours begin anew with it in any case.)
	Seq              uint32
	PingIdleTimeout  time.Duration // no input at all after a PING; 0: 30 s
	PingMaxTimeout   time.Duration // no PONG after a PING; 0: 60 s
	OutputBufferSize int           // bytes waiting on one connection, more closes it; 0: 10 MB
}

// decider is what the Ring needs of its Director.
type decider interface {
	Step(now time.Time, ev director.Event) []director.Effect
	Next() time.Time
	HostsHash() uint32
	HostStates() []director.HostUpdate
	Dump(c *director.Cursor, most int, yield func(director.UserUpdate)) (more bool)
	DumpStop(c *director.Cursor)
}

// A Ring is a Director together with its place in a ring. It takes the place of the Director: what the node
// wants goes in by Step, what happens on the network by Hear, and what both cause comes out as effects for
// the node, and as Actions for the network. Like the Director it is pure: one goroutine owns it.
type Ring struct {
	config   Config
	director decider

	now     time.Time         // of the present Step or Hear
	out     []director.Effect // of the present Step or Hear
	actions []Action
	started bool   // the first Tick has come
	life    uint64 // of this process, as Ushers know it: the time of its first event

	self     *member
	members  []*member // sorted, self included
	byAddr   map[netip.AddrPort]*member
	conns    []*conn // oldest first; replaced, never changed in place, when one goes
	byConn   map[Conn]*conn
	lastConn Conn

	left, right *conn     // our place, once their handshakes are done
	rightless   time.Time // since when there is no ring with a right that was ever synced; zero: there is
	retry       time.Time // when to look for a right again; zero: no need
	preferred   time.Time // when to try whether a nearer right is reachable; zero: no need

	seq        uint32 // of our last command
	handshaked bool   // once true, it stays
	synced     bool
	minor      int                // of the ring
	told       director.RingState // what the director knows of the above
	sync       ownSync
	heard      heard     // what the director is being asked about
	user       wire.User // being told

	verdicts  map[netip.Addr]bool          // our own health checks
	strangers map[netip.AddrPort]time.Time // directors that are not in the list: when their first SYNC came
}

// New returns a ring that is nowhere yet: nothing is connected before the first Tick. The caller puts hosts
// and adopts entries before.
func New(config Config, d *director.Director) *Ring { return newRing(config, d) }

func newRing(config Config, d decider) *Ring {
	if config.PingIdleTimeout == 0 {
		config.PingIdleTimeout = 30 * time.Second
	}
	if config.PingMaxTimeout == 0 {
		config.PingMaxTimeout = time.Minute
	}
	if config.OutputBufferSize == 0 {
		config.OutputBufferSize = 10 << 20
	}
	r := &Ring{
		config:   config,
		director: d,
		byAddr:   make(map[netip.AddrPort]*member),
		byConn:   make(map[Conn]*conn),
		seq:      config.Seq,
		minor:    wire.Minor,
		sync:     ownSync{seq: config.Seq},
		verdicts: make(map[netip.Addr]bool),

		strangers: make(map[netip.AddrPort]time.Time),
	}
	r.self = r.addMember(unmap(config.Self))
	for _, m := range config.Members {
		if r.byAddr[unmap(m)] == nil {
			r.addMember(unmap(m))
		}
	}
	return r
}

// Step hands an event of this node to the director. Tick drives the ring's timers as well.
func (r *Ring) Step(now time.Time, ev director.Event) []director.Effect {
	r.enter(now)
	switch ev := ev.(type) {
	case director.Tick:
		if !r.started {
			r.started, r.rightless = true, r.now
			r.connect()
		}
		r.decide(ev)
	case director.HealthSay:
		r.sayHealth(ev)
	default:
		r.decide(ev)
	}
	return r.leave()
}

// Hear takes what happens on the network. Events about connections that are closed already are ignored.
func (r *Ring) Hear(now time.Time, ev Event) []director.Effect {
	r.enter(now)
	switch ev := ev.(type) {
	case Accepted:
		r.accepted(ev)
	case Connected:
		if c := r.byConn[ev.Conn]; c != nil && !c.connected {
			r.connected(c)
		}
	case Received:
		if c := r.byConn[ev.Conn]; c != nil {
			r.received(c, ev.Data)
		}
	case Written:
		if c := r.byConn[ev.Conn]; c != nil {
			c.written(r.now, ev.Bytes)
			r.dump(c)
		}
	case Closed:
		if c := r.byConn[ev.Conn]; c != nil {
			why := "closed by the peer"
			if ev.Err != nil {
				why = ev.Err.Error()
			}
			r.lost(c, why)
		}
	}
	return r.leave()
}

// enter does first what became due since the last time.
func (r *Ring) enter(now time.Time) {
	r.now = now
	if r.life == 0 {
		r.life = uint64(max(1, now.UnixMilli()))
	}
	if r.started {
		r.runTimers()
	}
}

// leave does what waited for the end, since it would be done too often otherwise: one block of input may
// change many hosts and needs one SYNC.
func (r *Ring) leave() []director.Effect {
	for _, c := range r.conns {
		if c.waiting() > r.config.OutputBufferSize {
			r.timeout(c, fmt.Sprintf("it does not read: %d bytes wait for it, %d are allowed", c.waiting(), r.config.OutputBufferSize))
		}
	}
	r.push()
	for r.sync.wanted {
		r.sendSync()
		r.push()
	}
	out := r.out
	r.out = nil
	return out
}

// push tells the director about the ring if there is something new.
func (r *Ring) push() {
	for r.started {
		state := director.RingState{
			Handshaked: r.handshaked, Synced: r.synced, Right: r.right != nil, Whole: r.whole(), Minor: r.minor,
		}
		switch {
		case state != r.told:
			r.told = state
			r.decide(state)
		case r.sync.done:
			r.sync.done = false
			r.decide(director.RingSynced{})
		default:
			return
		}
	}
}

// Actions returns what is to be done on the network since the last call, in order.
func (r *Ring) Actions() []Action {
	for _, c := range r.conns {
		r.flush(c)
	}
	actions := r.actions
	r.actions = nil
	return actions
}

// Next returns when the next Tick has something to do.
func (r *Ring) Next() time.Time {
	if !r.started {
		return time.Unix(1, 0) // now
	}
	next := r.director.Next()
	if at := r.nextTimer(); next.IsZero() || !at.IsZero() && at.Before(next) {
		next = at
	}
	return next
}

// Allowed reports whether a connection from this address may be accepted: that of a director in the list.
func (r *Ring) Allowed(remote netip.Addr) bool {
	return slices.ContainsFunc(r.members, func(m *member) bool { return !m.removed() && m.addr.Addr() == remote.Unmap() })
}

// NextConn returns a number for an accepted connection.
func (r *Ring) NextConn() Conn {
	r.lastConn++
	return r.lastConn
}

// Synced reports whether the ring agrees at the moment.
func (r *Ring) Synced() bool { return r.synced }

// Quit tells all neighbours that we leave and closes all connections: the daemon is about to end. No others are
// made.
func (r *Ring) Quit(now time.Time) {
	r.now, r.started = now, false
	for _, c := range r.conns {
		r.quit(c, "Shutting down")
		r.forget(c)
	}
}

func (r *Ring) log(level Level, remote netip.AddrPort, format string, args ...any) {
	r.actions = append(r.actions, Log{Level: level, Remote: remote, Text: fmt.Sprintf(format, args...)})
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
