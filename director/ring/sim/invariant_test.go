package sim

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"usher/director"
)

// checker knows what must hold, and what need not hold at the moment.
//
// While the ring is whole, each user is on one host: at no time are two sessions of a user live on two
// hosts, on whatever nodes. The ring is whole while all directors that serve are connected with each
// other, by way of others at least: then a message lost with one connection comes another way. It is not
// during a partition, nor while a director is dead whose sessions live on in its kernel: nobody can end those.
// From then on the rule is off, until everybody has been connected and synced for calmTime; at that
// moment every user must be on one host again.
type checker struct {
	w      *world
	dirty  bool           // connections have changed since the last look
	parted map[[2]int]int // as world.blocked, of partitions only

	changed time.Duration // the last time that a connection came or went

	broken bool          // the rule is off
	since  time.Duration // for as long everybody is connected and synced, if broken

	disorder  time.Duration     // of the last thing that may take entries away without an end of sessions
	moved     time.Duration     // of the last order to move a user
	twins     time.Duration     // when two directors were last told to move the same user, at nearly the same time
	moves     map[uint32]placed // the last ones, by user hash
	orders    map[order]placed  // the last ones
	conflicts int
	settled   time.Duration // after the last fault, when all agreed for the first time
	done      bool
}

const calmTime = 5 * time.Second

// twinTime is how long before another one an order to move the same user may be and yet be under way: the
// other must have heard of it, and both moves may have to wait for sessions to end.
const twinTime = slowStop + 2*time.Second

// twin reports whether such orders may be the reason of what is seen now; see doc.go.
func (c *checker) twin() bool {
	return c.twins > 0 && c.w.now-c.twins < moveTimeout+c.w.plan.delay+twinTime
}

// order is what an operator decides about, and placed what he has decided last.
type order struct {
	kind kind
	key  director.Key // of a move
	host netip.Addr   // of the others
}

type placed struct {
	at    time.Duration
	value string
	node  *node
	id    uint64 // of the event
	clear bool   // nothing else was ordered shortly before, so that it is clear which was the last
}

func (c *checker) init(w *world) {
	c.w = w
	c.parted = map[[2]int]int{}
	c.orders, c.moves = map[order]placed{}, map[uint32]placed{}
	c.dirty = true
}

// plan arranges when to look.
func (c *checker) plan() {
	var poll func()
	poll = func() {
		c.look()
		c.w.after(250*time.Millisecond, poll)
	}
	poll()
	end := c.w.plan.end
	// Somebody logs in all the time: rules about entries are void without entries.
	for i := range 20 {
		c.w.after(end+time.Duration(i)*11*time.Second, func() {
			c.w.nodes[i%c.w.plan.nodes].login(i%c.w.plan.users, time.Duration(i)*time.Second)
		})
	}
	c.w.after(end+settleTime, c.final)
}

// disturbed notes what weakens the rules.
func (c *checker) disturbed(s step) {
	switch s.kind {
	case cut, stall:
		if s.kind == stall && !c.bypassed(s) {
			return
		}
		c.part(s, 1)
		c.w.after(s.lasts, func() { c.part(s, -1) })
	case die:
		c.dirty = true
	case hostRemove, hostForget, hostFlush: // a flush forgets the users when there is no other host
		c.disorder = c.w.now
	}
}

// bypassed reports whether the ring may close without those who are silent during a stall, because connections
// break at the same time: to their peers that is a partition.
func (c *checker) bypassed(s step) bool {
	return slices.ContainsFunc(c.w.plan.steps, func(o step) bool {
		return (o.kind == reset || o.kind == crash || o.kind == die || o.kind == leave) &&
			o.at+o.lasts > s.at-2*time.Second && o.at < s.at+s.lasts+time.Second
	})
}

func (c *checker) part(s step, by int) {
	for i := range c.w.nodes {
		for j := range c.w.nodes {
			if slices.Contains(s.group, i) != slices.Contains(s.group, j) {
				c.parted[[2]int{i, j}] += by
			}
		}
	}
	c.dirty = true
	c.look()
}

func compareKeys(a, b director.Key) int {
	return cmp.Or(cmp.Compare(a.Hash, b.Hash), cmp.Compare(a.Tag, b.Tag))
}

// whole reports whether all directors that serve, or whose sessions live on, are connected.
func (c *checker) whole() bool {
	var serving []*node
	for _, n := range c.w.nodes {
		switch {
		case !n.up && len(n.sessions) > 0:
			return false
		case n.up && n.m.Status(n.wall()).Handshaked:
			serving = append(serving, n)
		}
	}
	if len(serving) < 2 {
		return true
	}
	seen := map[int]bool{serving[0].index: true}
	todo := []*node{serving[0]}
	for len(todo) > 0 {
		n := todo[0]
		todo = todo[1:]
		for _, e := range n.conns {
			if e.peer == nil || !e.peer.alive() {
				continue
			}
			if to := e.peer.node; !seen[to.index] && c.parted[[2]int{n.index, to.index}] == 0 {
				seen[to.index] = true
				todo = append(todo, to)
			}
		}
	}
	for _, n := range serving {
		if !seen[n.index] {
			return false
		}
	}
	return true
}

// synced reports whether all running directors say that the ring agrees.
func (c *checker) synced() bool {
	return !slices.ContainsFunc(c.w.nodes, func(n *node) bool { return !n.up || !n.m.Synced() })
}

// look finds out whether the ring is whole.
func (c *checker) look() {
	if c.dirty || c.broken {
		c.dirty = false
		whole := c.whole()
		if !whole && !c.broken {
			c.w.trace("=== the ring is broken")
		}
		c.broken = c.broken || !whole
		if c.broken && (!whole || !c.synced()) {
			c.since = c.w.now
		}
	}
	if c.broken && c.w.now-c.since >= calmTime {
		c.w.trace("=== the ring is whole")
		c.broken = false
		c.audit("after a partition was healed")
	}
	if c.w.now >= c.w.plan.end && c.settled == 0 && c.disagreement() == "" {
		c.settled = c.w.now
	}
}

// live returns the live sessions of every user and tag.
func (c *checker) live() map[director.Key][]*session {
	all := map[director.Key][]*session{}
	for _, n := range c.w.nodes {
		for _, s := range n.sessions {
			if s.live {
				all[s.key] = append(all[s.key], s)
			}
		}
	}
	return all
}

// audit checks every user.
func (c *checker) audit(when string) {
	all := c.live()
	for _, key := range slices.SortedFunc(maps.Keys(all), compareKeys) {
		for _, s := range all[key][1:] {
			if first := all[key][0]; s.host != first.host && !s.stopped && !first.stopped {
				c.w.fail("two hosts "+when+": user %s on %v at node %d and on %v at node %d", s.user, first.host, first.node.index, s.host, s.node.index)
			}
		}
	}
}

// assigned: a login was sent to a host.
func (c *checker) assigned(*session) { c.dirty = true; c.look() }

// started: a session has begun.
func (c *checker) started(s *session) {
	c.look()
	if c.broken || c.w.plan.wrong {
		return
	}
	for _, other := range c.live()[s.key] {
		// Where hosts were removed or entries forgotten, sessions that were stopped may end a little
		// later than others begin elsewhere: only moves wait for all directors. And a USER that was on its way may
		// bring back what was forgotten.
		if other.host == s.host || other.late || c.twin() || c.disorder > 0 && (other.stopped || c.w.now-c.disorder < time.Minute) {
			continue
		}
		c.w.fail("two hosts in a whole ring: user %s is on %v at node %d (stopped: %v %v), now also on %v at node %d",
			s.user, other.host, other.node.index, other.stopped, other.reason, s.host, s.node.index)
	}
}

// conflict: a director has found that another had a user elsewhere.
func (c *checker) conflict(n *node, f director.Conflict) {
	c.conflicts++
	c.look()
	// A move may be heard of by the list of users that opens a connection before it comes by itself.
	moving := slices.ContainsFunc(c.w.nodes, func(n *node) bool { return n.up && n.d.Moving() > 0 })
	if !c.broken && !c.w.plan.wrong && c.disorder == 0 && !moving && (c.moved == 0 || c.w.now-c.moved > 10*time.Second) {
		c.w.fail("a conflict in a whole ring: node %d %+v", n.index, f)
	}
}

// refused: a login was turned away.
func (c *checker) refused(n *node, f director.Refused) {}

// ordered notes an order.
func (c *checker) ordered(n *node, o order, value string) {
	if !n.up {
		return
	}
	if o.kind == move {
		c.moved = c.w.now
	}
	last, ok := c.orders[o]
	if o.kind == move {
		// By hash: what is said about ended sessions has no tag either.
		before, ok := c.moves[o.key.Hash]
		if ok && (before.node != n || before.value != o.key.Tag) && c.w.now-before.at < twinTime {
			c.twins = c.w.now
		}
		c.moves[o.key.Hash] = placed{at: c.w.now, node: n, value: o.key.Tag}
	}
	// Orders are dated in seconds of clocks that differ by up to one.
	p := placed{at: c.w.now, value: value, node: n, clear: !ok || c.w.now-last.at > 2500*time.Millisecond}
	if o.kind != move && c.state(n, o) == value {
		p.clear = false // it changes nothing there, and others may never hear of it
	}
	if !n.m.Status(n.wall()).Handshaked { // it knows nothing yet: what the ring says stands above
		c.disorder, p.clear = c.w.now, false
	}
	p.id = n.last + 1
	c.orders[o] = p
}

// answered: an order has ended.
func (c *checker) answered(n *node, f director.Done) {
	c.look()
	// USER-KILLED goes from neighbour to neighbour: it gets lost when they change.
	if isTimeout(f.Err) && c.w.plan.class == calm && !c.twin() && c.w.now-c.changed > moveTimeout+c.w.plan.delay+time.Second {
		c.w.fail("a move timed out in a calm ring: node %d %v", n.index, f.Err)
	}
	if f.Err != nil {
		for o, p := range c.orders {
			if p.node == n && p.id == f.ID {
				p.clear = false
				c.orders[o] = p
			}
		}
	}
}

// disagreement says in what running directors differ, or nothing.
func (c *checker) disagreement() string {
	var first *node
	for _, n := range c.w.nodes {
		if !n.up {
			return fmt.Sprintf("node %d does not run", n.index)
		}
		if !n.m.Synced() {
			return fmt.Sprintf("node %d is not synced", n.index)
		}
		if first == nil {
			first = n
			continue
		}
		if a, b := hostText(first), hostText(n); a != b {
			return fmt.Sprintf("hosts: node %d has %s, node %d has %s", first.index, a, n.index, b)
		}
	}
	at := map[director.Key]director.EntryInfo{}
	count := map[director.Key]int{}
	for _, n := range c.w.nodes {
		for e := range n.d.Entries() {
			before, ok := at[e.Key]
			if ok && before.Host != e.Host {
				return fmt.Sprintf("entry %v is on %v, at node %d on %v", e.Key, before.Host, n.index, e.Host)
			}
			if !ok || e.LastRefresh.After(before.LastRefresh) {
				at[e.Key] = e
			}
			count[e.Key]++
		}
	}
	now := epoch.Add(c.w.now)
	for key, e := range at {
		// What is about to expire may be gone here and not yet there; and what is forgotten by order may be learnt
		// again from a USER that was on its way.
		if c.disorder == 0 && count[key] < len(c.w.nodes) && now.Sub(e.LastRefresh) < c.w.plan.expire/2 && now.Sub(e.LastRefresh) > 5*time.Second {
			return fmt.Sprintf("entry %v (refreshed %v) is known to %d of %d directors", key, now.Sub(e.LastRefresh), count[key], len(c.w.nodes))
		}
	}
	all := c.live()
	for _, sessions := range all {
		for _, s := range sessions {
			if e, ok := at[s.key]; !s.stopped && (!ok || e.Host != s.host) {
				return fmt.Sprintf("user %s has a session on %v at node %d, its entry says %v", s.user, s.host, s.node.index, e.Host)
			}
		}
	}
	return ""
}

func hostText(n *node) string {
	var all []string
	for _, h := range n.d.Hosts() {
		all = append(all, fmt.Sprintf("%v weight %d up %v tag %q", h.Addr, h.Weight, h.Up, h.Tag))
	}
	return strings.Join(all, ", ")
}

// final is the end: everything must be well.
func (c *checker) final() {
	w := c.w
	c.look()
	if text := c.disagreement(); text != "" {
		w.fail("no agreement after the last fault: %s", text)
		return
	}
	if c.broken {
		w.fail("the ring is not whole after the last fault")
	}
	c.audit("at the end")
	c.newestOrders()
	// Everybody is served, on every node.
	serving := slices.ContainsFunc(w.nodes[0].d.Hosts(), func(h director.HostInfo) bool { return h.Up && h.Weight > 0 })
	for _, n := range w.nodes {
		if n.d.Moving() > 0 {
			w.fail("a move does not end: %d at node %d", n.d.Moving(), n.index)
		}
		n.login(0, time.Second)
	}
	w.after(3*time.Second, func() {
		for _, n := range w.nodes {
			if len(n.lookups) > 0 && serving {
				w.fail("logins wait in a healthy ring: %d at node %d", len(n.lookups), n.index)
			}
		}
	})
	if w.plan.expire > 2*time.Minute {
		w.after(4*time.Second, func() { c.done = true })
		return
	}
	// And nothing is left when everybody has gone. Sessions last for 3 minutes at most.
	w.after(3*time.Minute+w.plan.expire+90*time.Second, func() {
		for _, n := range w.nodes {
			if n.d.Users() > 0 || len(n.kernel) > 0 || len(n.sessions) > 0 {
				w.fail("something is left: node %d has %d entries, %d in the kernel, %d sessions", n.index, n.d.Users(), len(n.kernel), len(n.sessions))
			}
		}
		c.done = true
	})
}

// newestOrders checks that what operators ordered last is so. Crashes may take an order along before
// anybody has heard it, and the removal of a host what was ordered about it.
func (c *checker) newestOrders() {
	w := c.w
	if w.plan.wrong || w.plan.has(crash, die, leave, hostRemove, hostAdd, hostFlush, hostForget, hostSick, hostWell) {
		return
	}
	for o, p := range c.orders {
		if !p.clear || o.kind == move && w.plan.expire < settleTime+3*time.Minute { // it may have expired since
			continue
		}
		if is := c.state(w.nodes[0], o); is != p.value && is != "" {
			w.fail("the newest order does not stand: %s of user %v or host %v was ordered to be %s at %.3f s at node %d, and is %s", o.kind, o.key, o.host, p.value, p.at.Seconds(), p.node.index, is)
		}
	}
}

// state says how it is at a node what an order is about, or nothing if it is not there.
func (c *checker) state(n *node, o order) string {
	if o.kind == move {
		if e, ok := n.d.Entry(o.key); ok {
			return e.Host.String()
		}
		return ""
	}
	for _, h := range n.d.Hosts() {
		switch {
		case h.Addr != o.host:
		case o.kind == hostUp:
			return fmt.Sprint(h.Up)
		default:
			return fmt.Sprint(h.Weight)
		}
	}
	return ""
}
