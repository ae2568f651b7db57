package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// man writes manual pages from what --help says. (Cobra's own generator would bring a Markdown
// library into a binary that needs none.)
func (a *app) man() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write manual pages",
		Long: `Write the manual pages of usher and its commands to a directory, such as
/usr/local/share/man/man8: usher.8, usher-host-drain.8 and so on.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			n := 0
			for page := range commandTree(c.Root()) {
				var b strings.Builder
				manPage(&b, page)
				if err := os.WriteFile(filepath.Join(args[0], manName(page)+".8"), []byte(b.String()), 0o644); err != nil {
					return err
				}
				n++
			}
			return a.done("%s written to %s", count(n, "page"), clean(args[0]))
		},
	}
}

// commandTree yields c and all commands below it that people are meant to see.
func commandTree(c *cobra.Command) func(yield func(*cobra.Command) bool) {
	return func(yield func(*cobra.Command) bool) {
		if !yield(c) {
			return
		}
		for _, sub := range c.Commands() {
			if !sub.IsAvailableCommand() || sub.Name() == "completion" {
				continue
			}
			for x := range commandTree(sub) {
				if !yield(x) {
					return
				}
			}
		}
	}
}

func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manPage writes one page in the macros of man(7).
func manPage(w io.Writer, c *cobra.Command) {
	name := manName(c)
	fmt.Fprintf(w, ".TH %s 8\n.SH NAME\n%s \\- %s\n", roff(strings.ToUpper(name)), roff(name), roff(c.Short))
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B %s\n", roff(c.CommandPath()))
	if _, args, ok := strings.Cut(c.Use, " "); ok {
		fmt.Fprintf(w, "%s\n", roff(args))
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(w, "[\\fICOMMAND\\fR]\n")
	}
	fmt.Fprintf(w, "[\\fIOPTIONS\\fR]\n")
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	fmt.Fprintf(w, ".SH DESCRIPTION\n%s\n", strings.ReplaceAll(roff(long), "\n\n", "\n.PP\n"))
	options(w, "OPTIONS", c.NonInheritedFlags().FlagUsages())
	options(w, "COMMON OPTIONS", c.InheritedFlags().FlagUsages())
	var related []string
	if c.HasParent() {
		related = append(related, manName(c.Parent()))
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "completion" {
			related = append(related, manName(sub))
		}
	}
	if len(related) > 0 {
		fmt.Fprintf(w, ".SH SEE ALSO\n")
		for i, r := range related {
			comma := ","
			if i == len(related)-1 {
				comma = ""
			}
			fmt.Fprintf(w, ".BR %s (8)%s\n", roff(r), comma)
		}
	}
}

// options are laid out as --help does it.
func options(w io.Writer, title, usages string) {
	if usages != "" {
		fmt.Fprintf(w, ".SH %s\n.nf\n%s.fi\n", title, roff(usages))
	}
}

// roff makes text safe: a backslash escapes, a minus is a hyphen, and a line that begins with a
// dot or an apostrophe is a macro.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
