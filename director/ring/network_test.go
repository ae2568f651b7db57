package ring

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"usher/director"
)

// A network connects Rings in memory, with virtual time. What is sent arrives at once and in order, unless a
// member is down or cut off.
type network struct {
	t     testing.TB
	now   time.Time
	nodes []*node
	queue []delivery
	said  []string // lines, if listening
	hear  bool
}

type node struct {
	addr  netip.AddrPort
	ring  *Ring
	fake  *fakeDirector      // or
	real  *director.Director // either
	peers map[Conn]end
	down  bool // refuses
	cut   bool // swallows
	logs  []string
	out   []director.Effect // of the last event
}

type end struct {
	node *node
	conn Conn
}

type delivery struct {
	to end
	ev Event
}

var epoch = time.Unix(1795434608, 0).UTC()

func addrOf(i int) netip.AddrPort { return netip.MustParseAddrPort(fmt.Sprintf("127.0.1.%d:9090", i)) }

// newNetwork makes n directors that know each other and have the hosts 127.0.2.1 and .2. None is started.
func newNetwork(t testing.TB, n int) *network {
	w := &network{t: t, now: epoch}
	var all []netip.AddrPort
	for i := 1; i <= n; i++ {
		all = append(all, addrOf(i))
	}
	for i := 1; i <= n; i++ {
		node := &node{addr: addrOf(i), fake: newFake("127.0.2.1", "127.0.2.2"), down: true}
		node.ring = newRing(Config{Self: node.addr, Members: all}, node.fake)
		w.nodes = append(w.nodes, node)
	}
	return w
}

// newRealNetwork is newNetwork with real directors.
func newRealNetwork(t testing.TB, n int) *network {
	w := newNetwork(t, n)
	for _, node := range w.nodes {
		node.fake = nil
		node.real = director.New(director.Config{Ring: true})
		node.ring = New(node.ring.config, node.real)
		for _, addr := range []string{"127.0.2.1", "127.0.2.2"} {
			node.ring.Step(w.now, director.HostPut{Host: update(addr, 100).Host, Configured: true})
		}
	}
	return w
}

// restart gives a member a new life.
func (w *network) restart(i int) {
	n := w.nodes[i-1]
	n.fake = newFake("127.0.2.1", "127.0.2.2")
	config := n.ring.config
	config.Seq = uint32(w.now.Unix())
	n.ring, n.peers = newRing(config, n.fake), nil
	w.start(i)
}

func (w *network) start(i int) {
	n := w.nodes[i-1]
	n.down, n.peers = false, map[Conn]end{}
	w.step(n, director.Tick{})
	w.settle()
}

// kill ends a member: its peers see that, unless it is cut off.
func (w *network) kill(i int) {
	n := w.nodes[i-1]
	n.down = true
	for _, peer := range n.peers {
		w.queue = append(w.queue, delivery{peer, Closed{Conn: peer.conn}})
	}
	n.peers = nil
	w.settle()
}

func (w *network) step(n *node, ev director.Event) { w.carry(n, n.ring.Step(w.now, ev)) }

// carry does what a ring wants done.
func (w *network) carry(n *node, out []director.Effect) {
	n.out = out
	for _, a := range n.ring.Actions() {
		switch a := a.(type) {
		case Connect:
			w.connect(n, a)
		case Send:
			peer, ok := n.peers[a.Conn]
			if w.hear {
				for _, line := range strings.Split(strings.TrimSuffix(string(a.Data), "\n"), "\n") {
					w.said = append(w.said, fmt.Sprintf("%v->%v %s", n.addr.Addr(), peer.node.addr.Addr(), line))
				}
			}
			if ok && !n.cut && !peer.node.cut {
				w.queue = append(w.queue, delivery{end{n, a.Conn}, Written{Conn: a.Conn, Bytes: len(a.Data)}})
				w.queue = append(w.queue, delivery{peer, Received{Conn: peer.conn, Data: a.Data}})
			}
		case Close:
			peer, ok := n.peers[a.Conn]
			delete(n.peers, a.Conn)
			if ok && !n.cut && !peer.node.cut {
				w.queue = append(w.queue, delivery{peer, Closed{Conn: peer.conn}})
			}
		case Log:
			n.logs = append(n.logs, fmt.Sprintf("%v: %s", a.Remote, a.Text))
		}
	}
}

func (w *network) connect(n *node, a Connect) {
	me := end{n, a.Conn}
	for _, other := range w.nodes {
		if other.addr != a.Remote {
			continue
		}
		if n.cut || other.cut {
			return // no answer
		}
		if !other.down && other.ring.Allowed(n.addr.Addr()) {
			conn := other.ring.NextConn()
			n.peers[a.Conn], other.peers[conn] = end{other, conn}, me
			from := netip.AddrPortFrom(n.addr.Addr(), 40000+uint16(conn))
			w.queue = append(w.queue, delivery{me, Connected{Conn: a.Conn}}, delivery{end{other, conn}, Accepted{Conn: conn, Remote: from}})
			return
		}
	}
	w.queue = append(w.queue, delivery{me, Closed{Conn: a.Conn, Err: errors.New("connection refused")}})
}

// settle delivers everything.
func (w *network) settle() {
	for i := 0; len(w.queue) > 0; i++ {
		if i > 1_000_000 {
			w.t.Fatal("there is no end of messages")
		}
		d := w.queue[0]
		w.queue = w.queue[1:]
		if closed, ok := d.ev.(Closed); ok {
			delete(d.to.node.peers, closed.Conn)
		}
		if !d.to.node.down {
			w.carry(d.to.node, d.to.node.ring.Hear(w.now, d.ev))
		}
	}
}

// wait lets time pass: every ring is ticked when it wants to.
func (w *network) wait(d time.Duration) {
	end := w.now.Add(d)
	for steps := 0; ; steps++ {
		if steps > 100_000 {
			w.t.Fatal("a ring wants to be ticked all the time")
		}
		next, who := end, (*node)(nil)
		for _, n := range w.nodes {
			if at := n.ring.Next(); !n.down && !at.IsZero() && at.Before(next) {
				next, who = at, n
			}
		}
		if next.After(w.now) {
			w.now = next
		}
		if who == nil {
			w.now = end
			return
		}
		w.step(who, director.Tick{})
		w.settle()
	}
}

// members describes the ring as it is: each director with its left and right.
func (w *network) String() string {
	var b strings.Builder
	for i, n := range w.nodes {
		if n.down {
			continue
		}
		name := func(c *conn) string {
			if c == nil {
				return "-"
			}
			return fmt.Sprint(c.member.addr.Addr().As4()[3])
		}
		state := "handshaking"
		if n.ring.handshaked {
			state = "unsynced"
		}
		if n.ring.synced {
			state = "synced"
		}
		fmt.Fprintf(&b, "%s %d %s %s conns=%d\n", name(n.ring.left), i+1, name(n.ring.right), state, len(n.ring.conns))
	}
	return b.String()
}

func (w *network) want(what string, want ...string) {
	w.t.Helper()
	if got := w.String(); got != strings.Join(want, "\n")+"\n" {
		for _, n := range w.nodes {
			for _, l := range n.logs {
				w.t.Logf("%v says of %s", n.addr, l)
			}
		}
		w.t.Fatalf("%s:\n%swant\n%s", what, got, strings.Join(want, "\n"))
	}
}

func TestTwo(t *testing.T) {
	w := newNetwork(t, 2)
	w.start(1)
	w.start(2)
	w.want("two", "2 1 2 synced conns=2", "1 2 1 synced conns=2")
	for _, n := range w.nodes {
		if n.fake.state != (director.RingState{Handshaked: true, Synced: true, Right: true, Whole: true, Minor: 9}) || n.fake.synced == 0 {
			t.Errorf("%v was told %+v, and %d times that it is synced", n.addr, n.fake.state, n.fake.synced)
		}
	}
	w.wait(10 * time.Minute)
	w.want("two, later", "2 1 2 synced conns=2", "1 2 1 synced conns=2")
}

// TestMany: whoever starts when, the ring is closed in the order of addresses.
func TestMany(t *testing.T) {
	for _, order := range [][]int{{1, 2, 3, 4, 5}, {5, 4, 3, 2, 1}, {3, 1, 5, 2, 4}, {1, 3, 5, 4, 2}} {
		for _, pause := range []time.Duration{0, time.Second, time.Minute} {
			w := newNetwork(t, 5)
			for _, i := range order {
				w.start(i)
				w.wait(pause)
			}
			w.wait(2 * time.Minute)
			w.want(fmt.Sprintf("%v every %v", order, pause), "5 1 2 synced conns=2", "1 2 3 synced conns=2",
				"2 3 4 synced conns=2", "3 4 5 synced conns=2", "4 5 1 synced conns=2")
		}
	}
}

func TestAlone(t *testing.T) {
	w := newNetwork(t, 1)
	w.start(1)
	w.want("the only one", "- 1 - synced conns=0")

	w = newNetwork(t, 3)
	w.start(1)
	w.want("others refuse", "- 1 - handshaking conns=0")
	w.wait(19 * time.Second)
	w.want("after 19 s", "- 1 - handshaking conns=0")
	w.wait(2 * time.Second)
	w.want("after 21 s", "- 1 - synced conns=0")

	w = newNetwork(t, 3)
	w.nodes[1].cut, w.nodes[2].cut = true, true
	w.start(1)
	w.wait(19 * time.Second)
	w.want("others are silent", "- 1 - handshaking conns=1")
	w.wait(2 * time.Second)
	if n := w.nodes[0]; !n.ring.synced {
		t.Errorf("not alone after 21 s: %v", w)
	}
}

// TestLoss: a member dies, the others close the ring around it at once; it comes back.
func TestLoss(t *testing.T) {
	w := newNetwork(t, 4)
	for i := range 4 {
		w.start(i + 1)
	}
	w.wait(time.Minute)
	w.kill(3)
	w.want("without 3", "4 1 2 synced conns=2", "1 2 4 synced conns=2", "2 4 1 synced conns=2")
	w.wait(5 * time.Minute)
	w.restart(3)
	w.wait(time.Second)
	w.want("with 3", "4 1 2 synced conns=2", "1 2 3 synced conns=2", "2 3 4 synced conns=2", "3 4 1 synced conns=2")
	w.kill(1)
	w.kill(2)
	w.kill(3)
	w.wait(19 * time.Second)
	w.want("4 alone, not yet sure", "- 4 - unsynced conns=0")
	w.wait(2 * time.Second)
	w.want("4 alone", "- 4 - synced conns=0")
	w.restart(2)
	w.wait(time.Second)
	w.want("2 comes", "4 2 4 synced conns=2", "2 4 2 synced conns=2")
}

// TestSilence: a member is cut off. Its neighbours PING it after 5 seconds and give up 30 later; attempts
// to reach it again end after 10.
func TestSilence(t *testing.T) {
	w := newNetwork(t, 3)
	for i := range 3 {
		w.start(i + 1)
	}
	w.wait(time.Minute)
	w.nodes[1].cut = true
	w.wait(8 * time.Second)
	if s := w.nodes[0].ring.Status(w.now); len(s.Silent) != 1 || s.Silent[0] != addrOf(2) {
		t.Errorf("after 8 s these are silent: %v", s.Silent)
	}
	w.wait(42 * time.Second)
	if a, c := w.nodes[0].ring, w.nodes[2].ring; !a.synced || !c.synced || a.right.member.addr != addrOf(3) {
		t.Errorf("after 50 s the others are not whole:\n%v", w)
	}
	w.wait(time.Minute)
	if b := w.nodes[1].ring; !b.synced || b.right != nil {
		t.Errorf("after 2 minutes the one that is cut off is not alone:\n%v", w)
	}
	w.nodes[1].cut = false
	w.wait(20 * time.Second)
	w.want("healed", "3 1 2 synced conns=2", "1 2 3 synced conns=2", "2 3 1 synced conns=2")
}

// TestOutputBuffer: a neighbour that reads nothing is given up when too much waits for it, long before the PINGs
// tell.
func TestOutputBuffer(t *testing.T) {
	w := newNetwork(t, 3)
	for i := range 3 {
		w.start(i + 1)
	}
	a := w.nodes[0]
	a.ring.config.OutputBufferSize = 4000
	w.nodes[1].cut = true
	for i := range 200 {
		w.step(a, director.Active{Key: director.Key{Hash: uint32(i + 1)}})
		w.settle()
	}
	if log := strings.Join(a.logs, "\n"); !strings.Contains(log, "127.0.1.2:9090: it does not read: 40") {
		t.Errorf("it is not said why:\n%s", log)
	}
	if a.ring.right != nil && a.ring.right.member.addr == addrOf(2) {
		t.Errorf("it is still there:\n%v", w)
	}
	for _, c := range a.ring.Status(w.now).Conns {
		if c.Queued > 4000 {
			t.Errorf("%d bytes wait for %v", c.Queued, c.Remote)
		}
	}
}

// TestRestartBelow: an Usher that is restarted after it has told more than one command a second begins below its
// old numbers. It is heard all the same, and a new connection of the same process is no new process.
func TestRestartBelow(t *testing.T) {
	w := newNetwork(t, 3)
	for i := range 3 {
		w.start(i + 1)
	}
	say := func(i int) {
		t.Helper()
		heard := len(w.nodes[i%3].fake.heard)
		host := netip.MustParseAddr("127.0.2.1")
		w.nodes[i-1].ring.tell(director.UserKickHash{Hash: 1, Except: host}, nil)
		w.carry(w.nodes[i-1], nil)
		w.settle()
		if n := len(w.nodes[i%3].fake.heard) - heard; n != 1 {
			t.Errorf("it was heard %d times", n)
		}
	}
	w.restart(1) // once, so that it counts from the time
	for range 100 {
		say(1)
	}
	last := w.nodes[0].ring.seq
	w.kill(1)
	w.wait(9 * time.Second)
	w.restart(1)
	if n := w.nodes[0].ring.seq; n >= last {
		t.Fatalf("it begins at %d, above %d", n, last)
	}
	w.wait(time.Minute)
	for range 5 {
		say(1)
	}
	known := w.nodes[1].ring.byAddr[addrOf(1)].seqs
	c := w.nodes[0].ring.right
	w.nodes[0].ring.drop(c, "test")
	w.carry(w.nodes[0], nil)
	w.settle()
	w.wait(time.Minute)
	if w.nodes[1].ring.byAddr[addrOf(1)].seqs.last < known.last {
		t.Error("after a new connection its numbers were forgotten")
	}
}
