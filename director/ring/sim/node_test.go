package sim

import (
	"bytes"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"usher/director"
	"usher/director/ring"
)

// How long the things of a node take.
const (
	dialTime    = 30 * time.Millisecond // from Assigned to a session, at most; now and then slowDial
	slowDial    = 4 * time.Second
	stopTime    = 300 * time.Millisecond // from Stop to the end of a session, at most; now and then slowStop
	slowStop    = 3 * time.Second
	moveTimeout = 30 * time.Second
	// answerTime is the 30 s after which a lookup is refused, and time for a clock that ticks late.
	answerTime = 35 * time.Second
)

// machine is a director in a ring: *ring.Ring, or something that plays it.
type machine interface {
	Step(now time.Time, ev director.Event) []director.Effect
	Hear(now time.Time, ev ring.Event) []director.Effect
	Actions() []ring.Action
	Next() time.Time
	Allowed(remote netip.Addr) bool
	NextConn() ring.Conn
	Status(now time.Time) ring.Status
	Synced() bool
	Add(now time.Time, member netip.AddrPort) []director.Effect
	Remove(now time.Time, member netip.AddrPort) ([]director.Effect, bool)
}

// builder makes the machine of a node and the director inside it.
type builder func(ring.Config, director.Config) (machine, *director.Director)

// node is one director with its place in the world: a clock, connections, clients.
type node struct {
	w     *world
	index int
	addr  netip.AddrPort
	skew  time.Duration

	up   bool
	life int // counts the starts
	m    machine
	d    *director.Director

	conns    map[ring.Conn]*end
	sessions []*session // logging in or live
	lookups  map[uint64]*session
	orders   map[uint64]string // not yet answered
	last     uint64            // request, order
	kernel   map[director.Key]director.EntryPut
	names    map[director.Key][]string
	tick     int // the number of the tick that is waited for
}

// session is one client's login, from its Lookup to its end.
type session struct {
	node    *node
	user    string
	lasts   time.Duration
	key     director.Key
	host    netip.Addr
	epoch   uint32
	live    bool
	late    bool // it began when it was stopped already
	stopped bool
	reason  director.StopReason // of stopped
	at      time.Duration       // of stopped
}

// remains is what a dead process leaves in its state file and in the kernel.
type remains struct {
	orders   director.Orders
	sessions []*session
	kernel   map[director.Key]director.EntryPut
	names    map[director.Key][]string
	at       time.Time
}

func (n *node) wall() time.Time { return epoch.Add(n.w.now + n.skew) }

// start starts the process, with what an earlier one has left or nil.
func (n *node) start(left *remains) {
	w := n.w
	n.up = true
	n.life++
	n.conns = map[ring.Conn]*end{}
	n.lookups, n.orders = map[uint64]*session{}, map[uint64]string{}
	n.kernel, n.names = map[director.Key]director.EntryPut{}, map[director.Key][]string{}
	n.sessions = nil
	members := make([]netip.AddrPort, len(w.nodes))
	for i, m := range w.nodes {
		members[i] = m.addr
	}
	n.m, n.d = w.build(
		ring.Config{Self: n.addr, Members: members, Seq: uint32(n.wall().Unix())},
		directorConfig(w.plan))
	w.trace("node %d: starts", n.index)
	for i, h := range w.hosts {
		n.step(director.HostPut{Host: director.Host{Addr: h, Tag: w.tag(i), Weight: 100}, Configured: true})
	}
	if left != nil {
		n.step(director.Restore{Orders: left.orders})
		n.adopt(left)
	}
	n.step(director.Tick{})
	w.checker.dirty = true
}

// adopt hands what an earlier process has left to the director. Sessions of an epoch that is not that of
// their entry were stopped by the kernel.
func (n *node) adopt(left *remains) {
	entries := map[director.Key]*director.Adopted{}
	for key, put := range left.kernel {
		entries[key] = &director.Adopted{Key: key, Host: put.Host, Epoch: put.Epoch,
			LastRefresh: left.at, Users: left.names[key], Sessions: map[string]int{}}
	}
	n.kernel, n.names = left.kernel, left.names
	for _, s := range left.sessions {
		if e := entries[s.key]; e != nil && e.Epoch == s.epoch && s.live {
			e.Sessions[s.user]++
			n.sessions = append(n.sessions, s)
		} else {
			s.live = false
		}
	}
	var all []director.Adopted
	for _, key := range slices.SortedFunc(maps.Keys(entries), compareKeys) {
		all = append(all, *entries[key])
	}
	n.step(director.Adopt{Entries: all})
}

// stop kills the process. What lives on in the kernel is returned, if anything may.
func (n *node) stop(survive bool) *remains {
	n.w.trace("node %d: dies, its sessions live on: %v", n.index, survive)
	n.up = false
	left := &remains{kernel: n.kernel, names: n.names, at: n.wall()}
	for _, s := range n.sessions {
		if survive && s.live && !s.stopped {
			left.sessions = append(left.sessions, s)
		} else {
			s.live = false
		}
	}
	n.sessions = slices.Clone(left.sessions)
	// The kernel closes its connections; what it had not sent may get lost.
	for _, c := range slices.Sorted(maps.Keys(n.conns)) {
		if e := n.conns[c]; e.peer != nil {
			e.out = e.out[:n.w.rand.IntN(len(e.out)+1)]
			e.open = false
			n.w.send(e, packet{last: true, err: errReset})
		}
	}
	n.conns = nil
	n.w.checker.dirty = true
	if n.w.rand.IntN(3) > 0 { // the file is written a little later
		left.orders = n.d.Orders()
	}
	if !survive {
		left.kernel, left.names = map[director.Key]director.EntryPut{}, map[director.Key][]string{}
	}
	return left
}

func (n *node) step(ev director.Event) {
	if !n.up {
		return
	}
	if _, ok := ev.(director.Tick); !ok {
		n.w.trace("node %d: %T%+v", n.index, ev, ev)
	}
	n.apply(n.m.Step(n.wall(), ev))
}

func (n *node) hear(ev ring.Event) {
	switch ev.(type) {
	case ring.Received, ring.Written:
	default:
		n.w.trace("node %d: %T%+v", n.index, ev, ev)
		n.w.checker.dirty, n.w.checker.changed = true, n.w.now
	}
	n.apply(n.m.Hear(n.wall(), ev))
}

// received hands on what came, sometimes cut in two.
func (n *node) received(e *end, data []byte) {
	pieces := [][]byte{data}
	if len(data) > 1 && n.w.rand.IntN(4) == 0 {
		i := 1 + n.w.rand.IntN(len(data)-1)
		pieces = [][]byte{data[:i], data[i:]}
	}
	for _, p := range pieces {
		if !e.alive() {
			return
		}
		p = bytes.Clone(p)
		n.hear(ring.Received{Conn: e.conn, Data: p})
		for i := range p {
			p[i] = '#' // it may not be kept
		}
	}
}

// order gives an order that is answered by Done.
func (n *node) order(make func(id uint64) director.Event) {
	if !n.up {
		return
	}
	n.last++
	id, life := n.last, n.life
	ev := make(id)
	n.orders[id] = ""
	limit := moveTimeout + n.w.plan.delay + 5*time.Second
	if _, ok := ev.(director.HostFlush); ok {
		limit *= 3 // it waits for moves of others first
	}
	n.w.after(limit, func() {
		if _, waits := n.orders[id]; waits && n.up && n.life == life {
			n.w.fail("an order was not answered: node %d %+v", n.index, ev)
		}
	})
	n.step(ev)
}

// login begins one: the lookup, and what follows.
func (n *node) login(number int, lasts time.Duration) {
	if !n.up {
		return
	}
	user, tag := userName(number), n.w.userTag(number)
	n.last++
	request, life := n.last, n.life
	s := &session{node: n, user: user, lasts: lasts, key: n.d.KeyOf(user, tag)}
	n.lookups[request] = s
	n.w.after(answerTime, func() {
		if n.lookups[request] != nil && n.up && n.life == life {
			n.w.fail("a lookup was not answered: node %d user %s", n.index, user)
		}
	})
	n.step(director.Lookup{Request: request, User: user, Tag: tag})
}

// apply carries out what the director wants, in order.
func (n *node) apply(effects []director.Effect) {
	w := n.w
	for _, f := range effects {
		w.trace("node %d:   %T%+v", n.index, f, f)
		switch f := f.(type) {
		case director.Assigned:
			s := n.lookups[f.Request]
			if s == nil {
				w.fail("an answer to no lookup: node %d %+v", n.index, f)
				continue
			}
			delete(n.lookups, f.Request)
			n.assigned(s, f)
		case director.Refused:
			if n.lookups[f.Request] == nil {
				w.fail("an answer to no lookup: node %d %+v", n.index, f)
			}
			delete(n.lookups, f.Request)
			w.checker.refused(n, f)
		case director.EntryPut:
			n.kernel[f.Key] = f
		case director.NamePut:
			n.names[f.Key] = append(n.names[f.Key], f.User)
		case director.EntryDrop:
			delete(n.kernel, f.Key)
			delete(n.names, f.Key)
		case director.Stop:
			if !w.deaf {
				n.stopSessions(f)
			}
		case director.Done:
			if _, ok := n.orders[f.ID]; !ok {
				w.fail("an answer to no order: node %d %+v", n.index, f)
			}
			delete(n.orders, f.ID)
			w.checker.answered(n, f)
		case director.Flush:
			key := f.Key
			ok, life := w.rand.IntN(2) == 0, n.life
			w.after(time.Second, func() {
				if n.life == life {
					n.step(director.Flushed{Key: key, OK: ok})
				}
			})
		case director.Conflict:
			w.checker.conflict(n, f)
		case director.Tell, director.Pass, director.SyncNeeded, director.Invalid:
			w.fail("an effect that is the ring's own business: node %d %T%+v", n.index, f, f)
		}
	}
	w.do(n, n.m.Actions())
	n.schedule()
}

// schedule asks for the next tick.
func (n *node) schedule() {
	n.tick++
	next := n.m.Next()
	if next.IsZero() {
		return
	}
	number := n.tick
	in := max(next.Sub(n.wall()), 100*time.Microsecond)
	n.w.after(in, func() {
		if n.up && n.tick == number {
			n.step(director.Tick{})
		}
	})
}

// assigned logs in at the host, and reports it when that is done.
func (n *node) assigned(s *session, f director.Assigned) {
	w := n.w
	s.host, s.epoch, s.key = f.Host.Addr, f.Epoch, f.Key
	n.sessions = append(n.sessions, s)
	w.checker.assigned(s)
	takes := time.Duration(w.rand.Int64N(int64(dialTime)))
	if w.rand.IntN(20) == 0 {
		takes = time.Duration(w.rand.Int64N(int64(slowDial)))
	}
	life := n.life
	w.after(takes, func() {
		// A login that was stopped meanwhile is given up; unless that comes just too late.
		if n.life != life || !n.up || s.stopped && (w.now-s.at > 20*time.Millisecond || w.rand.IntN(2) == 0) {
			n.forget(s)
			return
		}
		s.live = true
		n.step(director.SessionStart{Key: s.key, User: s.user, Epoch: s.epoch})
		if !s.stopped {
			w.checker.started(s)
		} else if s.reason != director.StopStale {
			// It was stopped just before it began, and nobody waited for it: that is what the kick delay is for.
			s.late = true
			n.endSoon(s)
		}
		w.after(s.lasts, func() { n.end(s) })
	})
}

// end ends a live session, at the latest by its client.
func (n *node) end(s *session) {
	if !s.live {
		return
	}
	s.live = false
	n.forget(s)
	n.step(director.SessionEnd{Key: s.key, User: s.user, Epoch: s.epoch})
}

func (n *node) forget(s *session) {
	n.sessions = slices.DeleteFunc(n.sessions, func(x *session) bool { return x == s })
}

func (n *node) endSoon(s *session) {
	w := n.w
	takes := time.Duration(w.rand.Int64N(int64(stopTime)))
	if w.rand.IntN(20) == 0 {
		takes = time.Duration(w.rand.Int64N(int64(slowStop)))
	}
	w.after(takes, func() { n.end(s) })
}

func (n *node) stopSessions(f director.Stop) {
	for _, s := range n.sessions {
		if s.key == f.Key && s.epoch <= f.Epoch && (f.User == "" || f.User == s.user) && !s.stopped {
			s.stopped, s.reason, s.at = true, f.Reason, n.w.now
			if s.live {
				n.endSoon(s)
			}
		}
	}
}

// isTimeout reports whether a move was given up.
func isTimeout(err error) bool { return errors.Is(err, director.ErrMoveTimeout) }
