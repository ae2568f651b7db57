package director

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"usher/director/hosts"
)

// Orders is what operators have changed at run time: what a restarted director cannot know from its
// configuration. A ring that it then joins knows better.
type Orders struct {
	Hosts []HostOrder // by address
	Moved []MoveOrder // by hash and tag
}

// HostOrder is a host that differs from the configuration.
type HostOrder struct {
	Host    Host
	Removed bool
	Down    bool  // by the operator
	Changed int64 // unix time of the last change of up and down
	Ordered int64 // unix time of the order about the weight, or of the removal
}

// MoveOrder is a user that an operator has put on a host.
type MoveOrder struct {
	Key     Key
	Host    netip.Addr
	Ordered int64 // unix time
	Expires int64 // unix time; then the order is forgotten with the entry
}

// Orders returns what has to outlive this process.
func (d *Director) Orders() Orders {
	var o Orders
	for _, s := range d.hosts.All() {
		if !s.Configured || s.Ordered != 0 || s.OperatorDown || s.Changed != 0 {
			o.Hosts = append(o.Hosts, HostOrder{Host: s.Host, Down: s.OperatorDown, Changed: s.Changed, Ordered: s.Ordered})
		}
	}
	for addr, r := range d.gone {
		o.Hosts = append(o.Hosts, HostOrder{Host: Host{Addr: addr}, Removed: true, Ordered: r.at})
	}
	slices.SortFunc(o.Hosts, func(a, b HostOrder) int { return a.Host.Addr.Compare(b.Host.Addr) })
	for _, key := range slices.SortedFunc(maps.Keys(d.ordered), compareKeys) {
		if e := d.users.Get(key); e != nil {
			o.Moved = append(o.Moved, MoveOrder{
				Key: key, Host: d.users.Host(e), Ordered: d.ordered[key],
				Expires: d.clock.unix(e.LastRefresh() + d.config.UserExpire),
			})
		}
	}
	return o
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Hash, b.Hash), cmp.Compare(a.Tag, b.Tag))
}

// restore takes over the orders of an earlier process. Its users follow when it is known what the kernel
// has: that is newer.
func (d *Director) restore(o Orders) {
	for _, h := range o.Hosts {
		h.Host.Addr = h.Host.Addr.Unmap()
		before, known := d.hosts.Get(h.Host.Addr)
		if h.Removed {
			d.noteRemoval(h.Host.Addr, h.Ordered)
			d.removeHost(h.Host.Addr)
			continue
		}
		if known { // what the file does not say, or has changed meanwhile
			h.Host.Tag, h.Host.Name = before.Tag, before.Name
		}
		if known && h.Ordered == 0 {
			h.Host.Weight = before.Weight
		}
		if h.Host.Weight > MaxWeight || !known && d.hosts.Len() == maxHosts {
			continue
		}
		d.hosts.Put(h.Host)
		d.hosts.Set(h.Host.Addr, func(s *hosts.State) {
			s.OperatorDown, s.Changed, s.Ordered = h.Down, h.Changed, h.Ordered
		})
	}
	d.pending = append(d.pending, o.Moved...)
}

// startsUp reports whether an event belongs to the time before the first user is known.
func (d *Director) startsUp(ev Event) bool {
	switch ev.(type) {
	case HostPut, HostUp, Restore, Adopt:
		return true
	}
	return false
}

// restoreMoves makes entries of users that were moved, unless they have one.
func (d *Director) restoreMoves() {
	for _, o := range d.pending {
		host, ok := d.hosts.Get(o.Host.Unmap())
		at := d.clock.moment(o.Expires) - d.config.UserExpire
		if !ok || host.Tag != o.Key.Tag || o.Key.Hash == 0 || at+d.config.UserExpire <= d.now {
			continue
		}
		e := d.users.Get(o.Key)
		if e == nil {
			e = d.users.Add(o.Key, host.Addr, min(at, d.now))
			d.tellLater(e)
		}
		if d.users.Host(e) == host.Addr {
			d.ordered[o.Key] = o.Ordered
		}
	}
	d.pending = nil
}

// LookupsWaiting returns the number of lookups that are not answered yet.
func (d *Director) LookupsWaiting() int { return len(d.waiting.byID) }

// Conflicts returns how often two directors had a user on different hosts. It should be 0.
func (d *Director) Conflicts() int { return d.conflicts }

// unixTime turns 0 into the zero time.
func unixTime(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0)
}
