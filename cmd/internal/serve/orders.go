package serve

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"usher/cmd/internal/config"
	"usher/cmd/internal/state"
	"usher/director"
	"usher/director/placement"
	"usher/director/ring"
	"usher/steer/dovecot"
	"usher/steer/route"
)

// orders is what operators may ask of the director, by whichever socket they come, and what has to be
// remembered of it.
type orders struct {
	router  *route.Router
	hosts   []config.Host    // as configured
	members []netip.AddrPort // of the ring, as configured
	expire  time.Duration
	initial map[string]*placement.Ring // by tag, of the configured hosts, all up with weight 100
	memory  *state.Writer              // nil: orders do not outlive the process
}

var _ dovecot.Director = (*orders)(nil)

func newOrders(router *route.Router, cfg *config.Config, hosts []config.Host, members []netip.AddrPort) *orders {
	o := &orders{
		router: router, hosts: hosts, members: members, expire: cfg.Director.UserExpire.Std(),
		initial: map[string]*placement.Ring{},
	}
	nodes := map[string][]placement.Node{}
	for _, h := range hosts {
		nodes[h.Tag] = append(nodes[h.Tag], placement.Node{Addr: h.Addr, Weight: 100})
	}
	for tag, n := range nodes {
		o.initial[tag] = placement.NewRing(n)
	}
	return o
}

// begin gives an order about users, of which there may be very many. It will outlive the process soon.
func (o *orders) begin(event func(id uint64) director.Event) route.Ordered {
	ordered := o.router.Begin(event)
	if o.memory != nil {
		o.memory.Changed()
	}
	return ordered
}

// do gives an order that is done in the Step that takes it, or whose end nobody waits for. It outlives the
// process when do returns.
func (o *orders) do(event func(id uint64) director.Event) error {
	defer o.store()
	_, err := o.router.Begin(event).Finished()
	return err
}

func (o *orders) store() {
	if o.memory != nil {
		o.memory.Store()
	}
}

// Hosts implements dovecot.Director.
func (o *orders) Hosts() (all []dovecot.Host) {
	for _, h := range o.hostInfos() {
		x := dovecot.Host{Host: h.Host, Up: h.Up, Users: h.Users}
		if h.Changed != 0 {
			x.Changed = time.Unix(h.Changed, 0)
		}
		all = append(all, x)
	}
	return all
}

func (o *orders) hostInfos() (all []director.HostInfo) {
	o.router.View(func(d *director.Director) { all = d.Hosts() })
	return all
}

// HostsConfigured implements dovecot.Director.
func (o *orders) HostsConfigured() (all []netip.Addr) {
	for _, h := range o.hosts {
		all = append(all, h.Addr)
	}
	return all
}

// HostPut implements dovecot.Director.
func (o *orders) HostPut(h director.Host) error {
	return o.do(func(id uint64) director.Event { return director.HostPut{ID: id, Host: h} })
}

// HostUp implements dovecot.Director.
func (o *orders) HostUp(host netip.Addr, up bool) error {
	return o.do(func(id uint64) director.Event { return director.HostUp{ID: id, Addr: host, Up: up} })
}

// HostRemove implements dovecot.Director.
func (o *orders) HostRemove(host netip.Addr) error {
	return o.do(func(id uint64) director.Event { return director.HostRemove{ID: id, Addr: host} })
}

// HostForgetUsers implements dovecot.Director.
func (o *orders) HostForgetUsers(host netip.Addr) error {
	return o.do(func(id uint64) director.Event { return director.HostForgetUsers{ID: id, Addr: host} })
}

// flushPoll is how often somebody who waits for a flush looks how far it is.
const flushPoll = 50 * time.Millisecond

// HostFlush implements dovecot.Director.
func (o *orders) HostFlush(host netip.Addr, max int) error {
	finished, err := o.begin(func(id uint64) director.Event { return director.HostFlush{ID: id, Addr: host, Max: max} }).Finished()
	for !finished && err == nil {
		p, ok := o.progress(host)
		if !ok || !p.Ended.IsZero() || p.Done+p.Failed+p.Moving >= p.Total {
			break
		}
		time.Sleep(flushPoll)
	}
	return err
}

func (o *orders) progress(host netip.Addr) (p director.Progress, ok bool) {
	o.router.View(func(d *director.Director) { p, ok = d.Progress(host) })
	return p, ok
}

// KeyOf implements dovecot.Director.
func (o *orders) KeyOf(user, tag string) (key director.Key) {
	o.router.View(func(d *director.Director) { key = d.KeyOf(user, tag) })
	return key
}

// Lookup implements dovecot.Director.
func (o *orders) Lookup(key director.Key) (w dovecot.Whereabouts) {
	o.router.View(func(d *director.Director) {
		if e, ok := d.Entry(key); ok {
			w.Host, w.ExpiresAt = e.Host, e.LastRefresh.Add(o.expire)
		}
		w.Hashed, _ = d.HashedHost(key)
	})
	w.Configured = o.configuredHost(key)
	return w
}

// configuredHost is where a user would be if nothing had ever happened.
func (o *orders) configuredHost(key director.Key) (host netip.Addr) {
	if r := o.initial[key.Tag]; r != nil {
		host, _ = r.Lookup(key.Hash)
	}
	return host
}

// Users implements dovecot.Director.
func (o *orders) Users(host netip.Addr) iter.Seq[dovecot.UserEntry] {
	type entry struct {
		tag  string
		user dovecot.UserEntry
	}
	var all []entry
	o.router.View(func(d *director.Director) {
		for e := range d.Entries() {
			if !host.IsValid() || e.Host == host {
				all = append(all, entry{e.Key.Tag, dovecot.UserEntry{
					Hash: e.Key.Hash, Host: e.Host, ExpiresAt: e.LastRefresh.Add(o.expire),
				}})
			}
		}
	})
	slices.SortStableFunc(all, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.tag, b.tag), a.user.ExpiresAt.Compare(b.user.ExpiresAt))
	})
	return func(yield func(dovecot.UserEntry) bool) {
		for _, e := range all {
			if !yield(e.user) {
				return
			}
		}
	}
}

// UserMove implements dovecot.Director.
func (o *orders) UserMove(hash uint32, to netip.Addr) error {
	h, _ := o.host(to)
	_, err := o.begin(func(id uint64) director.Event { return director.Move{ID: id, Hash: hash, Tag: h.Tag, To: to} }).Finished()
	return err
}

// UserKick implements dovecot.Director.
func (o *orders) UserKick(user string) error {
	return o.do(func(id uint64) director.Event { return director.Kick{ID: id, User: user, Mask: true} })
}

// UserKickAlt implements dovecot.Director.
func (o *orders) UserKickAlt(field, value string) error {
	return o.do(func(id uint64) director.Event { return director.KickAlt{ID: id, Field: field, Value: value} })
}

// Ring implements dovecot.Director.
func (o *orders) Ring() ring.Status { return o.router.Ring() }

// RingAdd implements dovecot.Director.
func (o *orders) RingAdd(member netip.AddrPort) error {
	defer o.store()
	return o.router.RingAdd(member)
}

// RingRemove implements dovecot.Director.
func (o *orders) RingRemove(member netip.AddrPort) error {
	if member.Port() == 0 {
		for _, m := range o.Ring().Directors {
			if m.Addr.Addr() == member.Addr() && !m.Removed {
				member = m.Addr
				break
			}
		}
	}
	defer o.store()
	found, err := o.router.RingRemove(member)
	if err == nil && !found {
		err = fmt.Errorf("%w: %v", dovecot.ErrUnknownDirector, member)
	}
	return err
}

// WaitSynced implements dovecot.Director.
func (o *orders) WaitSynced(ctx context.Context) error { return o.router.WaitSynced(ctx) }

// host finds a host of the director.
func (o *orders) host(addr netip.Addr) (director.HostInfo, bool) {
	all := o.hostInfos()
	i := slices.IndexFunc(all, func(h director.HostInfo) bool { return h.Addr == addr.Unmap() })
	if i < 0 {
		return director.HostInfo{}, false
	}
	return all[i], true
}

// drain moves the users of a host away at a rate until none is left or ctx ends; those that move go on.
func (o *orders) drain(ctx context.Context, host netip.Addr, rate float64) error {
	return o.begin(func(id uint64) director.Event { return director.HostFlush{ID: id, Addr: host, Rate: rate} }).Wait(ctx)
}

// resume goes on with what was under way when the process ended, as soon as the ring agrees.
func (o *orders) resume(ctx context.Context, drains []state.Drain) {
	if len(drains) == 0 || o.WaitSynced(ctx) != nil {
		return
	}
	for _, d := range drains {
		_ = o.do(func(id uint64) director.Event { // its host may be gone: then there is nothing to do
			return director.HostFlush{ID: id, Addr: d.Host, Rate: d.Rate, Max: d.Parallel}
		})
	}
}

// state is what has to outlive the process.
func (o *orders) state() state.State {
	s := state.State{Configured: map[netip.Addr]int{}, Names: map[director.Key]string{}}
	for _, h := range o.hosts {
		s.Configured[h.Addr] = h.Weight
	}
	o.router.View(func(d *director.Director) {
		s.Orders = d.Orders()
		for _, m := range s.Orders.Moved {
			if e, ok := d.Entry(m.Key); ok && len(e.Users) > 0 {
				s.Names[m.Key] = e.Users[0]
			}
		}
		for _, p := range d.Progresses() {
			if p.Addr.IsValid() && p.Ended.IsZero() {
				s.Drains = append(s.Drains, state.Drain{Host: p.Addr, Rate: p.Rate})
			}
		}
	})
	s.DirectorsAdded, s.DirectorsRemoved = o.membersChanged()
	return s
}

// membersChanged compares the ring with the configuration.
func (o *orders) membersChanged() (added, removed []netip.AddrPort) {
	if len(o.members) == 0 {
		return nil, nil
	}
	var now []netip.AddrPort
	for _, m := range o.Ring().Directors {
		if !m.Removed {
			now = append(now, m.Addr)
		}
	}
	for _, m := range now {
		if !slices.Contains(o.members, m) {
			added = append(added, m)
		}
	}
	for _, m := range o.members {
		if !slices.Contains(now, m) {
			removed = append(removed, m)
		}
	}
	return added, removed
}
