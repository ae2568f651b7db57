package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"usher/cmd/internal/admin"
)

func (a *app) ring() *cobra.Command {
	return group("ring", "Look at the ring of directors and change it",
		`Look at the ring of directors and change it. DIRECTOR is an address, with a port unless it
is that of this director: "10.1.0.3", "10.1.0.3:9090", "[fd00::3]:9090".`,
		a.ringList(),
		a.ringCommand("add", "Add a director",
			`Add a director to the ring. It must list this one, too. director.servers of the
configuration is not changed.`, "is in the ring now",
			func(ctx context.Context, director string, wait bool) (admin.Reply, error) {
				return a.client().RingAdd(ctx, director, wait)
			}),
		a.ringCommand("remove", "Remove a director",
			`Remove a director from the ring. Its connections are closed; stop it first, or it
connects again.`, "is not in the ring any more",
			func(ctx context.Context, director string, wait bool) (admin.Reply, error) {
				return a.client().RingRemove(ctx, director, wait)
			}),
	)
}

// ringCommand is a command about one director.
func (a *app) ringCommand(word, short, long, done string, do func(ctx context.Context, director string, wait bool) (admin.Reply, error)) *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:   word + " DIRECTOR",
		Short: short,
		Long:  long,
		Args:  cobra.ExactArgs(1),
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

func (a *app) ringList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the directors and the connections to them",
		Long: `List the directors and the connections to them: state, bytes that wait to be written and the
age of the oldest of them (LAG), how far the other's clock is ahead (CLOCK), and the last
error.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.client().Ring(c.Context())
			if err != nil {
				return err
			}
			return a.show(r, func() { a.printRing(r) })
		},
	}
}

// printRing has a line for each connection, and one for each director without any, in the order of the
// ring. Connections whose director is not known yet come first.
func (a *app) printRing(r admin.Ring) {
	if r.Others() == 0 {
		a.printf("alone")
	} else {
		a.printf("%s", ringState(r.Handshaked, r.Synced))
	}
	if r.LastSync != nil {
		a.printf(", last sync %s ago in %.0f ms", span(a.env.Now().Sub(*r.LastSync)), r.SyncS*1000)
	}
	if r.Minor > 0 {
		a.printf(", protocol 1.%d", r.Minor)
	}
	a.printf("\n\n")
	t := newTable("DIRECTOR", "KIND", "ROLE", "STATE", ">PING", ">QUEUED", ">LAG", ">CLOCK", "LAST ERROR")
	conn := func(d admin.RingDirector, name, kind string, c admin.RingConn) {
		state := c.State
		if state == "handshaking" && c.Users > 0 {
			state += fmt.Sprintf(" (%s)", count(c.Users, "user"))
		}
		if d.Silent {
			state += ", no answer"
		}
		t.row(name, kind, c.Role, state, fmt.Sprintf("%.0f ms", c.PingMS), bytesText(uint64(c.Queued)), span(seconds(c.LagS)), clock(d), a.lastError(d))
	}
	for _, c := range r.Unknown {
		conn(admin.RingDirector{}, "unknown", "", c)
	}
	for _, d := range r.Directors {
		kind := "dovecot"
		if d.Usher {
			kind = "usher"
		}
		switch {
		case d.Self:
			t.row(addrPort(d.Address), kind, "self", "", "", "", "", "", a.lastError(d))
		case len(d.Conns) == 0:
			role := ""
			if d.Removed {
				role = "removed"
			}
			// Of those that never connected to us nothing is known.
			t.row(addrPort(d.Address), "", role, "", "", "", "", "", a.lastError(d))
		}
		for _, c := range d.Conns {
			conn(d, addrPort(d.Address), kind, c)
		}
	}
	t.write(a.env.Stdout)
}

// clock shows how far ahead a director's clock is: conflicts are decided by times.
func clock(d admin.RingDirector) string {
	if d.ClockDiffS == 0 {
		return ""
	}
	return fmt.Sprintf("%+.0f s", d.ClockDiffS)
}

// lastError tells how long ago it was: an old one is history.
func (a *app) lastError(d admin.RingDirector) string {
	if d.LastFailed == nil {
		return d.LastError
	}
	return fmt.Sprintf("%s ago: %s", span(a.env.Now().Sub(*d.LastFailed).Truncate(time.Second)), d.LastError)
}
