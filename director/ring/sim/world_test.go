package sim

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"usher/director"
)

// Limits of what may happen.
const (
	maxEvents = 2_000_000 // of a whole plan: more is a storm
	// settleTime is what the protocol may need after the last fault: 45 s until a silent neighbour is
	// dropped, 60 s during which a peer that failed is not asked again, 30 s until the preferred one is tried, and
	// the same once more, because one of these may begin when another ends.
	settleTime = 240 * time.Second
)

// epoch is the wall clock's time at the beginning.
var epoch = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// world is one run of a plan.
type world struct {
	plan  *plan
	build builder
	rand  *rand.Rand
	// Sabotage, for tests of the simulation itself.
	drop func(from, to int, data []byte) bool // these bytes get lost
	deaf bool                                 // sessions do not obey Stop

	now    time.Duration
	queue  queue
	count  uint64 // events so far
	number int    // of the last thing numbered

	nodes   []*node
	hosts   []netip.Addr
	ends    []*end
	blocked map[[2]int]int // from node to node: so many partitions are in the way

	checker checker
	failed  *failure
	out     io.Writer // trace; nil: none
	sum     uint64    // of the trace, to compare two runs
	bytes   int       // delivered
}

// failure is what a run ends with when something is wrong.
type failure struct {
	at   time.Duration
	what string // the rule: always the same for the same sort of failure
	text string
}

func (f *failure) Error() string {
	return fmt.Sprintf("at %.3f s: %s", f.at.Seconds(), f.text)
}

// event is something that happens at a moment.
type event struct {
	at   time.Duration
	id   uint64 // at the same moment in the order of their making
	call func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].id < q[j].id
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	*q = (*q)[:last]
	return x
}

func (w *world) after(d time.Duration, call func()) {
	w.number++
	heap.Push(&w.queue, event{w.now + d, uint64(w.number), call})
}

func (w *world) serial() int { w.number++; return w.number }

// fail notes the first thing that is wrong, in words that begin with the rule and a colon; the run ends.
func (w *world) fail(format string, args ...any) {
	if w.failed == nil {
		text := fmt.Sprintf(format, args...)
		rule, _, _ := strings.Cut(text, ":")
		w.failed = &failure{w.now, rule, text}
		w.trace("FAILED: %s", text)
	}
}

func (w *world) trace(format string, args ...any) {
	if w.out != nil {
		fmt.Fprintf(w.out, "%9.4f "+format+"\n", append([]any{w.now.Seconds()}, args...)...)
	}
}

func quote(data []byte) string {
	s := strings.ReplaceAll(strings.TrimSuffix(string(data), "\n"), "\t", " ")
	if len(s) > 600 {
		s = fmt.Sprintf("%s... (%d bytes)", s[:600], len(s))
	}
	return "| " + strings.ReplaceAll(s, "\n", "\n                                    | ")
}

// newWorld prepares a run.
func newWorld(p *plan, b builder) *world {
	w := &world{plan: p, build: b, rand: rand.New(rand.NewPCG(p.seed, 2)), blocked: map[[2]int]int{}}
	for i := range p.hosts {
		w.hosts = append(w.hosts, netip.AddrFrom4([4]byte{10, 2, 0, byte(11 + i)}))
	}
	for i := range p.nodes {
		w.nodes = append(w.nodes, &node{w: w, index: i,
			addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(1 + i)}), 9090), skew: p.skew[i]})
	}
	w.checker.init(w)
	return w
}

// run plays the plan to its end.
func (w *world) run() (failed *failure) {
	defer func() {
		if r := recover(); r != nil {
			failed = &failure{w.now, "panic", fmt.Sprintf("panic: %v\n%s", r, debug.Stack())}
		}
	}()
	for i, n := range w.nodes {
		w.after(w.plan.begin[i], func() { n.start(nil) })
	}
	for _, s := range w.plan.steps {
		w.after(s.at, func() { w.trace("--- %v", s); w.step(s) })
	}
	w.checker.plan()
	for len(w.queue) > 0 && w.failed == nil {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		if w.count++; w.count > maxEvents {
			w.fail("more than %d events", maxEvents)
		}
		w.sum = w.sum*31 + uint64(e.at)
		e.call()
		if w.checker.done {
			break
		}
	}
	return w.failed
}

// step makes one thing of the plan happen.
func (w *world) step(s step) {
	n := w.nodes[s.node]
	host := w.hosts[s.host%len(w.hosts)]
	if n.d == nil && s.kind < reset {
		return // it was never started
	}
	switch s.kind {
	case login:
		n.login(s.user, s.lasts)
	case move:
		tag := w.tag(s.host)
		w.checker.ordered(n, order{kind: move, key: n.d.KeyOf(userName(s.user), tag)}, host.String())
		n.order(func(id uint64) director.Event {
			return director.Move{ID: id, User: userName(s.user), Tag: tag, To: host}
		})
	case kick:
		n.order(func(id uint64) director.Event {
			return director.Kick{ID: id, User: userName(s.user), Tag: w.userTag(s.user)}
		})
	case hostWeight:
		w.checker.ordered(n, order{kind: hostWeight, host: host}, fmt.Sprint(s.value))
		n.order(func(id uint64) director.Event {
			return director.HostPut{ID: id, Host: director.Host{Addr: host, Tag: w.tag(s.host), Weight: s.value}}
		})
	case hostUp, hostDown:
		w.checker.ordered(n, order{kind: hostUp, host: host}, fmt.Sprint(s.kind == hostUp))
		n.order(func(id uint64) director.Event { return director.HostUp{ID: id, Addr: host, Up: s.kind == hostUp} })
	case hostSick, hostWell:
		n.order(func(id uint64) director.Event {
			return director.HostUp{ID: id, Addr: host, Up: s.kind == hostWell, Health: true}
		})
	case hostRemove:
		n.order(func(id uint64) director.Event { return director.HostRemove{ID: id, Addr: host} })
	case hostAdd:
		n.order(func(id uint64) director.Event {
			return director.HostPut{ID: id, Host: director.Host{Addr: host, Tag: w.tag(s.host), Weight: 100}}
		})
	case hostFlush:
		n.order(func(id uint64) director.Event {
			return director.HostFlush{ID: id, Addr: host, Max: s.value, Rate: float64(s.value)}
		})
	case hostForget:
		n.order(func(id uint64) director.Event { return director.HostForgetUsers{ID: id, Addr: host} })
	case reset:
		w.reset(n, w.nodes[s.peer])
	case stall, cut:
		w.block(s.group, s.oneWay, 1)
		w.after(s.lasts, func() { w.trace("--- heal %v", s.group); w.block(s.group, s.oneWay, -1) })
	case crash, die:
		if !n.up {
			return
		}
		left := n.stop(s.kind == die)
		w.after(s.lasts, func() { n.start(left) })
	case leave:
		i := slices.IndexFunc(w.nodes, func(o *node) bool { return o != n && o.up })
		if !n.up || i < 0 {
			return
		}
		n.stop(false)
		other := w.nodes[i]
		if effects, known := other.m.Remove(other.wall(), n.addr); !known {
			w.fail("a director is not known where it is to be removed: node %d at node %d", n.index, i)
		} else {
			other.apply(effects)
		}
		w.after(s.lasts, func() {
			for _, o := range w.nodes { // all of them: none but those that are gone as well needs it
				if o.up {
					o.apply(o.m.Add(o.wall(), n.addr))
				}
			}
			n.start(nil)
		})
	}
	w.checker.disturbed(s)
}

// tag is that of a host.
func (w *world) tag(host int) string {
	if w.plan.tags && host%len(w.hosts)%2 == 1 {
		return "t"
	}
	return ""
}

// userTag is the tag that a user logs in with.
func (w *world) userTag(user int) string { return w.tag(user % 2) }

func userName(i int) string { return fmt.Sprintf("user%d@example.com", i) }

// signature is a number that two equal runs share.
func (w *world) signature() uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, w.sum, w.count, w.bytes)
	return h.Sum64()
}

// lossy reports whether a sabotage swallows these bytes.
func (w *world) lossy(e *end, data []byte) bool {
	return w.drop != nil && e.peer != nil && w.drop(e.node.index, e.peer.node.index, data)
}
