package ring

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"usher/director/ring/wire"
)

// maxMembers bounds the list of directors: anybody in the ring may add to it.
const maxMembers = 256

// How long a director is avoided after its connection or its protocol has failed, and how long one that was
// removed is remembered, so that the news of it do not bring it back (ring.md sections 4, 6).
const (
	failureBackoff = 60 * time.Second
	removedFor     = 30 * time.Second
)

// A member is a director of the list.
type member struct {
	addr      netip.AddrPort
	removedAt time.Time // zero: it is not

	seqs    seqs         // of its commands
	weakSeq uint32       // of its last USER-WEAK that came a second time
	sync    receivedSync // of its SYNCs

	networkFailed, protocolFailed time.Time // the last time

	missing bool // it was our neighbour and was lost; no SYNC of it has come since

	life      uint64 // of an Usher: of its process, as it said in ME; 0: it is not one, or we have not met
	clockDiff time.Duration
	lastError string
}

func (m *member) removed() bool { return !m.removedAt.IsZero() }

// usable: it did not fail lately.
func (m *member) usable(now time.Time) bool {
	return !m.removed() && !recent(m.networkFailed, now) && !recent(m.protocolFailed, now)
}

func recent(failed, now time.Time) bool { return !failed.IsZero() && now.Sub(failed) < failureBackoff }

func (m *member) usher() bool { return m.life != 0 }

// restarted forgets what was heard from it: it may count from the beginning again.
func (m *member) restarted() {
	m.seqs, m.weakSeq = seqs{}, 0
	m.sync = receivedSync{delayed: m.sync.delayed}
}

// mayBeRestarted is restarted for a director of which others speak. Of Ushers that are our neighbours we know
// better: they say themselves when they are new.
func (r *Ring) mayBeRestarted(m *member) {
	for _, c := range r.conns {
		if c.member == m && c.ready && m.usher() {
			return
		}
	}
	m.restarted()
}

// before is the order of the ring: IPv4 before IPv6, by address, by port.
func before(a, b netip.AddrPort) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
}

// nearer compares two directors as neighbours of ours: positive if one walking right from us meets a first,
// negative if b, zero if they are the same. So the better right is the one that is met first, and the better
// left the one that is met last.
func (r *Ring) nearer(a, b *member) int {
	order, self := before(a.addr, b.addr), r.self.addr
	switch {
	case order == 0:
		return 0
	case order > 0:
		return -r.nearer(b, a)
	case before(self, a.addr) < 0 || before(self, b.addr) >= 0:
		return 1
	}
	return -1
}

// rightwards returns the others in the order in which one meets them walking right, without removed ones.
func (r *Ring) rightwards() []*member {
	i := slices.Index(r.members, r.self)
	others := slices.Concat(r.members[i+1:], r.members[:i])
	return slices.DeleteFunc(others, (*member).removed)
}

// addMember adds a director that is not in the list.
func (r *Ring) addMember(addr netip.AddrPort) *member {
	m := &member{addr: addr}
	i, _ := slices.BinarySearchFunc(r.members, m, func(a, b *member) int { return before(a.addr, b.addr) })
	r.members = slices.Insert(r.members, i, m)
	r.byAddr[addr] = m
	return m
}

// purge forgets directors that were removed long enough ago, or all that were removed.
func (r *Ring) purge(all bool) {
	r.members = slices.DeleteFunc(r.members, func(m *member) bool {
		gone := m.removed() && (all || r.now.Sub(m.removedAt) >= removedFor)
		if gone {
			delete(r.byAddr, m.addr)
		}
		return gone
	})
}

// hearDirector: somebody says that there is such a director.
func (r *Ring) hearDirector(c *conn, addr netip.AddrPort) {
	m := r.byAddr[addr]
	switch {
	case m == r.self || m != nil && m.removed():
		return
	case m == nil:
		if len(r.members) >= maxMembers {
			r.fail(c, "DIRECTOR", "there are too many directors")
			return
		}
		m = r.addMember(addr)
	default:
		// It is said because it has just joined, so it may count anew, and can be reached.
		r.mayBeRestarted(m)
		if c.handshaked {
			m.networkFailed = time.Time{}
		}
	}
	if c.incoming && !c.handshaked {
		if c.listed == nil {
			c.listed = make(map[*member]bool)
		}
		c.listed[m] = true
	}
	r.sync.ringChanged = true
	if r.right != nil && r.nearer(m, r.right.member) > 0 && r.preferred.IsZero() {
		// It should be our right. Somebody will say so by CONNECT, but that may come before it can be reached.
		r.preferred = r.now.Add(retryPreferred)
	}
	// If it should be our own neighbour it has probably crashed, and nobody needs to hear of it. Since
	// DIRECTOR has no sequence number this is also what ends its way around the ring.
	if r.right == nil || r.nearer(m, r.right.member) <= 0 {
		r.broadcast(&wire.Director{Addr: addr}, c.member)
	}
}

// tellUnlisted tells a director that has connected to us which others there are that it did not list. One that has
// been cut off may have heard that somebody was removed, but not that it came back.
func (r *Ring) tellUnlisted(c *conn) {
	for _, m := range r.members {
		if m != r.self && m != c.member && !m.removed() && !c.listed[m] {
			r.send(c, &wire.Director{Addr: m.addr})
		}
	}
	c.listed = nil
}

// hearRemove: an operator has removed a director somewhere.
func (r *Ring) hearRemove(c *conn, addr netip.AddrPort) {
	m := r.byAddr[addr]
	// Those who remove us close their connections to us; nothing is gained by doing so ourselves.
	if m == nil || m == r.self || m.removed() {
		return
	}
	r.log(Info, addr, "removed from the ring, says %v", c.member.addr)
	r.remove(m, c.member)
}

func (r *Ring) remove(m, source *member) {
	m.removedAt = r.now
	r.broadcast(&wire.DirectorRemove{Addr: m.addr}, source)
	for _, c := range r.conns {
		if c.member == m {
			r.quit(c, "Removing from ring")
			r.forget(c)
		}
	}
	r.closeRanks()
	r.wantSync()
	if r.right == nil {
		r.connect()
	}
}
