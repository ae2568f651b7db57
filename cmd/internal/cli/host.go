package cli

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"usher/cmd/internal/admin"
)

func (a *app) host() *cobra.Command {
	return group("host", "Look at the hosts and change them",
		`Look at the hosts and change them. HOST is the address of a host, or its name. The
configuration file is not changed; usher dump prints what differs from it.`,
		a.hostList(), a.hostAdd(), a.hostUpdate(),
		a.hostCommand("remove", "Remove a host",
			`Remove a host. The sessions of its users end, and they go to other hosts at their next
login. To move them in an orderly way, drain the host first.`, "is no host any more",
			func(ctx context.Context, host string, wait bool) (admin.Reply, error) {
				return a.client().HostRemove(ctx, host, wait)
			}),
		a.hostCommand("up", "Mark a host as up",
			`Let a host get new users again. Health checks that say down are overruled until the
checks have been good once.`, "is up now",
			func(ctx context.Context, host string, wait bool) (admin.Reply, error) {
				return a.client().HostUp(ctx, host, true, wait)
			}),
		a.hostCommand("down", "Mark a host as down",
			`Give a host no new users, whatever its health checks say. Its weight is kept, and the
users it has stay.`, "is down now",
			func(ctx context.Context, host string, wait bool) (admin.Reply, error) {
				return a.client().HostUp(ctx, host, false, wait)
			}),
		a.hostDrain(),
	)
}

// hostList shows more of the hosts than status does, which has them as well.
func (a *app) hostList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the hosts",
		Long: `List the hosts: weight, state with its reason, users, sessions at this director, and how far
a drain is.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.client().Status(c.Context())
			if err != nil {
				return err
			}
			flushes, err := a.client().Flushes(c.Context())
			if err != nil {
				return err
			}
			return a.show(s.Hosts, func() { a.printHosts(s.Hosts, flushes) })
		},
	}
}

// printHosts marks what differs from the configuration file, and what is under way.
func (a *app) printHosts(hosts []admin.HostStatus, flushes []admin.Flush) {
	t := newTable("HOST", "NAME", "TAG", ">WEIGHT", "STATE", "CHANGED", ">USERS", ">SESSIONS", "FLUSH")
	for _, h := range hosts {
		weight := strconv.Itoa(h.Weight)
		if h.ConfiguredWeight == nil {
			weight += " (added)"
		} else if *h.ConfiguredWeight != h.Weight {
			weight += fmt.Sprintf(" (file: %d)", *h.ConfiguredWeight)
		}
		changed := ""
		if h.ChangedAt != nil {
			changed = span(a.env.Now().Sub(*h.ChangedAt)) + " ago"
		}
		flush := ""
		for _, f := range flushes {
			if f.Host == h.Address && f.EndedAt == nil {
				flush = fmt.Sprintf("%d of %d moved", f.Done, f.Total)
			}
		}
		t.row(addr(h.Address), h.Name, h.Tag, weight, hostState(h), changed, h.Users, h.Sessions, flush)
	}
	t.write(a.env.Stdout)
}

// hostState names who said so.
func hostState(h admin.HostStatus) string {
	reason := ""
	if h.HealthReason != "" {
		reason = ": " + h.HealthReason
	}
	switch {
	case !h.OperatorUp:
		return "down (ordered)"
	case !h.Up:
		return "down (health" + reason + ")"
	case h.Health == "down":
		return "up (ordered, health says down" + reason + ")"
	}
	return "up"
}

// hostAdd resolves names here, not in the daemon: the operator sees at once what a name means, and
// the daemon never waits for DNS.
func (a *app) hostAdd() *cobra.Command {
	var (
		o    admin.HostOrder
		wait bool
	)
	c := &cobra.Command{
		Use:   "add HOST",
		Short: "Add a host",
		Long: `Add a host, up at first. HOST is an address, or a name, of which every address becomes a
host. Only new users go there.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if o.Weight < 0 {
				return usageError("--weight must not be negative")
			}
			addrs, err := addressesOf(c.Context(), args[0])
			if err != nil {
				return err
			}
			if _, err := netip.ParseAddr(args[0]); err != nil {
				o.Name = args[0]
			}
			all := admin.Reply{State: admin.Finished, Warnings: []string{}}
			for _, o.Address = range addrs {
				r, err := a.client().HostAdd(c.Context(), o, wait)
				if err != nil {
					return err
				}
				if r.State == admin.Started {
					all.State = r.State
				}
				all.Warnings = r.Warnings // each has those before it
			}
			return a.agreed(all, "%s is a host now", clean(args[0]))
		},
	}
	c.Flags().IntVar(&o.Weight, "weight", 100, "its share of the new users, 0 to 1000")
	c.Flags().StringVar(&o.Tag, "tag", "", "only users with this tag go there")
	waitFlag(c, &wait, "until the ring agrees")
	return c
}

// addressesOf resolves a name of a host that is to be added.
func addressesOf(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	if strings.Trim(host, "0123456789.") == "" {
		return nil, usageError(fmt.Sprintf("%q is no host", host)) // a mistyped address
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

func (a *app) hostUpdate() *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:   "update HOST WEIGHT",
		Short: "Set the weight of a host",
		Long: `Set the weight of a host: its share of the new users, 0 to 1000. With 0 it gets no new
users; those it has stay.`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeHost(0),
		RunE: func(c *cobra.Command, args []string) error {
			weight, err := strconv.Atoi(args[1])
			if err != nil || weight < 0 {
				return usageError(fmt.Sprintf("%q is no weight, want 0 to 1000", args[1]))
			}
			r, err := a.client().HostUpdate(c.Context(), args[0], weight, wait)
			if err != nil {
				return err
			}
			return a.agreed(r, "%s has weight %d now", clean(args[0]), weight)
		},
	}
	waitFlag(c, &wait, "until the ring agrees")
	return c
}

// hostCommand is a command about one host that has no other argument.
func (a *app) hostCommand(word, short, long, done string, do func(ctx context.Context, host string, wait bool) (admin.Reply, error)) *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:               word + " HOST",
		Short:             short,
		Long:              long,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost(0),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := do(c.Context(), args[0], wait)
			if err != nil {
				return err
			}
			return a.agreed(r, "%s %s", clean(args[0]), done)
		},
	}
	waitFlag(c, &wait, "until the ring agrees")
	return c
}

// waitFlag is the same word everywhere, but what is waited for differs.
func waitFlag(c *cobra.Command, wait *bool, until string) {
	c.Flags().BoolVar(wait, "wait", false, "wait "+until)
}

// completeHost completes the argument at this place with the addresses of the hosts.
func (a *app) completeHost(place int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) != place {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		s, err := a.client().Status(c.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var hosts []cobra.Completion
		for _, h := range s.Hosts {
			hosts = append(hosts, cobra.CompletionWithDesc(h.Address.String(), fmt.Sprintf("%s weight %d, %s", clean(h.Name), h.Weight, hostState(h))))
		}
		return hosts, cobra.ShellCompDirectiveNoFileComp
	}
}
