package ring

import (
	"maps"
	"net/netip"
	"slices"

	"usher/director"
	"usher/director/ring/wire"
)

// heard is the line that the director is being told about: what Pass passes, and to whom not. Everything is
// zero while the director is stepped for another reason.
type heard struct {
	conn *conn
	line wire.Line
	// adopted: nobody knows who said it first, so it is passed as if it were us. Otherwise the receivers
	// could not tell when they have seen it.
	adopted bool
	// handed: it is the list of hosts that the sender has handed over: it needs none of it back.
	handed bool
}

// source is the director that needs not be told.
func (h heard) source() *member {
	if h.conn == nil {
		return nil
	}
	return h.conn.member
}

// decide steps the director, and does what it wants of the ring. The rest is for the node.
func (r *Ring) decide(ev director.Event) {
	var invalid error
	for _, e := range r.director.Step(r.now, ev) {
		switch e := e.(type) {
		case director.Pass:
			r.pass()
		case director.Tell:
			except := r.heard.source()
			if e.Source && !r.heard.handed {
				except = nil
			}
			r.tell(e.Message, except)
		case director.SyncNeeded:
			r.wantSync()
		case director.Invalid:
			invalid = e.Err
		default:
			r.out = append(r.out, e)
		}
	}
	if h := r.heard; invalid != nil && h.conn != nil {
		text := h.line.Append(nil, h.conn.peer())
		r.fail(h.conn, string(wire.Command(text)), invalid.Error())
	}
}

// hear lets the director decide about a line.
func (r *Ring) hear(c *conn, l wire.Line, ev director.Heard) {
	r.heard = heard{conn: c, line: l}
	ev.Usher = c.member.usher()
	r.decide(ev)
}

// hearTold is hear for a line with an origin: it comes several ways, and counts once.
func (r *Ring) hearTold(c *conn, l *wire.Told) {
	r.heard = heard{conn: c, line: l}
	again, own := false, false
	m := r.byAddr[unmap(l.Origin.Director)]
	switch {
	case m == nil || m.removed():
		r.heard.adopted = true
	case m == r.self:
		// Either it has been around, or it is from our last life, whose numbers were lower.
		again, own = true, true
	default:
		switch m.seqs.see(l.Origin.Seq) {
		case seen:
			again = true
		case late:
			if !mayBeLate(l.Message) {
				return
			}
		}
	}
	if again {
		// Of a USER-WEAK it matters that it has been around (ring.md section 8): both copies, that to the left
		// and that to the right, go all the way. No copy goes around twice, should its originator be dead.
		if _, weak := l.Message.(director.UserWeak); !weak || !own && l.Origin.Seq <= m.weakSeq {
			return
		}
		m.weakSeq = l.Origin.Seq
	}
	r.decide(director.Heard{Message: l.Message, Seen: again, Own: own, Usher: c.member.usher()})
}

// tell says something as ourselves to everybody but except. USER-KILLED goes to the right only.
func (r *Ring) tell(m director.Message, except *member) {
	switch m := m.(type) {
	case director.UserUpdate:
		r.user = wire.User{UserUpdate: m} // there are thousands in a second: not a new one each time
		r.broadcast(&r.user, except)
	case director.UserKilled:
		if r.right != nil {
			r.send(r.right, &wire.UserKilled{UserKilled: m})
		}
	default:
		r.broadcast(&wire.Told{Origin: r.origin(), Message: m}, except)
	}
}

// origin numbers the next command of ours.
func (r *Ring) origin() wire.Origin {
	r.seq++
	return wire.Origin{Director: r.self.addr, Seq: r.seq}
}

// pass sends on what was heard, to everybody but where it came from.
func (r *Ring) pass() {
	h := r.heard
	except := h.source()
	switch l := h.line.(type) {
	case *wire.User:
		r.passUser(l.UserUpdate, except)
	case *wire.HandUser:
		r.passUser(l.UserUpdate, except)
	case *wire.HandHost:
		r.tell(l.HostUpdate, except)
	case *wire.UserKilled:
		r.tell(l.UserKilled, except)
	case *wire.Told:
		if h.adopted {
			r.tell(l.Message, except)
			return
		}
		_, weak := l.Message.(director.UserWeak)
		if weak && r.left != nil && r.right != nil && r.left.member == r.right.member {
			// In a ring of two it goes back over the other connection: that is once around.
			if h.conn == r.left {
				r.send(r.right, l)
			} else {
				r.send(r.left, l)
			}
			return
		}
		r.broadcast(l, except)
	}
}

// passUser passes on what was heard of a user. Outside of a handshake weak ones have a command of their own.
func (r *Ring) passUser(u director.UserUpdate, except *member) {
	if u.Weak {
		r.tell(director.UserWeak{Hash: u.Hash, Host: u.Host}, except)
	} else {
		r.tell(u, except)
	}
}

// broadcast sends a line to everybody but except who can understand it.
func (r *Ring) broadcast(l wire.Line, except *member) {
	for _, c := range r.conns {
		if !c.ready || c.member == except || !r.understands(c, l) {
			continue
		}
		to := c.peer()
		if t, ok := l.(*wire.Told); ok {
			if _, ok := t.Message.(director.HostUpdate); ok {
				// All in the ring must make the same of it, so that their hosts agree.
				to.Minor = r.minor
			}
		}
		r.sendAs(c, l, to)
	}
}

// understands: the peer is new enough for a line (ring.md section 11).
func (r *Ring) understands(c *conn, l wire.Line) bool {
	switch l := l.(type) {
	case *wire.DirectorRemove:
		return c.minor >= 2
	case *wire.Health:
		return c.member.usher()
	case *wire.Told:
		switch l.Message.(type) {
		case director.UserWeak:
			return r.minor >= 1
		case director.UserKick, director.UserKickHash:
			return c.minor >= 4
		case director.UserKickAlt:
			return c.minor >= 8
		}
	}
	return true
}

// sayHealth tells the other Ushers what our health check says.
func (r *Ring) sayHealth(say director.HealthSay) {
	r.verdicts[say.Host] = say.Up
	r.broadcast(&wire.Health{Origin: r.origin(), Host: say.Host, Up: say.Up}, nil)
}

// hearHealth passes on what another's says.
func (r *Ring) hearHealth(c *conn, l *wire.Health) {
	m := r.byAddr[unmap(l.Origin.Director)]
	if m == nil || m.removed() || m == r.self || m.seqs.see(l.Origin.Seq) != fresh {
		return // an older verdict is of no use
	}
	r.broadcast(l, c.member)
	r.out = append(r.out, director.HealthVote{Director: m.addr, Host: l.Host, Up: l.Up})
}

// tellHealth tells a new neighbour our present verdicts about hosts that are still there.
func (r *Ring) tellHealth(c *conn) {
	hosts := r.director.HostStates()
	for _, addr := range slices.SortedFunc(maps.Keys(r.verdicts), netip.Addr.Compare) {
		if !slices.ContainsFunc(hosts, func(h director.HostUpdate) bool { return h.Host.Addr == addr }) {
			delete(r.verdicts, addr)
			continue
		}
		r.broadcast(&wire.Health{Origin: r.origin(), Host: addr, Up: r.verdicts[addr]}, nil)
	}
}
