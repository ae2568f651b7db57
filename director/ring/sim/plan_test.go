package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// A plan is everything that will happen from outside. It is data, so that a failing one can be made smaller.
type plan struct {
	seed    uint64
	class   class
	nodes   int
	hosts   int
	tags    bool // every other host has a tag, and users have an entry for each tag
	users   int
	expire  time.Duration
	delay   time.Duration   // director_user_kick_delay
	latency time.Duration   // of the network, one way, at most
	skew    []time.Duration // of each node's clock
	wrong   bool            // clocks differ by seconds: an entry may expire here and live on there, and nobody knows what is newest
	flush   bool            // moves end with a flush command
	begin   []time.Duration // when each node is started
	steps   []step          // ordered by time
	end     time.Duration   // of the last fault or order
}

// class says which faults a plan has.
type class int

const (
	calm     class = iota // none: orders of operators only
	bumpy                 // connections are lost, the network stalls for seconds, directors crash; it never parts
	divided               // partitions
	anything              // all of it
	classes  = iota
)

func (c class) String() string { return [...]string{"calm", "bumpy", "divided", "anything"}[c] }

// kind is what a step does.
type kind int

const (
	login kind = iota
	move
	kick
	hostWeight
	hostUp
	hostDown
	hostRemove
	hostAdd
	hostFlush
	hostForget
	hostSick // the health check of a node says so
	hostWell
	reset // the connections between two nodes break
	stall // packets of some nodes to the others wait for seconds
	cut   // packets of some nodes to the others wait until the partition is healed
	crash // a node's process dies, and its sessions
	die   // its process dies, its sessions live on in the kernel
	leave // it is stopped and removed from the ring, and later added and started again
)

func (k kind) String() string {
	return [...]string{"login", "move", "kick", "weight", "up", "down", "remove", "add", "flush", "forget", "sick", "well",
		"reset", "stall", "cut", "crash", "die", "leave"}[k]
}

// step is one thing that happens.
type step struct {
	at     time.Duration
	kind   kind
	node   int           // where: of a fault the first node concerned
	peer   int           // the other node of a reset
	user   int           // of login, move, kick: the user and the tag
	host   int           // index of the host
	value  int           // weight
	group  []int         // the nodes on one side
	oneWay bool          // packets from group to the others are lost, the other way they pass
	lasts  time.Duration // of a stall, cut, crash; of a login its session
}

func (s step) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%8.3f %s", s.at.Seconds(), s.kind)
	switch s.kind {
	case login:
		fmt.Fprintf(&b, " node %d user %d for %.1fs", s.node, s.user, s.lasts.Seconds())
	case move:
		fmt.Fprintf(&b, " node %d user %d to host %d", s.node, s.user, s.host)
	case kick:
		fmt.Fprintf(&b, " node %d user %d", s.node, s.user)
	case hostWeight:
		fmt.Fprintf(&b, " node %d host %d to %d", s.node, s.host, s.value)
	case reset:
		fmt.Fprintf(&b, " %d-%d", s.node, s.peer)
	case stall, cut:
		fmt.Fprintf(&b, " %v for %.1fs one way %v", s.group, s.lasts.Seconds(), s.oneWay)
	case crash, die, leave:
		fmt.Fprintf(&b, " node %d for %.1fs", s.node, s.lasts.Seconds())
	default:
		fmt.Fprintf(&b, " node %d host %d", s.node, s.host)
	}
	return b.String()
}

func (p *plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s plan of seed %d: %d nodes, %d hosts (tags %v), %d users, flush %v, expire %v, kick delay %v, latency %v, clocks %v, starts %v\n",
		p.class, p.seed, p.nodes, p.hosts, p.tags, p.users, p.flush, p.expire, p.delay, p.latency, p.skew, p.begin)
	for _, s := range p.steps {
		fmt.Fprintf(&b, "  %v\n", s)
	}
	return b.String()
}

// newPlan makes the plan of a seed.
func newPlan(seed uint64) *plan {
	r := rand.New(rand.NewPCG(seed, 1))
	between := func(a, b time.Duration) time.Duration { return a + time.Duration(r.Int64N(int64(b-a)+1)) }
	p := &plan{
		seed: seed, class: class(seed % classes),
		nodes: 1 + r.IntN(5), hosts: 2 + r.IntN(3), users: 2 + r.IntN(8),
		expire:  []time.Duration{60 * time.Second, 90 * time.Second, 15 * time.Minute}[r.IntN(3)],
		delay:   between(0, 2*time.Second),
		latency: []time.Duration{time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond}[r.IntN(3)],
	}
	if p.class == divided && p.nodes == 1 {
		p.nodes = 3
	}
	p.tags = r.IntN(4) == 0
	p.flush = r.IntN(4) == 0
	wrong := 500 * time.Millisecond
	if p.class == anything && r.IntN(3) == 0 {
		p.wrong, wrong = true, 5*time.Second
	}
	for i := range p.nodes {
		p.skew = append(p.skew, between(-wrong, wrong))
		start := between(0, 2*time.Second)
		if i > 0 && r.IntN(6) == 0 {
			start = between(5*time.Second, 60*time.Second)
		}
		p.begin = append(p.begin, start)
	}
	const first = 3 * time.Second
	length := between(20*time.Second, 150*time.Second)
	// Trouble comes in company: much of it happens around the same few moments.
	var moments []time.Duration
	for range r.IntN(4) {
		moments = append(moments, between(0, length))
	}
	add := func(n int, s func() step) {
		for range n {
			x := s()
			x.at = first + between(0, length)
			if len(moments) > 0 && r.IntN(2) == 0 {
				x.at = first + moments[r.IntN(len(moments))] + between(0, 2*p.latency) + between(0, 300*time.Millisecond)
			}
			p.steps = append(p.steps, x)
		}
	}
	node := func() int { return r.IntN(p.nodes) }
	host := func() int { return r.IntN(p.hosts) }
	user := func() int { return r.IntN(p.users) }

	add(20+r.IntN(60), func() step {
		lasts := between(0, 5*time.Second)
		if r.IntN(3) == 0 {
			lasts = between(5*time.Second, 3*time.Minute)
		}
		return step{kind: login, node: node(), user: user(), lasts: lasts}
	})
	add(r.IntN(8), func() step { return step{kind: move, node: node(), user: user(), host: host()} })
	add(r.IntN(3), func() step { return step{kind: kick, node: node(), user: user()} })
	add(r.IntN(5), func() step {
		return step{kind: []kind{hostWeight, hostUp, hostDown}[r.IntN(3)], node: node(), host: host(), value: r.IntN(3) * 50}
	})
	if r.IntN(4) == 0 {
		add(r.IntN(5), func() step {
			return step{kind: []kind{hostSick, hostWell}[r.IntN(2)], node: node(), host: host()}
		})
	}
	if r.IntN(2) == 0 { // what takes entries away makes other checks weaker
		add(r.IntN(4), func() step {
			return step{kind: []kind{hostFlush, hostForget, hostRemove, hostAdd}[r.IntN(4)], node: node(), host: host()}
		})
	}
	if p.nodes > 1 {
		if p.class == bumpy || p.class == anything {
			add(1+r.IntN(5), func() step {
				a := node()
				return step{kind: reset, node: a, peer: (a + 1 + r.IntN(p.nodes-1)) % p.nodes}
			})
			add(r.IntN(3), func() step { return step{kind: stall, group: side(r, p.nodes), lasts: between(0, 8*time.Second)} })
			add(r.IntN(3), func() step {
				s := step{kind: []kind{crash, crash, die, leave}[r.IntN(4)], node: node(), lasts: between(10*time.Millisecond, 40*time.Second)}
				if s.kind == leave {
					s.lasts += 15 * time.Second // a stall does not hold up the removal for so long; see doc.go
				}
				return s
			})
		}
		if p.class == divided || p.class == anything {
			add(1+r.IntN(3), func() step {
				return step{kind: cut, group: side(r, p.nodes), lasts: between(time.Second, 100*time.Second), oneWay: r.IntN(5) == 0}
			})
		}
	}
	slices.SortStableFunc(p.steps, func(a, b step) int { return int(a.at - b.at) })
	p.finish()
	return p
}

// side chooses the nodes on one side of a partition: at least one, and not all.
func side(r *rand.Rand, nodes int) []int {
	all := r.Perm(nodes)[:1+r.IntN(nodes-1)]
	slices.Sort(all)
	return all
}

// finish computes when the last fault is over.
func (p *plan) finish() {
	p.end = slices.Max(p.begin)
	for _, s := range p.steps {
		if s.kind != login {
			p.end = max(p.end, s.at+s.lasts)
		}
	}
}

// without returns the plan without steps [i, j).
func (p *plan) without(i, j int) *plan {
	q := *p
	q.steps = slices.Concat(p.steps[:i], p.steps[j:])
	q.finish()
	return &q
}

// has reports whether the plan has a step of these kinds.
func (p *plan) has(some ...kind) bool {
	return slices.ContainsFunc(p.steps, func(s step) bool { return slices.Contains(some, s.kind) })
}
