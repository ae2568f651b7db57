package dovecot

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"time"

	"usher/director"
	"usher/director/placement"
	"usher/director/ring"
)

const toyExpire = 15 * time.Minute

// toy is a director that is just good enough to be asked by doveadm.
type toy struct {
	mu         sync.Mutex
	now        time.Time
	hosts      map[netip.Addr]Host
	configured []netip.Addr
	users      map[director.Key]toyUser
	members    map[netip.AddrPort]bool // that can be removed
	ring       ring.Status
	synced     chan struct{} // closed: the ring is synced
	unsync     bool          // orders make it unsynced
	flush      chan struct{} // HostFlush waits for it, unless nil
	calls      []string
}

type toyUser struct {
	host    netip.Addr
	expires time.Time
	moving  bool
}

func newToy(hosts ...string) *toy {
	t := &toy{
		now: time.Unix(1795434882, 0), hosts: map[netip.Addr]Host{}, users: map[director.Key]toyUser{},
		members: map[netip.AddrPort]bool{}, ring: ring.Status{Handshaked: true, Synced: true}, synced: make(chan struct{}),
	}
	close(t.synced)
	for _, h := range hosts {
		addr := netip.MustParseAddr(h)
		t.hosts[addr] = Host{Host: director.Host{Addr: addr, Weight: 100}, Up: true}
		t.configured = append(t.configured, addr)
	}
	return t
}

func (t *toy) user(hash uint32, host string, expires int64) {
	t.users[director.Key{Hash: hash}] = toyUser{host: netip.MustParseAddr(host), expires: time.Unix(expires, 0)}
}

// order notes a change; it must be called with mu held.
func (t *toy) order(format string, args ...any) {
	t.calls = append(t.calls, fmt.Sprintf(format, args...))
	if t.unsync {
		t.synced, t.ring.Synced = make(chan struct{}), false
	}
}

// setSynced lets the ring agree.
func (t *toy) setSynced() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ring.Synced {
		t.ring.Synced = true
		close(t.synced)
	}
}

func (t *toy) done() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.calls)
}

func (t *toy) Hosts() []Host {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Host
	for _, h := range t.hosts {
		for _, u := range t.users {
			if u.host == h.Addr {
				h.Users++
			}
		}
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b Host) int { return a.Addr.Compare(b.Addr) })
	return all
}

func (t *toy) HostsConfigured() []netip.Addr { return t.configured }

func (t *toy) HostPut(h director.Host) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.Addr == netip.MustParseAddr("127.0.2.66") {
		return director.ErrHostBusy
	}
	old, known := t.hosts[h.Addr]
	t.hosts[h.Addr] = Host{Host: h, Up: old.Up || !known, Changed: old.Changed}
	t.order("put %v@%s %d", h.Addr, h.Tag, h.Weight)
	return nil
}

func (t *toy) HostUp(host netip.Addr, up bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[host]
	h.Up, h.Changed = up, t.now
	t.hosts[host] = h
	t.order("up %v %v", host, up)
	return nil
}

func (t *toy) HostRemove(host netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.hosts[host]; !ok {
		return fmt.Errorf("%v: %w", host, director.ErrUnknownHost)
	}
	delete(t.hosts, host)
	t.order("remove %v", host)
	return nil
}

func (t *toy) HostForgetUsers(host netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, u := range t.users {
		if u.host == host || !host.IsValid() {
			delete(t.users, key)
		}
	}
	t.order("forget %v", host)
	return nil
}

func (t *toy) HostFlush(host netip.Addr, limit int) error {
	if t.flush != nil {
		<-t.flush
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.order("flush %v %d", host, limit)
	return nil
}

func (t *toy) KeyOf(user, tag string) director.Key {
	format, _ := placement.ParseFormat(placement.DefaultFormat)
	return director.Key{Hash: format.Hash(user), Tag: tag}
}

func (t *toy) Lookup(key director.Key) Whereabouts {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.users[key]
	w := Whereabouts{Host: u.host, ExpiresAt: u.expires}
	var nodes, configured []placement.Node
	for _, h := range t.hosts {
		if h.Up && h.Tag == key.Tag {
			nodes = append(nodes, placement.Node{Addr: h.Addr, Weight: h.Weight})
		}
	}
	for _, a := range t.configured {
		if key.Tag == "" {
			configured = append(configured, placement.Node{Addr: a, Weight: 100})
		}
	}
	w.Hashed, _ = placement.NewRing(nodes).Lookup(key.Hash)
	w.Configured, _ = placement.NewRing(configured).Lookup(key.Hash)
	return w
}

func (t *toy) Users(host netip.Addr) iter.Seq[UserEntry] {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []UserEntry
	for key, u := range t.users {
		if u.host == host || !host.IsValid() {
			all = append(all, UserEntry{key.Hash, u.host, u.expires})
		}
	}
	slices.SortFunc(all, func(a, b UserEntry) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), -cmp.Compare(a.Hash, b.Hash))
	})
	return slices.Values(all)
}

func (t *toy) UserMove(hash uint32, to netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	h, ok := t.hosts[to]
	key := director.Key{Hash: hash, Tag: h.Tag}
	switch {
	case !ok:
		return fmt.Errorf("%v: %w", to, director.ErrUnknownHost)
	case t.users[key].moving:
		return director.ErrMoveInProgress
	}
	t.users[key] = toyUser{host: to, expires: t.now.Add(toyExpire), moving: true}
	t.order("move %d %v", hash, to)
	return nil
}

func (t *toy) UserKick(user string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.order("kick %s", user)
	return fmt.Errorf("%s: %w", user, director.ErrUnknownUser)
}

func (t *toy) UserKickAlt(field, value string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.order("kick %s=%s", field, value)
	return nil
}

func (t *toy) Ring() ring.Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ring
}

func (t *toy) RingAdd(m netip.AddrPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.Port() == 0 {
		m = netip.AddrPortFrom(m.Addr(), 9090)
	}
	t.members[m] = true
	t.order("ring add %v", m)
	return nil
}

func (t *toy) RingRemove(m netip.AddrPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.Port() == 0 {
		m = netip.AddrPortFrom(m.Addr(), 9090)
	}
	if !t.members[m] {
		return fmt.Errorf("%v: %w", m, ErrUnknownDirector)
	}
	delete(t.members, m)
	t.order("ring remove %v", m)
	return nil
}

func (t *toy) WaitSynced(ctx context.Context) error {
	t.mu.Lock()
	synced := t.synced
	t.mu.Unlock()
	select {
	case <-synced:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func mustIP(s string) netip.Addr { return netip.MustParseAddr(s) }

func hostOf(addr, tag string, weight int) director.Host {
	return director.Host{Addr: mustIP(addr), Tag: tag, Weight: weight}
}

func ring9090(addr string) netip.AddrPort { return netip.AddrPortFrom(mustIP(addr), 9090) }

func ringSilent(addrs ...string) (all []netip.AddrPort) {
	for _, a := range addrs {
		all = append(all, ring9090(a))
	}
	return all
}
