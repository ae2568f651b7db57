package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"usher/cmd/internal/admin"
)

// site is a fake daemon with two hosts and two users, one of whom is up to no good.
type site struct {
	calls   []string
	ring    admin.Ring
	orders  admin.Orders
	flushes []admin.Flush
	step    func(*admin.Flush) // what becomes of the flushes with each look at them
	err     error              // of orders
}

func newSite() *site {
	ago := func(d time.Duration) *time.Time { at := now.Add(-d); return &at }
	ap, addr := netip.MustParseAddrPort, netip.MustParseAddr
	return &site{
		ring: admin.Ring{
			Self: ap("10.1.0.1:9090"), Handshaked: true, Synced: true, LastSync: ago(12 * time.Second), SyncS: 0.003, Minor: 9,
			Directors: []admin.RingDirector{
				{Address: ap("10.1.0.1:9090"), Self: true, Usher: true},
				{Address: ap("10.1.0.2:9090"), Usher: true, ClockDiffS: -3, Conns: []admin.RingConn{
					{Remote: ap("10.1.0.2:9090"), Role: "right", State: "synced", PingMS: 1.2, Queued: 2048, LagS: 1.5},
				}},
				{Address: ap("10.1.0.3:9090"), Silent: true, LastFailed: ago(5 * time.Minute), LastError: "connection refused", Conns: []admin.RingConn{
					{Remote: ap("10.1.0.3:9090"), Role: "left", State: "handshaking", Users: 1200},
				}},
				{Address: ap("10.1.0.4:9090"), Removed: true},
			},
			Unknown: []admin.RingConn{{Role: "in", State: "handshaking"}},
		},
		orders: admin.Orders{
			Hosts: []admin.HostOrders{
				{HostOrder: admin.HostOrder{Address: addr("10.2.0.11"), Weight: 50}, Down: true},
				{HostOrder: admin.HostOrder{Address: addr("10.2.0.19"), Tag: "eu", Weight: 30}, Added: true},
			},
			Gone: []netip.Addr{addr("10.2.0.12")},
			Users: []admin.UserOrder{
				{User: "alice@example", Hash: 704933450, Host: addr("10.2.0.11")},
				{User: "o'brien", Hash: 6, Host: addr("10.2.0.11")},
				{User: "-rf", Hash: 8, Host: addr("10.2.0.11")},
				{User: "evil\x1b[2J", Hash: 5, Host: addr("10.2.0.19")},
			},
			Drains:           []admin.FlushOrder{{Host: addr("10.2.0.11"), Drain: true, Rate: 10}},
			DirectorsAdded:   []netip.AddrPort{ap("10.1.0.9:9090")},
			DirectorsRemoved: []netip.AddrPort{ap("10.1.0.4:9090")},
		},
		flushes: []admin.Flush{{
			FlushOrder: admin.FlushOrder{Host: addr("10.2.0.11"), Drain: true, Rate: 10}, Total: 1200, Done: 300, Moving: 20,
			StartedAt: now.Add(-30 * time.Second),
		}},
	}
}

func (*site) Status() admin.Status {
	weight, changed := 100, now.Add(-2*time.Hour)
	return admin.Status{
		Director: admin.DirectorStatus{Name: "mail1", UptimeS: 273900, Users: 2, Version: "v0.1.0", Moving: 1, Conflicts: 2},
		Hosts: []admin.HostStatus{
			{Address: netip.MustParseAddr("10.2.0.11"), Name: "be1.example", Weight: 100, Up: true, Users: 1, Sessions: 1204,
				OperatorUp: true, Health: "up", ConfiguredWeight: &weight},
			{Address: netip.MustParseAddr("fd00::12"), Tag: "eu", Weight: 50, Users: 1, OperatorUp: true, Health: "down",
				HealthReason: "greeting: refused", ChangedAt: &changed, ConfiguredWeight: &weight},
			{Address: netip.MustParseAddr("fd00::13"), Tag: "eu", Weight: 1, ChangedAt: &changed},
		},
		Sessions: admin.SessionCounts{Total: 1210, TC: 1200, Splice: 3, Copy: 1, Prelogin: 6},
		Kernel:   admin.KernelStatus{Mode: "tc", Reason: "xdp: the interface has no native XDP", Flows: 2400, Packets: 987654321, Bytes: 1 << 40, Program: "usher_tc 1f2e3d4c"},
	}
}

func (*site) Map() []admin.MapEntry {
	at := now.Add(12*time.Minute + 30*time.Second)
	return []admin.MapEntry{
		{Hash: 704933450, Users: []string{"alice@example", "ALICE@example"}, Host: netip.MustParseAddr("10.2.0.11"), Sessions: 2},
		{Hash: 5, Users: []string{"evil\x1b[2J"}, Tag: "eu", Host: netip.MustParseAddr("fd00::12"), ExpiresAt: &at},
		{Hash: 4294967295, Host: netip.MustParseAddr("fd00::12"), Moving: true},
	}
}

func (*site) User(name string) (admin.User, error) {
	switch name {
	case "alice@example":
		return admin.User{
			User: name, Hash: 704933450, Host: netip.MustParseAddr("10.2.0.11"), HashedHost: netip.MustParseAddr("fd00::12"),
			Names: []string{"ALICE@example", name}, Epoch: 3, LastRefresh: now,
			Sessions: []admin.Session{
				{Client: netip.MustParseAddrPort("10.1.0.5:50123"), Backend: netip.MustParseAddrPort("10.2.0.11:143"), Protocol: "imap", Mode: "tc",
					Since: now.Add(-90 * time.Minute), BytesIn: 700, BytesOut: 123456789, ID: "a1", User: name, State: "spliced"},
				{Client: netip.MustParseAddrPort("[fd00::5]:40000"), Backend: netip.MustParseAddrPort("10.2.0.11:110"), Protocol: "pop3", Mode: "splice",
					Since: now.Add(-5 * time.Second), ID: "a2", User: "ALICE@example", State: "relaying", Reason: "timestamps on one leg only"},
			},
		}, nil
	case "idle":
		since := now.Add(-time.Hour)
		at := now.Add(45 * time.Second)
		return admin.User{User: name, Hash: 7, Tag: "eu", Host: netip.MustParseAddr("10.2.0.11"), HashedHost: netip.MustParseAddr("10.2.0.11"), ExpiresAt: &at,
			ConfiguredHost: netip.MustParseAddr("10.2.0.12"), Weak: true, Since: &since, LastRefresh: since}, nil
	case "busy":
		return admin.User{User: name, Hash: 9, Host: netip.MustParseAddr("10.2.0.11"), Moving: true, Phase: "waiting-for-everyone"}, nil
	}
	return admin.User{}, fmt.Errorf("%w %q", admin.ErrUnknownUser, name)
}

func (*site) Flows() ([]admin.FlowInfo, error) {
	flow := admin.FlowInfo{User: "alice@example", Client: netip.MustParseAddrPort("10.1.0.5:50123"), Backend: netip.MustParseAddrPort("10.2.0.11:143"),
		Mode: "tc", Packets: 12, Bytes: 700, IdleS: 61.5, State: "forward", Direction: "in", Hash: 704933450, Epoch: 3}
	back := flow
	back.Packets, back.Bytes, back.IdleS, back.Direction = 90000, 123456789, 0.25, "out"
	return []admin.FlowInfo{flow, back}, nil
}

func (s *site) Ring() admin.Ring     { return s.ring }
func (s *site) Orders() admin.Orders { return s.orders }

func (s *site) Flushes() []admin.Flush {
	for i := range s.flushes {
		if s.step != nil {
			s.step(&s.flushes[i])
		}
	}
	return slices.Clone(s.flushes)
}

// call writes an order down.
func (s *site) call(format string, args ...any) error {
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
	return s.err
}

func (s *site) UserMove(_ context.Context, user string, to netip.Addr, wait bool) (bool, error) {
	if to.String() == "10.9.9.9" {
		return false, fmt.Errorf("%w: 10.9.9.9", admin.ErrUnknownHost)
	}
	return wait, s.call("move %s %v %v", user, to, wait)
}

func (s *site) UserKick(_ context.Context, user string) error { return s.call("kick %s", user) }

func (s *site) FieldKick(_ context.Context, field, value string) error {
	return s.call("kick %s=%s", field, value)
}

func (s *site) HostAdd(_ context.Context, h admin.HostOrder) error { return s.call("add %+v", h) }

func (s *site) HostUpdate(_ context.Context, host netip.Addr, weight int) error {
	return s.call("update %v %d", host, weight)
}

func (s *site) HostUp(_ context.Context, host netip.Addr, up bool) error {
	return s.call("up %v %v", host, up)
}

func (s *site) HostRemove(_ context.Context, host netip.Addr) error { return s.call("remove %v", host) }

func (s *site) Flush(_ context.Context, o admin.FlushOrder) error { return s.call("flush %+v", o) }

func (s *site) FlushStop(_ context.Context, host netip.Addr) error {
	return s.call("flush stop %v", host)
}

func (s *site) RingAdd(_ context.Context, d netip.AddrPort) error { return s.call("ring add %v", d) }

func (s *site) RingRemove(_ context.Context, d netip.AddrPort) error {
	if d.Addr().String() == "10.1.0.99" {
		return fmt.Errorf("%w: %v", admin.ErrUnknownDirector, d)
	}
	return s.call("ring remove %v", d)
}

func (s *site) WaitSynced(context.Context) error {
	s.ring.Synced = true
	return s.call("wait")
}
