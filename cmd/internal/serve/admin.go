package serve

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"usher/cmd/internal/admin"
	"usher/director"
	"usher/steer/dovecot"
	"usher/steer/route"
)

// What admin.Source asks of the director and its ring.

// Ring implements admin.Source.
func (s *site) Ring() admin.Ring { return admin.NewRing(s.orders.Ring()) }

// Flushes implements admin.Source.
func (s *site) Flushes() []admin.Flush {
	var all []director.Progress
	s.server.Router.View(func(d *director.Director) {
		if p, ok := d.Progress(netip.Addr{}); ok {
			all = append(all, p)
		}
		for _, h := range d.Hosts() {
			if p, ok := d.Progress(h.Addr); ok {
				all = append(all, p)
			}
		}
	})
	slices.SortStableFunc(all, func(a, b director.Progress) int { return a.Started.Compare(b.Started) })
	var flushes []admin.Flush
	for _, p := range all {
		h, _ := s.orders.host(p.Addr)
		f := admin.Flush{
			FlushOrder: admin.FlushOrder{Host: p.Addr, Drain: p.Addr.IsValid() && h.Weight == 0, Rate: p.Rate},
			Total:      p.Total, Done: p.Done, Failed: p.Failed, Moving: p.Moving, StartedAt: p.Started,
		}
		if !p.Ended.IsZero() {
			f.EndedAt = &p.Ended
		}
		flushes = append(flushes, f)
	}
	return flushes
}

// Orders implements admin.Source.
func (s *site) Orders() admin.Orders {
	st := s.orders.state()
	var a admin.Orders
	for _, h := range st.Orders.Hosts {
		_, configured := st.Configured[h.Host.Addr]
		if h.Removed {
			if configured {
				a.Gone = append(a.Gone, h.Host.Addr)
			}
			continue
		}
		a.Hosts = append(a.Hosts, admin.HostOrders{
			HostOrder: admin.HostOrder{Address: h.Host.Addr, Name: h.Host.Name, Tag: h.Host.Tag, Weight: h.Host.Weight},
			Added:     !configured, Down: h.Down,
		})
	}
	for _, m := range st.Orders.Moved {
		user := st.Names[m.Key]
		if user == "" {
			user = fmt.Sprint(m.Key.Hash)
		}
		a.Users = append(a.Users, admin.UserOrder{User: user, Host: m.Host})
	}
	for _, d := range st.Drains {
		h, _ := s.orders.host(d.Host)
		a.Drains = append(a.Drains, admin.FlushOrder{Host: d.Host, Drain: h.Weight == 0, Rate: d.Rate, Parallel: d.Parallel})
	}
	a.DirectorsAdded, a.DirectorsRemoved = st.DirectorsAdded, st.DirectorsRemoved
	return a
}

// UserMove implements admin.Source.
func (s *site) UserMove(ctx context.Context, user string, to netip.Addr, wait bool) (finished bool, err error) {
	h, ok := s.orders.host(to)
	if !ok {
		return false, fmt.Errorf("%w: %v", admin.ErrUnknownHost, to)
	}
	move := func(id uint64) director.Event {
		ev := director.Move{ID: id, User: user, Tag: h.Tag, To: h.Addr}
		if hash, ok := s.hashOnly(user); ok {
			ev.User, ev.Hash = "", hash
		}
		return ev
	}
	if wait {
		return true, adminError(s.orders.begin(move).Wait(ctx))
	}
	finished, err = s.orders.begin(move).Finished()
	return finished, adminError(err)
}

// hashOnly reports whether a name is the number of a hash, and that of no user with an entry.
func (s *site) hashOnly(name string) (hash uint32, ok bool) {
	n, err := strconv.ParseUint(name, 10, 32)
	if err != nil || fmt.Sprint(n) != name {
		return 0, false
	}
	s.server.Router.View(func(d *director.Director) {
		e, found := s.entry(d, name)
		ok = !found || e.Key.Hash == uint32(n)
	})
	return uint32(n), ok
}

// UserKick implements admin.Source. The user's own spelling of the name counts less than
// whom it means: alice is also who logged in as Alice, if the hash says so.
func (s *site) UserKick(_ context.Context, user string) error {
	var entry director.EntryInfo
	var known bool
	s.server.Router.View(func(d *director.Director) { entry, known = s.entry(d, user) })
	names := slices.DeleteFunc(slices.Clone(entry.Users), func(name string) bool { return !strings.EqualFold(name, user) })
	switch {
	case len(names) == 0 && len(entry.Users) > 0:
		return fmt.Errorf("%w: %s; its hash %v is that of %s", admin.ErrUnknownUser, user, entry.Key, strings.Join(entry.Users, ", "))
	case !known && len(s.orders.members) == 0:
		return fmt.Errorf("%w: %s", admin.ErrUnknownUser, user)
	case len(names) == 0: // its sessions may be with other directors
		return adminError(s.orders.UserKick(user))
	}
	for _, name := range names {
		if err := s.orders.do(func(id uint64) director.Event {
			return director.Kick{ID: id, User: name, Tag: entry.Key.Tag}
		}); err != nil {
			return adminError(err)
		}
	}
	return nil
}

// FieldKick implements admin.Source.
func (s *site) FieldKick(_ context.Context, field, value string) error {
	return adminError(s.orders.UserKickAlt(field, value))
}

// HostAdd implements admin.Source.
func (s *site) HostAdd(_ context.Context, h admin.HostOrder) error {
	if _, ok := s.orders.host(h.Address); ok {
		return fmt.Errorf("%w: %v is a host already", admin.ErrConflict, h.Address)
	}
	return adminError(s.orders.HostPut(director.Host{Addr: h.Address, Name: h.Name, Tag: h.Tag, Weight: h.Weight}))
}

// HostUpdate implements admin.Source.
func (s *site) HostUpdate(_ context.Context, host netip.Addr, weight int) error {
	h, ok := s.orders.host(host)
	if !ok {
		return fmt.Errorf("%w: %v", admin.ErrUnknownHost, host)
	}
	h.Weight = weight
	return adminError(s.orders.HostPut(h.Host))
}

// HostUp implements admin.Source.
func (s *site) HostUp(_ context.Context, host netip.Addr, up bool) error {
	return adminError(s.orders.HostUp(host, up))
}

// HostRemove implements admin.Source.
func (s *site) HostRemove(_ context.Context, host netip.Addr) error {
	return adminError(s.orders.HostRemove(host))
}

// Flush implements admin.Source.
func (s *site) Flush(ctx context.Context, o admin.FlushOrder) error {
	if o.Drain {
		if err := s.HostUpdate(ctx, o.Host, 0); err != nil {
			return err
		}
	}
	if o.Force {
		return adminError(s.orders.HostForgetUsers(o.Host))
	}
	return adminError(s.orders.do(func(id uint64) director.Event {
		return director.HostFlush{ID: id, Addr: o.Host, Max: o.Parallel, Rate: o.Rate}
	}))
}

// FlushStop implements admin.Source.
func (s *site) FlushStop(_ context.Context, host netip.Addr) error {
	return adminError(s.orders.do(func(id uint64) director.Event { return director.HostFlushStop{ID: id, Addr: host} }))
}

// RingAdd implements admin.Source.
func (s *site) RingAdd(_ context.Context, member netip.AddrPort) error {
	if member.Port() == 0 {
		member = netip.AddrPortFrom(member.Addr(), s.orders.Ring().Self.Port())
	}
	return adminError(s.orders.RingAdd(member))
}

// RingRemove implements admin.Source.
func (s *site) RingRemove(_ context.Context, member netip.AddrPort) error {
	return adminError(s.orders.RingRemove(member))
}

// WaitSynced implements admin.Source.
func (s *site) WaitSynced(ctx context.Context) error { return s.orders.WaitSynced(ctx) }

// adminError gives the director's errors the identity that the admin interface knows.
func adminError(err error) error {
	for _, e := range []struct{ here, admin error }{
		{director.ErrUnknownUser, admin.ErrUnknownUser},
		{director.ErrUnknownHost, admin.ErrUnknownHost},
		{director.ErrTagMismatch, admin.ErrInvalid},
		{director.ErrTagChange, admin.ErrInvalid},
		{director.ErrWeight, admin.ErrInvalid},
		{director.ErrTooManyHosts, admin.ErrInvalid},
		{director.ErrMoveInProgress, admin.ErrConflict},
		{director.ErrHostRemoved, admin.ErrConflict},
		{director.ErrHostBusy, admin.ErrConflict},
		{director.ErrNoFlush, admin.ErrConflict},
		{dovecot.ErrUnknownDirector, admin.ErrUnknownDirector},
		{route.ErrNoRing, admin.ErrInvalid},
	} {
		if errors.Is(err, e.here) {
			return fmt.Errorf("%w (%w)", err, e.admin)
		}
	}
	return err
}

func timeOrNull(at int64) *time.Time {
	if at == 0 {
		return nil
	}
	t := time.Unix(at, 0)
	return &t
}
