package dovecot

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"usher/director"
)

// maxGuests bounds the memory for guests, of which each takes some 250 bytes beside its names. Beyond it the one that was
// not seen for the longest time is given up: a move then does not wait for it any more, though it is kicked all the same.
const maxGuests = 1 << 20

// A guest stands for all sessions that Dovecot's processes carry for one login name of a user: they tell us
// only that some of them are alive, not how many.
type guest struct {
	key     director.Key
	user    string // as it is routed: destuser, or the login name
	login   string // the name to kick; empty: not known
	epoch   uint32
	host    netip.Addr
	seen    time.Time // last answer or refresh
	given   time.Time // last answer; zero: by an earlier process
	stopped bool      // not in the table any more

	next         *guest // under the same key
	older, newer *guest // by seen
}

// guests are the sessions of Dovecot's processes, as the director counts them: SessionStart when a host is given out
// for a name, SessionEnd when no process has refreshed it for as long as an entry lives, or when it was kicked.
type guests struct {
	router Router
	life   time.Duration // without a refresh
	max    int

	mu             sync.Mutex
	byKey          map[director.Key]*guest
	oldest, newest *guest
	size           int
	tags           map[string]bool // of hosts, and seen in answers since
	looked         time.Time       // at the hosts
}

func newGuests(router Router, life time.Duration) *guests {
	return &guests{
		router: router, life: life, max: maxGuests, byKey: map[director.Key]*guest{}, tags: map[string]bool{},
	}
}

// welcome counts a session that is about to be given a host. It returns false if the user has been moved, kicked or
// forgotten since the host was asked for: then it must be asked for again.
func (t *guests) welcome(user, login string, a director.Assigned) (*guest, bool) {
	now := time.Now()
	t.mu.Lock()
	for g := t.byKey[a.Key]; g != nil; g = g.next {
		if g.epoch == a.Epoch && (g.login == login || g.login == "") && g.user == user {
			g.login, g.given = login, now
			t.touch(g, now)
			t.mu.Unlock()
			return g, true
		}
	}
	// Before the director hears of it: its Stop must find it.
	g := &guest{key: a.Key, user: user, login: login, epoch: a.Epoch, host: a.Host.Addr, given: now}
	full := t.add(g, now)
	t.mu.Unlock()
	if full != nil {
		t.end(full)
	}
	t.router.Tell(director.SessionStart{Key: g.key, User: g.user, Epoch: g.epoch})
	t.mu.Lock()
	defer t.mu.Unlock()
	return g, !g.stopped
}

// add must be called with mu held. It returns a guest that has to be ended for it.
func (t *guests) add(g *guest, now time.Time) (full *guest) {
	if t.size >= t.max {
		full = t.oldest
		t.remove(full)
	}
	t.tags[g.key.Tag] = true
	g.next = t.byKey[g.key]
	t.byKey[g.key] = g
	t.size++
	t.append(g, now)
	return full
}

func (t *guests) append(g *guest, now time.Time) {
	g.seen, g.older, g.newer = now, t.newest, nil
	if t.newest != nil {
		t.newest.newer = g
	} else {
		t.oldest = g
	}
	t.newest = g
}

func (t *guests) unlink(g *guest) {
	if g.older != nil {
		g.older.newer = g.newer
	} else {
		t.oldest = g.newer
	}
	if g.newer != nil {
		g.newer.older = g.older
	} else {
		t.newest = g.older
	}
	g.older, g.newer = nil, nil
}

func (t *guests) touch(g *guest, now time.Time) {
	t.unlink(g)
	t.append(g, now)
}

// remove must be called with mu held.
func (t *guests) remove(g *guest) {
	t.unlink(g)
	t.size--
	g.stopped = true
	if first := t.byKey[g.key]; first == g {
		if g.next == nil {
			delete(t.byKey, g.key)
		} else {
			t.byKey[g.key] = g.next
		}
	} else {
		for ; first != nil; first = first.next {
			if first.next == g {
				first.next = g.next
				break
			}
		}
	}
	g.next = nil
}

// refresh notes that a process has a session of a user, under whatever tag.
func (t *guests) refresh(user string) {
	var active []director.Key
	var found []*guest // by an earlier process
	var full []*guest
	now := time.Now()
	tags := t.knownTags(now)
	t.router.View(func(d *director.Director) {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, tag := range tags {
			key := d.KeyOf(user, tag)
			have := false
			for g := t.byKey[key]; g != nil; g = g.next {
				if g.user == user {
					t.touch(g, now)
					have = true
				}
			}
			e, ok := d.Entry(key)
			if !ok {
				continue // a refresh makes no entry
			}
			active = append(active, key)
			if !have && !e.Moving {
				g := &guest{key: key, user: user, epoch: e.Epoch, host: e.Host}
				found = append(found, g)
				if old := t.add(g, now); old != nil {
					full = append(full, old)
				}
			}
		}
	})
	for _, g := range full {
		t.end(g)
	}
	for _, g := range found {
		t.router.Tell(director.SessionStart{Key: g.key, User: g.user, Epoch: g.epoch})
	}
	for _, key := range active {
		t.router.Tell(director.Active{Key: key})
	}
}

// count notes a session that a process carries already: by an earlier process of ours, it seems. One that is not where
// the entry says may have been routed under another name; it is left alone.
func (t *guests) count(login string, host netip.Addr, tag string) {
	g := &guest{user: login, login: login, host: host}
	known := true
	var full *guest
	t.router.View(func(d *director.Director) {
		g.key = d.KeyOf(login, tag)
		e, ok := d.Entry(g.key)
		if !ok || e.Host != host || e.Moving {
			return
		}
		g.epoch = e.Epoch
		t.mu.Lock()
		defer t.mu.Unlock()
		if known = t.has(g); !known {
			full = t.add(g, time.Now())
		}
	})
	if full != nil {
		t.end(full)
	}
	if !known {
		t.router.Tell(director.SessionStart{Key: g.key, User: g.user, Epoch: g.epoch})
	}
}

// has reports whether there is such a guest; it must be called with mu held.
func (t *guests) has(g *guest) bool {
	for x := t.byKey[g.key]; x != nil; x = x.next {
		if x.user == g.user && x.epoch == g.epoch && (x.login == g.login || x.login == "") {
			return true
		}
	}
	return false
}

// tagsLife is how long the tags of the hosts are remembered: they change by order of an operator only.
const tagsLife = 10 * time.Second

// knownTags returns the tags that entries may have.
func (t *guests) knownTags(now time.Time) []string {
	t.mu.Lock()
	stale := t.looked.IsZero() || now.Sub(t.looked) > tagsLife
	t.mu.Unlock()
	var hosts []director.HostInfo
	if stale {
		t.router.View(func(d *director.Director) { hosts = d.Hosts() })
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if stale {
		t.looked = now
		clear(t.tags)
		for _, h := range hosts {
			t.tags[h.Tag] = true
		}
	}
	return slices.Collect(maps.Keys(t.tags))
}

// stop takes out the guests that a Stop means. They are counted until they are ended.
func (t *guests) stop(stop director.Stop) (stopped []*guest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var next *guest
	for g := t.byKey[stop.Key]; g != nil; g = next {
		next = g.next
		if g.epoch <= stop.Epoch && (stop.User == "" || stop.User == g.user) {
			t.remove(g)
			stopped = append(stopped, g)
		}
	}
	return stopped
}

// all takes out every guest.
func (t *guests) all() (stopped []*guest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.oldest != nil {
		g := t.oldest
		t.remove(g)
		stopped = append(stopped, g)
	}
	return stopped
}

// end tells the director that a guest, which is not in the table any more, is gone.
func (t *guests) end(g *guest) {
	t.router.Tell(director.SessionEnd{Key: g.key, User: g.user, Epoch: g.epoch})
}

// since returns when a guest's user was last given a host.
func (t *guests) since(g *guest) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return g.given
}

// wrote notes that an answer has been written just now, and reports whether the guest was stopped meanwhile: then
// the kick may have been too early to hit the session.
func (t *guests) wrote(g *guest) (stopped bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g.given = time.Now()
	return g.stopped
}

func (t *guests) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.size
}

// run ends guests that nobody has refreshed, until ctx is done.
func (t *guests) run(ctx context.Context) {
	timer := time.NewTimer(t.life)
	defer timer.Stop()
	for {
		wait := t.life
		for {
			t.mu.Lock()
			g := t.oldest
			if g != nil {
				wait = time.Until(g.seen.Add(t.life))
			}
			if g == nil || wait > 0 {
				t.mu.Unlock()
				break
			}
			t.remove(g)
			t.mu.Unlock()
			t.end(g)
		}
		timer.Reset(max(wait, time.Millisecond))
		select {
		case <-ctx.Done():
			return
		case <-timer.C: // whoever came meanwhile has a life still to go
		}
	}
}
