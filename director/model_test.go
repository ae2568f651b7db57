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
	failed   error  // of the last Done
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
	s.step(t, Lookup{Request: s.next, User: user, Tag: tag})
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
	s.step(t, Kick{ID: s.next, User: user, Tag: tag})
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
		s.step(t, HostUp{Addr: addr, Up: true})
	case "down":
		if known {
			h.Up = false
		}
		s.step(t, HostUp{Addr: addr})
	case "remove":
		if known {
			s.evict(addr)
		}
		delete(s.hosts, addr)
		s.step(t, HostRemove{Addr: addr})
	}
}

func (s *site) putHost(t *rapid.T, h Host) {
	info, known := s.hosts[h.Addr]
	if !known {
		info = &HostInfo{}
		info.Up = true
		s.hosts[h.Addr] = info
	} else if info.Tag != h.Tag {
		s.next++
		s.moves[s.next] = s.now
		s.step(t, HostPut{ID: s.next, Host: h})
		if _, ok := s.moves[s.next]; ok || !errors.Is(s.failed, ErrTagChange) {
			t.Fatalf("the tag of %s was changed: %v", h.Addr, s.failed)
		}
		return
	}
	info.Host = h
	s.step(t, HostPut{Host: h})
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
		s.step(t, HostPut{Host: h.Host, Configured: true})
		s.step(t, HostUp{Addr: h.Addr, Up: h.Up})
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
