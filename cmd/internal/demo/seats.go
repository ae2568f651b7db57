package demo

import (
	"context"
	"fmt"
	"net/netip"
)

// seats says how many sessions each user has on each host.
type seats map[string]map[netip.Addr]int

// seats asks the scripted backends themselves; of real ones only the daemon knows which user is where.
func (d *demo) seats(ctx context.Context, names []string) (seats, error) {
	all := seats{}
	for _, name := range names {
		all[name] = map[netip.Addr]int{}
	}
	if !d.o.Dovecot {
		for i, b := range d.site.Backends {
			for name, n := range b.Live() {
				if at := all[name]; at != nil {
					at[d.site.Hosts[i]] += n
				}
			}
		}
		return all, nil
	}
	for _, name := range names {
		u, err := d.site.Admin.User(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, s := range u.Sessions {
			all[name][s.Backend.Addr()]++
		}
	}
	return all, nil
}

// sits checks that a user has exactly n sessions, all on one host: at, or any when that is not valid.
func sits(all seats, name string, at netip.Addr, n int) error {
	hosts := all[name]
	for h, got := range hosts {
		if len(hosts) == 1 && got == n && (h == at || !at.IsValid()) {
			return nil
		}
	}
	if at.IsValid() {
		return fmt.Errorf("%s should have all %d sessions on %v, but has %v", name, n, at, hosts)
	}
	return fmt.Errorf("%s should have all %d sessions on one host, but has %v", name, n, hosts)
}

// memory is what the daemon knows about users and sessions: to be compared with what another one knows.
type memory struct {
	hosts    map[string]netip.Addr // of each user
	sessions map[string]string     // ends of each session → its user
}

func (d *demo) memory(ctx context.Context) (memory, error) {
	m := memory{hosts: map[string]netip.Addr{}, sessions: map[string]string{}}
	for _, g := range d.fleet.all() {
		if _, known := m.hosts[g.user]; known {
			continue
		}
		u, err := d.site.Admin.User(ctx, g.user)
		if err != nil {
			return m, err
		}
		m.hosts[g.user] = u.Host
		for _, s := range u.Sessions {
			m.sessions[fmt.Sprintf("%v-%v", s.Client, s.Backend)] = s.User
		}
	}
	return m, nil
}
