package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/config"
)

// Exit codes of Run.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitUnreachable = 3
)

// Where things are when nobody says otherwise.
const (
	defaultConfig = "/etc/usher/usher.toml"
	socketEnv     = "USHER_SOCKET"
)

// Env is the world around the command. Writers and Getenv must be set; a hook that is nil makes
// its command fail with a clear message.
type Env struct {
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Now            func() time.Time // nil: time.Now; its location is the one times are shown in
	Version        string

	// Serve runs the daemon until ctx is done (SIGINT or SIGTERM). The configuration is valid,
	// asks for nothing unbuilt, and its files are there.
	Serve func(ctx context.Context, cfg *config.Config) error
	// Probe writes which modes work here and why others do not.
	Probe func(ctx context.Context, w io.Writer, asJSON bool) error
	// Demo builds a site, shows it on w, and fails when anything shown was wrong.
	Demo func(ctx context.Context, w io.Writer, o DemoOptions) error
	// Unpin removes everything below pinPath; no daemon answers on the socket at that time.
	Unpin func(ctx context.Context, pinPath string) error
}

// DemoOptions is what one may choose about the demo.
type DemoOptions struct {
	For      time.Duration // it ends by itself after so long
	Users    int
	Sessions int    // per user
	Mode     string // of [steer]: "auto", "xdp", "tc", "splice", "copy"
	Dovecot  bool   // real Dovecot as backends
	JSON     bool   // one JSON object at the end instead of the live view
}

// Run does what args (without the program's name) say and returns the exit code.
func Run(env Env, args []string) int {
	if env.Now == nil {
		env.Now = time.Now
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The second signal kills, in case that the orderly end hangs.
	context.AfterFunc(ctx, stop)

	a := &app{env: env}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	failed, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(env.Stderr, "usher: %v\n", err)
	var usage usageError
	switch {
	case !a.started || errors.As(err, &usage):
		fmt.Fprintf(env.Stderr, "'%s --help' tells more\n", failed.CommandPath())
		return exitUsage
	case errors.Is(err, admin.ErrUnreachable):
		return exitUnreachable
	}
	return exitFailure
}

// usageError is a mistake in the command line that cobra does not know of.
type usageError string

func (e usageError) Error() string { return string(e) }

// app holds what the commands share during one Run.
type app struct {
	env     Env
	json    bool
	socket  string
	started bool // a command began: its errors are not about the command line any more
}

func (a *app) client() *admin.Client { return admin.NewClient(a.socket) }

func (a *app) printf(format string, args ...any) {
	fmt.Fprintf(a.env.Stdout, format, args...)
}

// show writes v as JSON, or what human makes of it.
func (a *app) show(v any, human func()) error {
	if !a.json {
		human()
		return nil
	}
	e := json.NewEncoder(a.env.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// replied shows the answer to an order. Its warnings go to stderr, so that they are seen in scripts, too.
func (a *app) replied(r admin.Reply, format string, args ...any) error {
	for _, w := range r.Warnings {
		fmt.Fprintf(a.env.Stderr, "usher: warning: %s\n", w)
	}
	return a.show(r, func() { a.printf(format+"\n", args...) })
}

// agreed shows the answer to an order that is done here, and has started or finished in the ring.
func (a *app) agreed(r admin.Reply, format string, args ...any) error {
	if r.State == admin.Started {
		format += "; the ring has not agreed yet"
	}
	return a.replied(r, format, args...)
}

// done is the answer of commands that do not ask the daemon and have nothing else to tell.
func (a *app) done(format string, args ...any) error {
	return a.show(map[string]bool{"ok": true}, func() { a.printf(format+"\n", args...) })
}

func (a *app) root() *cobra.Command {
	root := group("usher", "Keeps every user of a mail cluster on one backend",
		`Usher keeps every user of a mail cluster on one backend, and lets the kernel
carry the bytes of the sessions.

Exit codes: 0 it worked, 1 it failed, 2 wrong usage, 3 the daemon cannot be reached.`,
		a.serve(),
		a.status(), a.userMap(), a.user(), a.flows(),
		a.host(), a.flush(), a.ring(), a.dump(),
		a.probe(), a.config(), a.unpin(), a.demo(), a.man(), a.version(),
	)
	root.SilenceErrors, root.SilenceUsage = true, true
	socket := a.env.Getenv(socketEnv)
	if socket == "" {
		socket = config.Default().Admin.Socket
	}
	flags := root.PersistentFlags()
	flags.BoolVar(&a.json, "json", false, "print JSON for scripts")
	flags.StringVar(&a.socket, "socket", socket, "the daemon's admin socket (environment: "+socketEnv+")")
	// The help must not depend on the environment.
	flags.Lookup("socket").DefValue = config.Default().Admin.Socket
	a.prepare(root)
	return root
}

// prepare makes all commands tell when they begin.
func (a *app) prepare(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.prepare(sub)
	}
	c.DisableFlagsInUseLine = true // "Usage" has the arguments; the flags stand below it
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		a.started = true
		return run(c, args)
	}
}

// group is a command that only has commands.
func group(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.ArbitraryArgs}
	g.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError("which command? " + c.CommandPath() + " " + names(commands))
		}
		return usageError(fmt.Sprintf("unknown command %q: %s %s", args[0], c.CommandPath(), names(commands)))
	}
	g.AddCommand(commands...)
	return g
}

func names(commands []*cobra.Command) string {
	s := ""
	for _, c := range commands {
		if s != "" {
			s += "|"
		}
		s += c.Name()
	}
	return s
}

func notBuilt(command string) error {
	return fmt.Errorf("%s is not built into this binary", command)
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{a.env.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			return a.show(v, func() { a.printf("usher %s (%s, %s/%s)\n", v.Version, v.Go, v.OS, v.Arch) })
		},
	}
}
