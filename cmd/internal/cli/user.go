package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"usher/cmd/internal/admin"
)

func (a *app) user() *cobra.Command {
	c := &cobra.Command{
		Use:   "user USER",
		Short: "Show where a user is, and its sessions; move or kick it",
		Long: `Show where a user is, and its sessions at this director with the reason of those that
are not in the kernel. USER is a name, or the hash of a user whose name is not known.
A user whose name is a command is meant after two dashes: usher user -- move.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			u, err := a.client().User(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(u, func() { a.printUser(u) })
		},
	}
	c.AddCommand(a.userMove(), a.userKick())
	return c
}

// printUser shows the three hosts that may differ: where the user is, where its hash points now, and
// where it would point with the hosts of the configuration file.
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
	if u.Since != nil {
		host += ", moved there " + a.ago(*u.Since)
	}
	line("host", host)
	line("hashed", addr(u.HashedHost))
	line("file", addr(u.ConfiguredHost))
	line("used", a.ago(u.LastRefresh))
	expires := a.expiry(u.ExpiresAt, u.Moving)
	if u.Phase != "" {
		expires += ", " + clean(u.Phase)
	}
	if u.Weak {
		expires += ", weak: the ring is asked whether it is used elsewhere"
	}
	line("expires", expires)
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

// ago tells how long something is past, and when it was.
func (a *app) ago(at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	now := a.env.Now()
	return fmt.Sprintf("%s ago (%s)", span(now.Sub(at)), at.In(now.Location()).Format(time.DateTime))
}

// userMove tells a move that has only begun from one that is over, as the exit code cannot.
func (a *app) userMove() *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:   "move USER HOST",
		Short: "Move a user to another host",
		Long: `Move a user to another host: its sessions end at all directors, its logins wait until
they have, and from then on it goes there. HOST is the address of a host, or its name.`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeHost(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.client().UserMove(c.Context(), args[0], args[1], wait)
			if err != nil {
				return err
			}
			if r.State == admin.Started {
				return a.replied(r, "%s is being moved to %s", clean(args[0]), clean(args[1]))
			}
			return a.replied(r, "%s is on %s now", clean(args[0]), clean(args[1]))
		},
	}
	waitFlag(c, &wait, "until the move has ended, and fail if it failed")
	return c
}

// userKick has no --wait: the other directors do not say when they are done.
func (a *app) userKick() *cobra.Command {
	var field string
	c := &cobra.Command{
		Use:   "kick USER",
		Short: "End all sessions of a user",
		Long: `End all sessions of a user at all directors. It may log in again at once. With --field, the
sessions whose auth reply had this value in that field (user_...): usher user kick --field user_group staff.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			whose := clean(args[0])
			kick := func() (admin.Reply, error) { return a.client().UserKick(c.Context(), args[0]) }
			if field != "" {
				whose = clean(field) + " " + whose
				kick = func() (admin.Reply, error) { return a.client().FieldKick(c.Context(), field, args[0]) }
			}
			r, err := kick()
			if err != nil {
				return err
			}
			if r.State == admin.Started {
				return a.replied(r, "the sessions of %s are ended here; the other directors were told", whose)
			}
			return a.replied(r, "the sessions of %s are ended", whose)
		},
	}
	c.Flags().StringVar(&field, "field", "", "a field of the auth reply; the argument is its value")
	return c
}
