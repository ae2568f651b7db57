package sim

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"usher/director/ring"
)

// window is how much a kernel takes of what was sent before the peer has it.
const window = 256 << 10

var (
	errReset   = errors.New("connection reset by peer")
	errRefused = errors.New("connection refused")
)

// end is one side of a connection.
type end struct {
	node  *node
	life  int // of the node: it may have crashed since
	conn  ring.Conn
	peer  *end
	open  bool // neither closed here nor known here to be closed
	ready bool // Accepted or Connected was told: nothing is received before

	out        []packet // sent, not yet at the peer
	unwritten  int      // bytes not yet reported as written
	delivering bool
}

// packet is what was sent in one piece; the last one of a connection has no data.
type packet struct {
	data []byte
	at   time.Duration // not before
	last bool
	err  error // that the peer hears with the last
}

func (e *end) alive() bool { return e.open && e.node.up && e.node.life == e.life }

// reachable reports whether packets pass from a to b at the moment.
func (w *world) reachable(a, b *node) bool { return w.blocked[[2]int{a.index, b.index}] == 0 }

// block makes packets from one group of nodes to all others wait, or lets them pass again.
func (w *world) block(group []int, oneWay bool, by int) {
	in := map[int]bool{}
	for _, i := range group {
		in[i] = true
	}
	for i := range w.nodes {
		for j := range w.nodes {
			if in[i] && !in[j] || !oneWay && in[j] && !in[i] {
				w.blocked[[2]int{i, j}] += by
			}
		}
	}
	if by < 0 {
		for _, e := range w.ends {
			w.deliver(e)
		}
	}
}

// latency draws the time that a packet takes.
func (w *world) latency() time.Duration {
	return w.plan.latency/10 + time.Duration(w.rand.Int64N(int64(w.plan.latency)))
}

// connect tries to reach a director for as long as the connection is wanted, as a kernel repeats its SYN.
func (w *world) connect(e *end, to netip.AddrPort) {
	if !e.alive() || e.peer != nil {
		return
	}
	var target *node
	for _, n := range w.nodes {
		if n.addr == to {
			target = n
		}
	}
	if target == nil || !w.reachable(e.node, target) || !w.reachable(target, e.node) {
		w.after(time.Second, func() { w.connect(e, to) })
		return
	}
	if !target.up {
		w.after(w.latency(), func() { w.closed(e, errRefused) })
		return
	}
	from := netip.AddrPortFrom(e.node.addr.Addr(), uint16(30000+w.serial()%30000))
	other := &end{node: target, life: target.life, peer: e, open: true, ready: true}
	e.peer = other
	allowed := target.m.Allowed(from.Addr())
	if allowed {
		other.conn = target.m.NextConn()
		target.conns[other.conn] = other
		w.ends = append(w.ends, other)
		target.hear(ring.Accepted{Conn: other.conn, Remote: from})
	}
	w.after(w.latency(), func() {
		if !e.alive() {
			return
		}
		e.ready = true
		e.node.hear(ring.Connected{Conn: e.conn})
		w.deliver(other)
		if !allowed {
			w.after(w.latency(), func() { w.closed(e, nil) })
		}
	})
}

// closed tells an end that its connection is gone.
func (w *world) closed(e *end, err error) {
	if !e.alive() {
		return
	}
	e.open = false
	delete(e.node.conns, e.conn)
	e.node.hear(ring.Closed{Conn: e.conn, Err: err})
}

// send puts a packet on the way.
func (w *world) send(e *end, p packet) {
	if e.peer == nil {
		return
	}
	p.at = w.now + w.latency()
	if n := len(e.out); n > 0 {
		p.at = max(p.at, e.out[n-1].at) // a connection keeps its order
	}
	e.out = append(e.out, p)
	e.unwritten += len(p.data)
	w.written(e)
	w.deliver(e)
}

// written tells the sender what has left.
func (w *world) written(e *end) {
	waiting := 0
	for _, p := range e.out {
		waiting += len(p.data)
	}
	if n := e.unwritten - max(0, waiting-window); n > 0 && e.alive() {
		e.unwritten -= n
		w.after(0, func() {
			if e.alive() {
				e.node.hear(ring.Written{Conn: e.conn, Bytes: n})
			}
		})
	}
}

// deliver brings the next packet of an end to its peer, when its time has come.
func (w *world) deliver(e *end) {
	if e.delivering || len(e.out) == 0 || !w.reachable(e.node, e.peer.node) || e.peer.alive() && !e.peer.ready {
		return // block calls again when the way is free, connect when there is one
	}
	e.delivering = true
	w.after(max(0, e.out[0].at-w.now), func() {
		e.delivering = false
		if len(e.out) == 0 || !w.reachable(e.node, e.peer.node) {
			return
		}
		p := e.out[0]
		e.out = e.out[1:]
		w.bytes += len(p.data)
		switch to := e.peer; {
		case p.last:
			w.closed(to, p.err)
		case !to.alive(): // whoever is not there any more answers with a reset
			e.out = nil
			w.after(w.latency(), func() { w.closed(e, errReset) })
		default:
			to.node.received(to, p.data)
			w.written(e)
		}
		w.deliver(e)
	})
}

// reset breaks all connections between two nodes. What was on the way is lost.
func (w *world) reset(a, b *node) {
	for _, e := range w.ends {
		if e.peer != nil && e.node == a && e.peer.node == b && (e.alive() || e.peer.alive()) {
			e.out, e.peer.out = nil, nil
			w.after(w.latency(), func() { w.closed(e, errReset) })
			w.after(w.latency(), func() { w.closed(e.peer, errReset) })
		}
	}
}

// do carries out what a node's ring wants of the network.
func (w *world) do(n *node, actions []ring.Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case ring.Connect:
			if n.conns[a.Conn] != nil {
				w.fail("a connection's number is used twice: node %d number %d", n.index, a.Conn)
			}
			e := &end{node: n, life: n.life, conn: a.Conn, open: true}
			n.conns[a.Conn] = e
			w.ends = append(w.ends, e)
			w.trace("node %d: connect %d to %v", n.index, a.Conn, a.Remote)
			w.after(w.latency(), func() { w.connect(e, a.Remote) })
		case ring.Send:
			w.trace("node %d: send %s %s", n.index, n.connName(a.Conn), quote(a.Data))
			if e := n.conns[a.Conn]; e == nil {
				w.fail("data for a connection that is not there: node %d number %d", n.index, a.Conn)
			} else if len(a.Data) > 0 && !w.lossy(e, a.Data) {
				w.send(e, packet{data: a.Data})
			}
		case ring.Close:
			w.trace("node %d: close %s: %s", n.index, n.connName(a.Conn), a.Reason)
			if e := n.conns[a.Conn]; e == nil {
				w.fail("the end of a connection that is not there: node %d number %d", n.index, a.Conn)
			} else {
				e.open = false
				delete(n.conns, a.Conn)
				w.send(e, packet{last: true})
			}
		case ring.Log:
			w.trace("node %d: log %v %v: %s", n.index, a.Level, a.Remote, a.Text)
		}
	}
}

// connName says who is at the other end of a connection.
func (n *node) connName(c ring.Conn) string {
	if e := n.conns[c]; e != nil && e.peer != nil {
		return fmt.Sprintf("%d(to node %d)", c, e.peer.node.index)
	}
	return fmt.Sprint(c)
}
