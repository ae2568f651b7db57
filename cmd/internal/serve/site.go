package serve

import (
	"fmt"
	"slices"
	"time"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/config"
	"usher/director"
	"usher/loader"
	"usher/steer"
	"usher/steer/handover"
	"usher/steer/health"
)

// site is the daemon as the admin interface sees it.
type site struct {
	cfg     *config.Config
	hosts   []config.Host // as configured
	server  *steer.Server
	orders  *orders
	checker *health.Checker // nil: no checks
	kernel  *loader.Kernel  // nil: user space only
	reason  string          // why
	start   time.Time
	version string
}

var _ admin.Source = (*site)(nil)

// mode is what new sessions aim at.
func (s *site) mode() steer.Mode {
	if s.kernel != nil {
		return steer.Mode(s.kernel.Mode())
	}
	if s.cfg.Steer.Mode == "copy" {
		return steer.ModeCopy
	}
	return steer.ModeSplice
}

// Status implements admin.Source.
func (s *site) Status() admin.Status {
	counts := s.server.Counts()
	st := admin.Status{
		Director: admin.DirectorStatus{Name: s.cfg.Director.Name, UptimeS: time.Since(s.start).Seconds(), Version: s.version},
		Sessions: admin.SessionCounts{
			Total: counts.Total, Prelogin: counts.Prelogin,
			XDP: counts.ByMode[steer.ModeXDP], TC: counts.ByMode[steer.ModeTC],
			Splice: counts.ByMode[steer.ModeSplice], Copy: counts.ByMode[steer.ModeCopy],
		},
		Kernel: admin.KernelStatus{Mode: string(s.mode()), Reason: s.reason},
	}
	checks := healthOf(s.checker)
	s.server.Router.View(func(d *director.Director) {
		st.Director.Users, st.Director.Moving = d.Users(), d.Moving()
		st.Director.Waiting, st.Director.Conflicts = d.LookupsWaiting(), uint64(d.Conflicts())
		for _, h := range d.Hosts() {
			status := admin.HostStatus{
				Address: h.Addr, Name: h.Name, Tag: h.Tag, Weight: h.Weight, Up: h.Up, Users: h.Users, Sessions: h.Sessions,
				OperatorUp: !h.OperatorDown, Health: checks[h.Addr].verdict, HealthReason: checks[h.Addr].reason,
				ChangedAt: timeOrNull(h.Changed),
			}
			for _, c := range s.hosts {
				if c.Addr == h.Addr {
					status.ConfiguredWeight = &c.Weight
				}
			}
			st.Hosts = append(st.Hosts, status)
		}
	})
	if s.kernel != nil {
		st.Kernel.Program = s.kernel.Program()
		st.Kernel.Flows = 2 * counts.ByMode[s.mode()]
		if c, err := s.kernel.Counters(); err == nil {
			st.Kernel.Packets, st.Kernel.Bytes = c["forwarded"].Packets, c["forwarded"].Bytes
		}
	}
	return st
}

func expiry(at time.Time) *time.Time {
	if at.IsZero() {
		return nil
	}
	return &at
}

// Map implements admin.Source.
func (s *site) Map() []admin.MapEntry {
	var all []admin.MapEntry
	s.server.Router.View(func(d *director.Director) {
		for e := range d.Entries() {
			all = append(all, admin.MapEntry{
				Hash: e.Key.Hash, Users: e.Users, Tag: e.Key.Tag, Host: e.Host, Sessions: e.Sessions,
				Moving: e.Moving, ExpiresAt: expiry(e.ExpiresAt),
			})
		}
	})
	return all
}

// User implements admin.Source. The user of a name that looks like a number is found
// by its name first, unlike in Dovecot.
func (s *site) User(name string) (admin.User, error) {
	var u admin.User
	var key director.Key
	found := false
	s.server.Router.View(func(d *director.Director) {
		var e director.EntryInfo
		if e, found = s.entry(d, name); !found {
			return
		}
		key = e.Key
		u = admin.User{
			User: name, Hash: key.Hash, Tag: key.Tag, Host: e.Host, ExpiresAt: expiry(e.ExpiresAt), Names: e.Users,
			Epoch: e.Epoch, Moving: e.Moving, LastRefresh: e.LastRefresh, Weak: e.Weak, Phase: e.Phase,
			ConfiguredHost: s.orders.configuredHost(key),
		}
		if !e.Ordered.IsZero() {
			u.Since = &e.Ordered
		}
		u.HashedHost, _ = d.HashedHost(key)
	})
	if !found {
		return u, fmt.Errorf("%w: %s", admin.ErrUnknownUser, name)
	}
	for _, i := range s.server.Of(key) {
		if i.Mode == "" {
			continue // still logging in
		}
		x := admin.Session{
			Client: i.Origin, Backend: i.Backend.Remote, Protocol: i.Protocol, Mode: string(i.Mode), Since: i.Since,
			BytesIn: i.ToBackend, BytesOut: i.ToClient,
			ID: fmt.Sprint(i.ID), User: i.User, State: i.State.String(), Reason: string(i.Reason),
		}
		if i.State == steer.Forwarded {
			if f, err := s.kernel.Flow(i.Client); err == nil {
				x.BytesIn = f.Bytes
			}
			if f, err := s.kernel.Flow(i.Backend); err == nil {
				x.BytesOut = f.Bytes
			}
		}
		u.Sessions = append(u.Sessions, x)
	}
	return u, nil
}

// entry finds the entry of a user, of any tag, or of a hash in decimal.
func (s *site) entry(d *director.Director, name string) (director.EntryInfo, bool) {
	for _, tag := range tags(d) {
		if e, ok := d.Entry(d.KeyOf(name, tag)); ok {
			return e, true
		}
	}
	var hash uint32
	if n, err := fmt.Sscanf(name, "%d", &hash); n == 1 && err == nil && fmt.Sprint(hash) == name {
		for _, tag := range tags(d) {
			if e, ok := d.Entry(director.Key{Hash: hash, Tag: tag}); ok {
				return e, true
			}
		}
	}
	return director.EntryInfo{}, false
}

// tags returns the tags of the hosts, none first.
func tags(d *director.Director) []string {
	all := []string{""}
	for _, h := range d.Hosts() {
		if !slices.Contains(all, h.Tag) {
			all = append(all, h.Tag)
		}
	}
	return all
}

// Flows implements admin.Source.
func (s *site) Flows() ([]admin.FlowInfo, error) {
	if s.kernel == nil {
		return nil, nil
	}
	var all []admin.FlowInfo
	err := s.kernel.Flows(func(f handover.Flow) bool {
		i := admin.FlowInfo{
			User: f.Owner.User, Client: f.Other.Remote, Backend: f.Tuple.Remote, Mode: string(s.mode()),
			Packets: f.Packets, Bytes: f.Bytes, IdleS: f.Idle.Seconds(), State: f.State(), Direction: "out",
			Hash: f.Owner.Hash, Epoch: f.Owner.Epoch,
		}
		if f.FromClient {
			i.Client, i.Backend, i.Direction = i.Backend, i.Client, "in"
		}
		all = append(all, i)
		return true
	})
	return all, err
}
