package cli

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"usher/cmd/internal/admin"
)

func (a *app) dump() *cobra.Command {
	return &cobra.Command{
		Use:   "dump",
		Short: "Print the commands that rebuild the run-time state",
		Long: `Print the commands that make a freshly started director what this one is: what was ordered of
hosts, directors and users since the start and stands in no configuration file.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o, err := a.client().Orders(c.Context())
			if err != nil {
				return err
			}
			usher := "usher"
			if c.Flags().Changed("socket") {
				usher += " --socket " + shellWord(a.socket)
			}
			return a.show(o, func() {
				for _, command := range dumpCommands(o) {
					a.printf("%s %s\n", usher, command)
				}
			})
		},
	}
}

// dumpCommands are in an order in which each finds what it needs: a user can only be moved to a
// host that is there.
func dumpCommands(o admin.Orders) (commands []string) {
	add := func(format string, args ...any) { commands = append(commands, fmt.Sprintf(format, args...)) }
	for _, h := range o.Hosts {
		if h.Added {
			tag := ""
			if h.Tag != "" {
				tag = " --tag=" + shellWord(h.Tag)
			}
			add("host add %v --weight %d%s", h.Address, h.Weight, tag)
		} else {
			add("host update %v %d", h.Address, h.Weight)
		}
		if h.Down {
			add("host down %v", h.Address)
		}
	}
	for _, host := range o.Gone {
		add("host remove %v", host)
	}
	for _, d := range o.DirectorsAdded {
		add("ring add %v", d)
	}
	for _, d := range o.DirectorsRemoved {
		add("ring remove %v", d)
	}
	for _, u := range o.Users {
		// A name that is not printable is what somebody typed into a login: not for a shell.
		user := fmt.Sprint(u.Hash)
		if u.User != "" && clean(u.User) == u.User {
			user = shellWord(u.User)
		}
		if strings.HasPrefix(u.User, "-") {
			user = "-- " + user // else it is an option, quoted or not
		}
		add("user move %s %v", user, u.Host)
	}
	for _, d := range o.Drains {
		add("host drain %v --rate %g/s", d.Host, d.Rate)
	}
	return commands
}

// shellWord quotes s if a shell would not take it as one plain word.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("@%+=:,./_-", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
