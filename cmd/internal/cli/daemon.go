package cli

import (
	"fmt"
	"net/netip"
	"slices"
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
}

func (a *app) userMap() *cobra.Command {
	return &cobra.Command{
		Use:   "map",
		Short: "List all users and their hosts",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := a.client().Map(c.Context())
			if err != nil {
				return err
			}
			return a.show(list, func() {
				t := newTable("USER", ">HASH", "TAG", "HOST", ">SESSIONS", "EXPIRES")
				for _, e := range list {
					t.row(strings.Join(e.Users, ", "), e.Hash, e.Tag, addr(e.Host), e.Sessions, a.expiry(e.ExpiresAt, e.Moving))
				}
				t.write(a.env.Stdout)
			})
		},
	}
}

func (a *app) user() *cobra.Command {
	return &cobra.Command{
		Use:   "user USER",
		Short: "Show where a user is, and its sessions",
		Long: `Show where a user is, and its sessions with the reason of those that are not in the
kernel. USER is a name, or the hash of a user whose name is not known.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			u, err := a.client().User(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(u, func() { a.printUser(u) })
		},
	}
}

func (a *app) printUser(u admin.User) {
	line := func(name, value string) { a.printf("%-8s %s\n", name, value) }
	line("user", clean(u.User))
	line("hash", fmt.Sprint(u.Hash))
	if others := slices.DeleteFunc(slices.Clone(u.Names), func(n string) bool { return n == u.User }); len(others) > 0 {
		line("shared", "with "+clean(strings.Join(others, ", ")))
	}
	if u.Tag != "" {
		line("tag", clean(u.Tag))
	}
	host := addr(u.Host)
	if u.HashedHost != u.Host {
		host += " (hashed: " + addr(u.HashedHost) + ")"
	}
	line("host", host)
	line("expires", a.expiry(u.ExpiresAt, u.Moving))
	if len(u.Sessions) == 0 {
		return
	}
	a.printf("\n")
	t := newTable("CLIENT", "BACKEND", "PROTOCOL", "MODE", ">AGE", ">IN", ">OUT", "STATE", "REASON")
	for _, s := range u.Sessions {
		t.row(addrPort(s.Client), addrPort(s.Backend), s.Protocol, s.Mode, span(a.env.Now().Sub(s.Since)), bytesText(s.BytesIn), bytesText(s.BytesOut), s.State, s.Reason)
	}
	t.write(a.env.Stdout)
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

func (a *app) move() *cobra.Command {
	return &cobra.Command{
		Use:   "move USER HOST",
		Short: "Move a user to another host",
		Long: `Move a user to another host: its sessions end, and from then on it goes there. HOST is
the address of a host, or its name. The command returns when that is done.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.client().Move(c.Context(), args[0], args[1]); err != nil {
				return err
			}
			return a.done("%s is on %s now", clean(args[0]), clean(args[1]))
		},
	}
}

func (a *app) kick() *cobra.Command {
	return &cobra.Command{
		Use:   "kick USER",
		Short: "End all sessions of a user",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.client().Kick(c.Context(), args[0]); err != nil {
				return err
			}
			return a.done("the sessions of %s are ended", clean(args[0]))
		},
	}
}

func (a *app) host() *cobra.Command {
	var weight int
	set := &cobra.Command{
		Use:   "set ADDRESS --weight N",
		Short: "Set the weight of a host",
		Long: `Set the weight of a host: its share of the new users. With 0 it gets no new users; those
it has stay. The configuration file is not changed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if weight < 0 {
				return usageError("--weight must not be negative")
			}
			if err := a.client().HostSet(c.Context(), args[0], &weight, nil); err != nil {
				return err
			}
			return a.done("%s has weight %d now", clean(args[0]), weight)
		},
	}
	set.Flags().IntVar(&weight, "weight", 0, "0 to 1000")
	if err := set.MarkFlagRequired("weight"); err != nil {
		panic(err)
	}
	return group("host", "Change a host", "", set, a.hostUp("up", true), a.hostUp("down", false))
}

func (a *app) hostUp(word string, up bool) *cobra.Command {
	long := "Let a host get new users again."
	if !up {
		long = "Give a host no new users. Its weight is kept, and the users it has stay."
	}
	return &cobra.Command{
		Use:   word + " ADDRESS",
		Short: "Mark a host as " + word,
		Long:  long,
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.client().HostSet(c.Context(), args[0], nil, &up); err != nil {
				return err
			}
			return a.done("%s is %s now", clean(args[0]), word)
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
