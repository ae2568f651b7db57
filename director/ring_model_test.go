package director

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"usher/director/hosts"
)

// TestRingModel plays a director of a ring whose other members say anything at any time, sensible or not,
// while sessions come and go and end late. What must hold for its own sessions holds whatever is said: see
// (*member).check and (*member).apply. That several directors agree in the end is the business of ring/sim.
func TestRingModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMember(t)
		t.Repeat(map[string]func(*rapid.T){
			"":       m.check,
			"lookup": m.lookup,
			"start":  m.startSession,
			"start2": m.startSession,
			"end":    m.endSession,
			"active": func(t *rapid.T) { m.step(t, Active{m.key(t)}) },
			"forget": m.forget,
			"order":  m.order,
			"hear":   m.hear,
			"hear2":  m.hear,
			"hear3":  m.hear,
			"ring":   m.ring,
			"wait":   m.wait,
			"dump":   m.dump,
		})
	})
}

// member is a director of a ring and what is around it.
type member struct {
	d        *Director
	now      time.Time
	kernel   map[Key]EntryPut
	born     map[Key]uint32
	sessions []*session
	lookups  map[uint64]login     // not yet answered
	orders   map[uint64]time.Time // moves and kicks; drains are bounded by their number
	drains   map[uint64]time.Time
	flushing map[Key]bool
	next     uint64
	hearing  bool
	heard    time.Time // when another director last moved a user, and so perhaps began a move anew
}

func newMember(t *rapid.T) *member {
	m := &member{
		now: testStart, kernel: make(map[Key]EntryPut), born: make(map[Key]uint32), lookups: make(map[uint64]login),
		orders: make(map[uint64]time.Time), drains: make(map[uint64]time.Time), flushing: make(map[Key]bool),
	}
	m.d = New(Config{Ring: true, UserExpire: testExpire, KickDelay: testDelay, MoveTimeout: testTimeout,
		MaxParallelMoves: 3, FlushCommand: rapid.Bool().Draw(t, "flush")})
	for _, addr := range testAddrs[:2] {
		m.step(t, HostPut{Host: Host{Addr: addr, Weight: 100}, Configured: true})
	}
	if rapid.Bool().Draw(t, "joined") {
		m.step(t, RingState{Handshaked: true, Synced: true, Right: true, Minor: 9})
	}
	return m
}

var memberUsers = []string{"ann", "bob", "cid"}

func (m *member) user(t *rapid.T) string     { return rapid.SampledFrom(memberUsers).Draw(t, "user") }
func (m *member) addr(t *rapid.T) netip.Addr { return rapid.SampledFrom(testAddrs).Draw(t, "addr") }
func (m *member) key(t *rapid.T) Key {
	return m.d.KeyOf(m.user(t), rapid.SampledFrom(testTags).Draw(t, "tag"))
}

// second is a time as others tell it: never, long ago, or around now.
func (m *member) second(t *rapid.T, name string) int64 {
	ago := rapid.SampledFrom([]int64{-1 << 40, -100, -5, -1, 0, 1, 5, 40, 299, 300, 1000, 1 << 40}).Draw(t, name)
	if ago == 1<<40 {
		return 0
	}
	return m.now.Unix() - ago
}

func (m *member) lookup(t *rapid.T) {
	m.next++
	l := login{user: m.user(t), at: m.now}
	m.lookups[m.next] = l
	m.step(t, Lookup{Request: m.next, User: l.user, Tag: rapid.SampledFrom(testTags).Draw(t, "tag")})
}

func (m *member) forget(t *rapid.T) {
	for _, request := range slices.Sorted(maps.Keys(m.lookups)) {
		delete(m.lookups, request)
		m.step(t, Forget{request})
		return
	}
}

func (m *member) pick(t *rapid.T, started bool) *session {
	some := slices.DeleteFunc(slices.Clone(m.sessions), func(x *session) bool { return x.started != started })
	if len(some) == 0 {
		t.Skip("no session")
	}
	return rapid.SampledFrom(some).Draw(t, "session")
}

func (m *member) startSession(t *rapid.T) {
	x := m.pick(t, false)
	x.started = true
	_, ok := m.kernel[x.key]
	x.counted = ok && x.epoch >= m.born[x.key]
	m.step(t, SessionStart{x.key, x.user, x.epoch})
}

func (m *member) endSession(t *rapid.T) {
	x := m.pick(t, true)
	m.sessions = slices.DeleteFunc(m.sessions, func(y *session) bool { return x == y })
	m.step(t, SessionEnd{x.key, x.user, x.epoch})
}

// order is one by this director's operator, or its health check.
func (m *member) order(t *rapid.T) {
	m.next++
	id, addr := m.next, m.addr(t)
	m.orders[id] = m.now
	switch rapid.IntRange(0, 9).Draw(t, "order") {
	case 0, 1:
		tag := ""
		if h, ok := m.d.hosts.Get(addr); ok {
			tag = h.Tag
		}
		m.step(t, Move{ID: id, User: m.user(t), Tag: tag, To: addr})
	case 2:
		m.step(t, Kick{ID: id, User: m.user(t), Mask: rapid.Bool().Draw(t, "mask")})
	case 3:
		m.step(t, HostPut{ID: id, Host: Host{Addr: addr, Weight: rapid.IntRange(0, 3).Draw(t, "weight")}})
	case 4:
		m.step(t, HostUp{ID: id, Addr: addr, Up: rapid.Bool().Draw(t, "up")})
	case 5:
		m.step(t, HostUp{ID: id, Addr: addr, Up: rapid.Bool().Draw(t, "up"), Health: true})
	case 6:
		m.step(t, HostRemove{ID: id, Addr: addr})
	case 7:
		m.step(t, HostForgetUsers{ID: id, Addr: addr})
	case 8:
		delete(m.orders, id)
		m.drains[id] = m.now
		m.step(t, HostFlush{ID: id, Addr: addr, Max: rapid.IntRange(0, 2).Draw(t, "max")})
	case 9:
		delete(m.orders, id)
		for _, key := range slices.SortedFunc(maps.Keys(m.flushing), compareKeys) {
			delete(m.flushing, key)
			m.step(t, Flushed{Key: key, OK: rapid.Bool().Draw(t, "ok")})
			return
		}
		m.step(t, KickAlt{})
	}
	if _, ok := m.orders[id]; ok && m.d.Moving() == 0 {
		t.Fatalf("order %d was not answered", id)
	}
}

func (m *member) hear(t *rapid.T) {
	hash, addr := m.key(t).Hash, m.addr(t)
	h := Heard{Handshake: rapid.Bool().Draw(t, "handshake")}
	switch rapid.IntRange(0, 9).Draw(t, "message") {
	case 0, 1, 2:
		m.heard = m.now
		h.Message = UserUpdate{Hash: hash, Host: addr, Refreshed: m.second(t, "used"), Ordered: m.second(t, "ordered"),
			Weak: h.Handshake && rapid.Bool().Draw(t, "weak")}
	case 3:
		h.Seen = rapid.Bool().Draw(t, "seen")
		h.Own = h.Seen && rapid.Bool().Draw(t, "own")
		h.Message = UserWeak{Hash: hash, Host: addr}
	case 4:
		m.heard = m.now
		h.Message = UserMove{Hash: hash, Host: addr, Ordered: m.second(t, "ordered")}
	case 5:
		h.Message = UserKilled{Hash: hash}
	case 6:
		h.Message = UserKilledEverywhere{Hash: hash}
	case 7:
		h.Message = UserKickHash{Hash: hash, Except: addr}
	case 8:
		h.Message = HostUpdate{
			Host: Host{Addr: addr, Weight: rapid.IntRange(0, 3).Draw(t, "weight"), Tag: rapid.SampledFrom(testTags).Draw(t, "tag")},
			Up:   rapid.Bool().Draw(t, "up"), Changed: m.second(t, "changed"), Ordered: m.second(t, "ordered"),
			Health: rapid.Bool().Draw(t, "health"),
		}
	case 9:
		h.Message = rapid.SampledFrom([]Message{HostGone{addr}, HostForget{addr}, UserKick{User: m.user(t)}, UserKick{User: "*"},
			UserKickAlt{Field: "f", Value: "v"}}).Draw(t, "other")
	}
	m.hearing = true
	m.step(t, h)
	m.hearing = false
}

func (m *member) ring(t *rapid.T) {
	switch rapid.IntRange(0, 3).Draw(t, "ring") {
	case 0:
		m.step(t, RingSynced{})
	case 1:
		var list []HostUpdate
		for _, addr := range testAddrs {
			if rapid.Bool().Draw(t, "has") {
				list = append(list, HostUpdate{Host: Host{Addr: addr, Weight: 1}, Up: rapid.Bool().Draw(t, "up")})
			}
		}
		m.step(t, HostsReplace{list})
	default:
		m.step(t, RingState{Handshaked: rapid.IntRange(0, 3).Draw(t, "handshaked") > 0 || m.d.ring.Handshaked,
			Synced: rapid.Bool().Draw(t, "synced"), Right: rapid.Bool().Draw(t, "right"), Minor: 9})
	}
}

// wait lets time pass, with a Tick whenever one is asked for.
func (m *member) wait(t *rapid.T) {
	end := m.now.Add(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 5 * time.Second, 31 * time.Second,
		2 * time.Minute, 290 * time.Second, 400 * time.Second}).Draw(t, "time"))
	for ticks := 0; ; ticks++ {
		next := m.d.Next()
		if next.IsZero() || next.After(end) {
			break
		}
		if ticks > 1000 {
			t.Fatalf("Next stays at %v", next)
		}
		if next.After(m.now) {
			m.now = next
		}
		m.step(t, Tick{})
	}
	m.now = end
	m.step(t, Tick{})
	for request, l := range m.lookups {
		// One that waits for a move may have waited for the ring before, and the move may be followed by others.
		if m.now.Sub(l.at) > ringTimeout && m.d.Moving() == 0 {
			t.Fatalf("lookup %d waits for %v", request, m.now.Sub(l.at))
		}
	}
	for id, at := range m.orders {
		if m.heard.After(at) {
			at = m.heard
		}
		if m.now.Sub(at) > testTimeout+testDelay {
			t.Fatalf("order %d goes on for %v", id, m.now.Sub(at))
		}
	}
	for id, at := range m.drains {
		if m.heard.After(at) {
			at = m.heard
		}
		if rounds := 2 * time.Duration(len(memberUsers)*len(testTags)+1); m.now.Sub(at) > rounds*(2*testTimeout+testDelay) {
			t.Fatalf("drain %d goes on for %v: %+v", id, m.now.Sub(at), m.d.Progresses())
		}
	}
}

// dump walks over all entries.
func (m *member) dump(t *rapid.T) {
	var c Cursor
	seen := 0
	for m.d.Dump(&c, 1, func(u UserUpdate) {
		seen++
		if _, ok := m.d.hosts.Get(u.Host); !ok {
			t.Fatalf("user %d is told on %s, which is not there", u.Hash, u.Host)
		}
	}) {
	}
	gone := 0
	for e := range m.d.Entries() {
		host, ok := m.d.hosts.Get(e.Host)
		if mv := m.d.moves.Get(e.Key); !ok || host.Tag != e.Key.Tag || mv != nil && mv.Evict {
			gone++
		}
	}
	if seen+gone != m.d.Users() {
		t.Fatalf("%d of %d entries, %d are being dropped", seen, m.d.Users(), gone)
	}
}

func (m *member) step(t *rapid.T, ev Event) {
	for _, effect := range m.d.Step(m.now, ev) {
		m.apply(t, effect)
	}
}

func (m *member) apply(t *rapid.T, effect Effect) {
	switch e := effect.(type) {
	case EntryPut:
		if before, ok := m.kernel[e.Key]; !ok {
			m.born[e.Key] = e.Epoch
		} else if before.Host != e.Host && before.Epoch == e.Epoch {
			t.Fatalf("%s went from %s to %s under epoch %d", e.Key, before.Host, e.Host, e.Epoch)
		}
		m.kernel[e.Key] = e
	case EntryDrop:
		if _, ok := m.kernel[e.Key]; !ok {
			t.Fatalf("%s is dropped, but there is no entry", e.Key)
		}
		delete(m.kernel, e.Key)
		for _, x := range m.sessions {
			if x.key == e.Key {
				x.counted = false
			}
		}
	case Stop:
		for _, x := range m.sessions {
			if x.key != e.Key || e.User != "" && e.User != x.user || x.epoch > e.Epoch {
				continue
			}
			if !x.stopped {
				x.stopped, x.stoppedAt = true, m.now
			}
			x.stale = x.stale || !x.started // it should give up its login; here it does not
			// One that the director only heard of when it was told to stop, and no move could wait for.
			mv := m.d.moves.Get(e.Key)
			x.stale = x.stale || e.Reason == StopStale && (mv == nil || mv.Keep)
		}
	case Assigned:
		l := m.answered(t, e.Request)
		if k := m.kernel[e.Key]; k.Host != e.Host.Addr || k.Epoch != e.Epoch {
			t.Fatalf("assigned %+v, but the kernel has %+v", e, k)
		}
		if !m.d.ring.Handshaked {
			t.Fatal("assigned before the handshake")
		}
		for _, x := range m.sessions {
			if x.key == e.Key && x.started && x.counted && x.host != e.Host.Addr &&
				!(x.stopped && (x.stale || m.now.Sub(x.stoppedAt) >= testTimeout)) {
				t.Fatalf("%s is assigned %s and has a session on %s", e.Key, e.Host.Addr, x.host)
			}
		}
		m.sessions = append(m.sessions, &session{key: e.Key, user: l.user, host: e.Host.Addr, epoch: e.Epoch})
	case Refused:
		m.answered(t, e.Request)
	case Done:
		if _, ok := m.orders[e.ID]; !ok {
			if _, ok := m.drains[e.ID]; !ok && e.ID != 0 {
				t.Fatalf("order %d is done twice", e.ID)
			}
		}
		delete(m.orders, e.ID)
		delete(m.drains, e.ID)
	case Tell:
		if !m.hearing && !e.Source {
			t.Fatalf("%+v would leave out a source that is not there", e)
		}
	case Pass, Invalid:
		if !m.hearing {
			t.Fatalf("%T without a message", e)
		}
	case Flush:
		m.flushing[e.Key] = true
	}
}

func (m *member) answered(t *rapid.T, request uint64) login {
	l, ok := m.lookups[request]
	if !ok {
		t.Fatalf("lookup %d is answered twice, or after Forget", request)
	}
	delete(m.lookups, request)
	return l
}

func (m *member) check(t *rapid.T) {
	entries, heard := 0, 0
	for info := range m.d.Entries() {
		k, ok := m.kernel[info.Key]
		if !ok && !m.d.users.Get(info.Key).Stored() && info.Sessions == 0 {
			heard++ // and not stored
			continue
		}
		entries++
		if !ok || k.Host != info.Host || k.Epoch != info.Epoch || k.Active != (info.Sessions > 0) {
			t.Fatalf("the kernel has %+v, the director %+v", k, info)
		}
		live := 0
		for _, x := range m.sessions {
			if x.started && x.counted && x.key == info.Key {
				live++
			}
		}
		if live != info.Sessions {
			t.Fatalf("%s has %d sessions, want %d", info.Key, info.Sessions, live)
		}
		if host, ok := m.d.hosts.Get(info.Host); !info.Moving && (!ok || host.Tag != info.Key.Tag) {
			t.Fatalf("%s stays on %s, which has tag %q (%v)", info.Key, info.Host, host.Tag, ok)
		}
		if info.LastRefresh.After(m.now) {
			t.Fatalf("%s was used in the future", info.Key)
		}
	}
	if entries != len(m.kernel) || entries+heard != m.d.Users() {
		t.Fatalf("%d entries, %d only heard of, Users() = %d, the kernel has %d", entries, heard, m.d.Users(), len(m.kernel))
	}
	// One user, one host: a session that nobody stopped is on the host of its entry, under its epoch.
	for _, x := range m.sessions {
		if k := m.kernel[x.key]; x.started && !x.stopped && (k.Host != x.host || k.Epoch != x.epoch) {
			t.Fatalf("%+v lives on beside %+v", *x, k)
		}
	}
	if len(m.lookups) != m.d.LookupsWaiting() {
		t.Fatalf("%d lookups wait, want %d", m.d.LookupsWaiting(), len(m.lookups))
	}
	var table hosts.Table
	last := netip.Addr{}
	for _, h := range m.d.HostStates() {
		if !last.Less(h.Host.Addr) {
			t.Fatalf("host %s behind %s", h.Host.Addr, last)
		}
		last = h.Host.Addr
		table.Put(h.Host)
		table.Set(h.Host.Addr, func(s *hosts.State) { s.OperatorDown = !h.Up })
	}
	if table.Hash() != m.d.HostsHash() {
		t.Fatal(fmt.Sprint("hosts_hash is not that of the hosts told: ", m.d.HostStates()))
	}
}
