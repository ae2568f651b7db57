package director

import (
	"errors"
	"net/netip"

	"pgregory.net/rapid"

	"usher/director/placement"
)

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
		s.failed = e.Err
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
		if want == nil || h.Host != want.Host || h.Up != want.Up || h.Users != load[h.Addr].Users || h.Sessions != load[h.Addr].Sessions {
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
