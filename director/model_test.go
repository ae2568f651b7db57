package director

import (
	"errors"
	"flag"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"usher/director/placement"
)

// Long runs find more than many: a site has to fill before there is something to go wrong.
// -rapid.steps on the command line overrides this.
func init() {
	if err := flag.Set("rapid.steps", "300"); err != nil {
		panic(err)
	}
}

// TestModel plays random events with a simulated site behind the director: clients that log in slowly,
// sessions that end late or never when they are stopped, operators that move, kick and remove hosts in
// the middle of it. The site obeys effects as the documentation asks for and checks after every Step
// what the package promises; see (*site).check and (*site).apply.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSite(t)
		t.Repeat(map[string]func(*rapid.T){
			"":        s.check,
			"lookup":  s.lookup,
			"start":   s.startSession,
			"lookup2": s.lookup, // twice, and sessions thrice: there should be many
			"start2":  s.startSession,
			"start3":  s.startSession,
			"end":     s.endSession,
			"active":  func(t *rapid.T) { s.used(s.anyKey(t)); s.step(t, Active{s.key}) },
			"forget":  s.forget,
			"move":    s.move,
			"kick":    s.kick,
			"host":    s.host,
			"wait":    s.wait,
			"restart": s.restart,
		})
	})
}

const (
	testExpire  = 5 * time.Minute
	testTimeout = 30 * time.Second
	testDelay   = 2 * time.Second
)

var (
	testAddrs = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"),
		netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("fd00::1")}
	testTags = []string{"", "gold"}
)

// session is one client's login, from Assigned on.
type session struct {
	key       Key
	user      string
	host      netip.Addr
	epoch     uint32
	started   bool
	counted   bool // by the model's own rule
	stale     bool // its start was answered with Stop
	stopped   bool
	stoppedAt time.Time
}

// stored is what the kernel's map has of an entry, plus what the model knows about it.
type stored struct {
	EntryPut
	born     uint32
	lastUse  time.Time
	fresh    bool // made by this Step
	evicting bool
}

type site struct {
	d        *Director
	now      time.Time
	config   Config
	hosts    map[netip.Addr]*HostInfo
	kernel   map[Key]*stored
	sessions []*session
	lookups  map[uint64]login // not yet answered
	moves    map[uint64]time.Time
	moving   map[Key]bool
	next     uint64 // request and move numbers
	key      Key    // of the last anyKey
}

type login struct {
	user string
	key  Key
	at   time.Time
}

func newSite(t *rapid.T) *site {
	// Hashing only the part before @ gives every entry several names.
	format, err := placement.ParseFormat("%Ln")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{
		now:     time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		config:  Config{UserExpire: testExpire, KickDelay: testDelay, MoveTimeout: testTimeout, UsernameHash: format},
		hosts:   make(map[netip.Addr]*HostInfo),
		kernel:  make(map[Key]*stored),
		lookups: make(map[uint64]login),
		moves:   make(map[uint64]time.Time),
		moving:  make(map[Key]bool),
	}
	s.d = New(s.config)
	for _, addr := range testAddrs[:2] {
		s.putHost(t, Host{Addr: addr, Weight: 100})
	}
	return s
}

func (s *site) user(t *rapid.T) string {
	return rapid.SampledFrom([]string{"ann@a", "ann@b", "bob@a"}).Draw(t, "user")
}

func (s *site) tag(t *rapid.T) string { return rapid.SampledFrom(testTags).Draw(t, "tag") }

func (s *site) addr(t *rapid.T) netip.Addr { return rapid.SampledFrom(testAddrs).Draw(t, "addr") }

func (s *site) anyKey(t *rapid.T) Key {
	s.key = s.d.KeyOf(s.user(t), s.tag(t))
	return s.key
}

// used notes in the model that an entry is used now.
func (s *site) used(key Key) {
	if e, ok := s.kernel[key]; ok {
		e.lastUse = s.now
	}
}

func (s *site) expired(key Key) bool {
	e := s.kernel[key]
	return s.live(key) == 0 && !s.moving[key] && !e.lastUse.Add(testExpire).After(s.now)
}

// live counts the sessions that the director must count for a key.
func (s *site) live(key Key) (n int) {
	for _, x := range s.sessions {
		if x.counted && x.key == key {
			n++
		}
	}
	return n
}

func (s *site) lookup(t *rapid.T) {
	user, tag := s.user(t), s.tag(t)
	s.next++
	key := s.d.KeyOf(user, tag)
	s.lookups[s.next] = login{user, key, s.now}
	s.used(key)
	s.step(t, Lookup{s.next, user, tag})
}

func (s *site) forget(t *rapid.T) {
	for _, request := range slices.Sorted(maps.Keys(s.lookups)) {
		s.step(t, Forget{request})
		delete(s.lookups, request)
		return
	}
}

func (s *site) pick(t *rapid.T, started bool) *session {
	var some []*session
	for _, x := range s.sessions {
		if x.started == started {
			some = append(some, x)
		}
	}
	if len(some) == 0 {
		t.Skip("no session")
	}
	return rapid.SampledFrom(some).Draw(t, "session")
}

// startSession reports a login as done, however long ago it was assigned and whatever happened since.
func (s *site) startSession(t *rapid.T) {
	x := s.pick(t, false)
	if e, ok := s.kernel[x.key]; ok && x.epoch >= e.born {
		x.counted = true
		s.used(x.key)
	}
	x.started = true
	s.step(t, SessionStart{x.key, x.user, x.epoch})
}

func (s *site) endSession(t *rapid.T) {
	x := s.pick(t, true)
	if x.counted {
		s.used(x.key)
	}
	s.sessions = slices.DeleteFunc(s.sessions, func(y *session) bool { return x == y })
	s.step(t, SessionEnd{x.key, x.user, x.epoch})
}

func (s *site) move(t *rapid.T) {
	user, to := s.user(t), s.addr(t)
	tag := s.tag(t)
	if h, ok := s.hosts[to]; ok {
		tag = h.Tag
	}
	key := s.d.KeyOf(user, tag)
	s.next++
	before, known := s.hosts[to]
	wasMoving := s.moving[key]
	if known && !wasMoving {
		s.used(key)
	}
	s.moves[s.next] = s.now
	s.step(t, Move{ID: s.next, User: user, Tag: tag, To: to})
	_, running := s.moves[s.next]
	if running && (!known || wasMoving) {
		t.Fatalf("a move to %s (known %v) began while moving %v", to, known, wasMoving)
	}
	if e := s.kernel[key]; known && !wasMoving && e.Host != before.Addr {
		t.Fatalf("%s was moved to %s and is on %s", key, to, e.Host)
	}
}

func (s *site) kick(t *rapid.T) {
	user, tag := s.user(t), s.tag(t)
	s.next++
	s.moves[s.next] = s.now
	s.step(t, Kick{s.next, user, tag})
	if _, ok := s.moves[s.next]; ok {
		t.Fatal("a kick did not end at once")
	}
	for _, x := range s.sessions {
		if x.key == s.d.KeyOf(user, tag) && x.user == user && x.counted && !x.stopped {
			t.Fatalf("%s was kicked and has a session", user)
		}
	}
}

func (s *site) host(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "change") != 0 {
		t.Skip("not now") // or no session would live for long
	}
	addr := s.addr(t)
	h, known := s.hosts[addr]
	switch rapid.SampledFrom([]string{"put", "up", "down", "remove"}).Draw(t, "what") {
	case "put":
		s.putHost(t, Host{Addr: addr, Tag: s.tag(t), Weight: rapid.SampledFrom([]int{0, 1, 100}).Draw(t, "weight")})
	case "up":
		if known {
			h.Up = true
		}
		s.step(t, HostUp{addr, true})
	case "down":
		if known {
			h.Up = false
		}
		s.step(t, HostUp{addr, false})
	case "remove":
		if known {
			s.evict(addr)
		}
		delete(s.hosts, addr)
		s.step(t, HostRemove{addr})
	}
}

func (s *site) putHost(t *rapid.T, h Host) {
	info, known := s.hosts[h.Addr]
	if !known {
		info = &HostInfo{}
		info.Up = true
		s.hosts[h.Addr] = info
	} else if info.Tag != h.Tag {
		s.evict(h.Addr)
	}
	info.Host = h
	s.step(t, HostPut{h})
}

func (s *site) evict(addr netip.Addr) {
	for _, e := range s.kernel {
		if e.Host == addr {
			e.evicting = true
		}
	}
}

func (s *site) wait(t *rapid.T) {
	seconds := rapid.SampledFrom([]time.Duration{0, 1, 2, 5, 29, 31, 120, 299, 301}).Draw(t, "seconds")
	s.now = s.now.Add(seconds * time.Second)
	s.step(t, Tick{})
	for key := range s.kernel {
		if s.expired(key) {
			t.Fatalf("%s should have expired", key)
		}
	}
	for id, at := range s.moves {
		if s.now.Sub(at) > testTimeout+testDelay {
			t.Fatalf("move %d goes on since %v", id, s.now.Sub(at))
		}
	}
	for id, l := range s.lookups {
		if s.now.Sub(l.at) > testTimeout+testDelay {
			t.Fatalf("lookup %d waits since %v", id, s.now.Sub(l.at))
		}
	}
	if next := s.d.Next(); !next.IsZero() && !next.After(s.now) {
		t.Fatalf("Next is %v, %v ago", next, s.now.Sub(next))
	}
}

// restart kills the daemon: what is logging in or only in user space is gone, the sessions under the
// present epoch go on in the kernel, and a new director adopts them.
func (s *site) restart(t *rapid.T) {
	if rapid.IntRange(0, 4).Draw(t, "restart") != 0 {
		t.Skip("not now")
	}
	s.d = New(s.config)
	clear(s.lookups)
	clear(s.moves)
	clear(s.moving)
	for _, h := range s.hosts {
		s.step(t, HostPut{h.Host})
		s.step(t, HostUp{h.Addr, h.Up})
	}
	live := s.sessions[:0]
	var adopt Adopt
	for _, x := range s.sessions {
		if e := s.kernel[x.key]; e != nil && x.started && x.epoch == e.Epoch {
			x.counted = true
			live = append(live, x)
		}
	}
	s.sessions = live
	for key, e := range s.kernel {
		a := Adopted{Key: key, Host: e.Host, Epoch: e.Epoch, LastRefresh: e.lastUse, Sessions: make(map[string]int)}
		for _, x := range s.sessions {
			if x.key == key {
				a.Sessions[x.user]++
			}
		}
		h, known := s.hosts[e.Host]
		e.born, e.Active, e.evicting = e.Epoch, len(a.Sessions) > 0, !known || h.Tag != key.Tag
		adopt.Entries = append(adopt.Entries, a)
	}
	s.step(t, adopt)
	s.step(t, Tick{})
}

// step plays one event and obeys its effects.
func (s *site) step(t *rapid.T, ev Event) {
	for _, effect := range s.d.Step(s.now, ev) {
		s.apply(t, effect)
	}
	for _, e := range s.kernel {
		e.fresh = false
	}
}

func (s *site) apply(t *rapid.T, effect Effect) {
	switch e := effect.(type) {
	case EntryPut:
		old, ok := s.kernel[e.Key]
		if !ok {
			old = &stored{born: e.Epoch, lastUse: s.now, fresh: true}
			s.kernel[e.Key] = old
		} else if old.EntryPut == e {
			t.Fatalf("nothing changed in %+v", e)
		}
		old.EntryPut = e
	case EntryDrop:
		entry := s.kernel[e.Key]
		if entry == nil {
			t.Fatalf("%s is dropped, but there is no entry", e.Key)
		}
		if !entry.evicting && !s.expired(e.Key) {
			t.Fatalf("%s is dropped with %d sessions, %v after its last use",
				e.Key, s.live(e.Key), s.now.Sub(entry.lastUse))
		}
		delete(s.kernel, e.Key)
		delete(s.moving, e.Key)
		for _, x := range s.sessions {
			if x.key == e.Key {
				x.counted = false
			}
		}
	case Stop:
		for _, x := range s.sessions {
			if x.key != e.Key || e.User != "" && e.User != x.user || x.epoch > e.Epoch {
				continue
			}
			// A kick on top of a move does not make anybody wait anew.
			if !x.stopped || x.counted && (e.Reason == StopMoved || e.Reason == StopHostRemoved) {
				x.stopped, x.stoppedAt = true, s.now
			}
			x.stale = x.stale || e.Reason == StopStale && !s.moving[e.Key]
		}
		if e.Reason == StopMoved || e.Reason == StopHostRemoved && s.kernel[e.Key] != nil {
			s.moving[e.Key] = true
		}
	case Assigned:
		s.assigned(t, e)
	case Refused:
		if want, ok := s.place(s.lookups[e.Request].key); ok || !errors.Is(e.Reason, ErrNoHosts) {
			t.Fatalf("refused with %v, but there is %s", e.Reason, want)
		}
		s.answered(t, e.Request)
	case Done:
		at, ok := s.moves[e.ID]
		if !ok {
			t.Fatalf("move %d is done twice", e.ID)
		}
		if errors.Is(e.Err, ErrMoveTimeout) && s.now.Sub(at) < testTimeout {
			t.Fatalf("move %d timed out after %v", e.ID, s.now.Sub(at))
		}
		delete(s.moves, e.ID)
	}
	// What moves is asked of the director, so that the model needs no timers of its own.
	for key := range s.moving {
		if info, ok := s.d.Entry(key); !ok || !info.Moving {
			if e := s.kernel[key]; e != nil && ok {
				e.lastUse = s.now // the end of a move is a use
			}
			delete(s.moving, key)
		}
	}
}

func (s *site) answered(t *rapid.T, request uint64) login {
	l, ok := s.lookups[request]
	if !ok {
		t.Fatalf("lookup %d is answered twice, or after Forget", request)
	}
	delete(s.lookups, request)
	return l
}

func (s *site) assigned(t *rapid.T, a Assigned) {
	l := s.answered(t, a.Request)
	e := s.kernel[a.Key]
	if e == nil || e.Host != a.Host.Addr || e.Epoch != a.Epoch || l.key != a.Key {
		t.Fatalf("assigned %+v, but the kernel has %+v", a, e)
	}
	if s.hosts[a.Host.Addr] == nil || s.hosts[a.Host.Addr].Host != a.Host {
		t.Fatalf("assigned %+v, but there is no such host", a.Host)
	}
	e.lastUse = s.now
	if want, _ := s.place(a.Key); e.fresh && want != a.Host.Addr {
		t.Fatalf("%s is placed on %s, want %s", a.Key, a.Host.Addr, want)
	}
	// One user, one host: whoever is assigned has no live session elsewhere, save one that did not
	// end for the whole of MoveTimeout after it was stopped, or one that the director only heard of
	// when it was told to stop.
	for _, x := range s.sessions {
		if x.key == a.Key && x.started && x.host != a.Host.Addr &&
			!(x.stopped && (x.stale || s.now.Sub(x.stoppedAt) >= testTimeout)) {
			t.Fatalf("%s is assigned %s and has a session on %s", a.Key, a.Host.Addr, x.host)
		}
	}
	s.sessions = append(s.sessions, &session{key: a.Key, user: l.user, host: a.Host.Addr, epoch: a.Epoch})
}

// place computes the host of a key from the model's hosts.
func (s *site) place(key Key) (netip.Addr, bool) {
	var nodes []placement.Node
	for _, h := range s.hosts {
		if h.Tag == key.Tag && h.Up {
			nodes = append(nodes, placement.Node{Addr: h.Addr, Weight: h.Weight})
		}
	}
	return placement.NewRing(nodes).Lookup(key.Hash)
}

// check compares the director with the kernel's map and the site.
func (s *site) check(t *rapid.T) {
	entries := 0
	load := make(map[netip.Addr]HostInfo)
	for info := range s.d.Entries() {
		entries++
		sum := load[info.Host]
		sum.Users++
		sum.Sessions += info.Sessions
		load[info.Host] = sum
		e := s.kernel[info.Key]
		if e == nil {
			t.Fatalf("%s has an entry that was never stored", info.Key)
		}
		if e.Host != info.Host || e.Epoch != info.Epoch || e.Active != (info.Sessions > 0) {
			t.Fatalf("the kernel has %+v, the director %+v", e.EntryPut, info)
		}
		if live := s.live(info.Key); live != info.Sessions {
			t.Fatalf("%s has %d sessions, want %d", info.Key, info.Sessions, live)
		}
		if can := info.Sessions == 0 && !info.Moving; can != !info.ExpiresAt.IsZero() {
			t.Fatalf("%s with %d sessions, moving %v, expires at %v", info.Key, info.Sessions, info.Moving, info.ExpiresAt)
		}
		if e.evicting && !info.Moving {
			t.Fatalf("%s stays on %s, which is gone", info.Key, info.Host)
		}
		if info.Moving != s.moving[info.Key] {
			t.Fatalf("%s moving: %v, want %v", info.Key, info.Moving, s.moving[info.Key])
		}
	}
	if entries != len(s.kernel) || entries != s.d.Users() {
		t.Fatalf("%d entries, Users() = %d, the kernel has %d", entries, s.d.Users(), len(s.kernel))
	}
	if s.d.Moving() != len(s.moving) {
		t.Fatalf("Moving() = %d, want %d", s.d.Moving(), len(s.moving))
	}
	for _, h := range s.d.Hosts() {
		want := s.hosts[h.Addr]
		if want == nil || h.State != want.State || h.Users != load[h.Addr].Users || h.Sessions != load[h.Addr].Sessions {
			t.Fatalf("host %+v, want %+v with %+v", h, want, load[h.Addr])
		}
	}
	// A session that nobody stopped is on the host of its entry, under its epoch.
	for _, x := range s.sessions {
		if e := s.kernel[x.key]; x.started && !x.stopped && (e == nil || e.Host != x.host || e.Epoch != x.epoch) {
			t.Fatalf("%+v lives on beside %+v", *x, e)
		}
	}
	for request, l := range s.lookups {
		if !s.moving[l.key] {
			t.Fatalf("lookup %d of %s waits for nothing", request, l.key)
		}
	}
}
