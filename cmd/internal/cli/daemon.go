package cli

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"usher/cmd/internal/admin"
)

// The commands that talk to the daemon.

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the daemon, its hosts, sessions and the kernel's part",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.client().Status(c.Context())
			if err != nil {
				return err
			}
			return a.show(s, func() { a.printStatus(s) })
		},
	}
}

func (a *app) printStatus(s admin.Status) {
	a.printf("%s  up %s, %s, version %s\n\n", clean(s.Director.Name), span(seconds(s.Director.UptimeS)), count(s.Director.Users, "user"), clean(s.Director.Version))
	t := newTable("HOST", "NAME", "TAG", ">WEIGHT", "UP", ">USERS", ">SESSIONS")
	for _, h := range s.Hosts {
		t.row(addr(h.Address), h.Name, h.Tag, h.Weight, yesNo(h.Up), h.Users, h.Sessions)
	}
	t.write(a.env.Stdout)
	n := s.Sessions
	a.printf("\nsessions  %d: %d xdp, %d tc, %d splice, %d copy, %d before login\n", n.Total, n.XDP, n.TC, n.Splice, n.Copy, n.Prelogin)
	k := s.Kernel
	a.printf("kernel    mode %s", clean(k.Mode))
	if k.Reason != "" {
		a.printf(" (%s)", clean(k.Reason))
	}
	a.printf(", %s, %s, %s", count(k.Flows, "flow"), count(k.Packets, "packet"), bytesText(k.Bytes))
	if k.Program != "" {
		a.printf(", program %s", clean(k.Program))
	}
	a.printf("\n")
	a.printRingSummary(s)
}

// printRingSummary is one line, longer when something needs attention.
func (a *app) printRingSummary(s admin.Status) {
	r := s.Ring
	a.printf("ring      ")
	if r.Directors <= 1 {
		a.printf("alone")
	} else {
		a.printf("%s, %s", count(r.Directors, "director"), ringState(r.Handshaked, r.Synced))
	}
	if r.Silent > 0 {
		a.printf(", %d without an answer", r.Silent)
	}
	if n := s.Director.Moving; n > 0 {
		a.printf("; %s being moved", count(n, "user"))
	}
	if n := s.Director.Waiting; n > 0 {
		a.printf("; %s waiting", count(n, "login"))
	}
	if n := s.Director.Conflicts; n > 0 {
		a.printf("; %s found on two hosts", count(n, "user"))
	}
	a.printf("\n")
}

// ringState is the word for both flags: what has not been handshaked cannot be synced.
func ringState(handshaked, synced bool) string {
	switch {
	case !handshaked:
		return "handshaking"
	case !synced:
		return "syncing"
	}
	return "synced"
}

func (a *app) userMap() *cobra.Command {
	var host string
	c := &cobra.Command{
		Use:   "map [USER...]",
		Short: "List users and their hosts",
		Long: `List all users and their hosts, or those on one host, or those that are named. It fails when
a named user has no entry. The names of users are those seen by this director; others
that the ring told of are there with their hash alone.`,
		RunE: func(c *cobra.Command, args []string) error {
			list, err := a.client().Map(c.Context(), host, args...)
			if err != nil {
				return err
			}
			err = a.show(list, func() {
				t := newTable("USER", ">HASH", "TAG", "HOST", ">SESSIONS", "EXPIRES")
				for _, e := range list {
					t.row(strings.Join(e.Users, ", "), e.Hash, e.Tag, addr(e.Host), e.Sessions, a.expiry(e.ExpiresAt, e.Moving))
				}
				t.write(a.env.Stdout)
			})
			if missing := len(args) - len(list); err == nil && host == "" && missing > 0 {
				err = fmt.Errorf("%d of %s without an entry", missing, count(len(args), "user"))
			}
			return err
		},
	}
	c.Flags().StringVar(&host, "host", "", "only the users of this host, by its address or name")
	return c
}

func (a *app) flows() *cobra.Command {
	return &cobra.Command{
		Use:   "flows",
		Short: "List what the kernel forwards",
		Long: `List what the kernel forwards: each session has two flows, one in each direction ("in"
is from the client).`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := a.client().Flows(c.Context())
			if err != nil {
				return err
			}
			return a.show(list, func() {
				t := newTable("USER", "CLIENT", "BACKEND", "DIR", "MODE", ">PACKETS", ">BYTES", ">IDLE", "STATE")
				for _, f := range list {
					t.row(f.User, addrPort(f.Client), addrPort(f.Backend), f.Direction, f.Mode, f.Packets, bytesText(f.Bytes), span(seconds(f.IdleS)), f.State)
				}
				t.write(a.env.Stdout)
			})
		},
	}
}

// expiry tells when an entry goes away.
func (a *app) expiry(at *time.Time, moving bool) string {
	switch now := a.env.Now(); {
	case moving:
		return "is being moved"
	case at == nil:
		return "not while it has sessions"
	default:
		return fmt.Sprintf("in %s (%s)", span(at.Sub(now)), at.In(now.Location()).Format(time.DateTime))
	}
}

// addr and addrPort show an address that is not there as nothing.
func addr(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func addrPort(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}
