package cli

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/config"
)

// The commands that need no daemon: serve, config check, probe, unpin, demo.

func (a *app) serve() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: `Run the daemon in the foreground until SIGINT or SIGTERM. Sessions that the kernel
carries go on without it; the next start adopts them.

--socket and --json stand above admin.socket and log.format of the configuration.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return listed("the configuration is not valid", err)
			}
			if err := cfg.Unbuilt().Err(); err != nil {
				return listed("the configuration is valid, but asks for what this version cannot do", err)
			}
			if err := cfg.Missing().Err(); err != nil {
				return listed("the configuration is valid, but files are missing", err)
			}
			if c.Flags().Changed("socket") {
				if cfg.Admin.Socket, err = filepath.Abs(a.socket); err != nil {
					return err
				}
			}
			if a.json {
				cfg.Log.Format = "json"
			}
			if a.env.Serve == nil {
				return notBuilt("serve")
			}
			return a.env.Serve(c.Context(), cfg)
		},
	}
	configFlag(c, &path)
	return c
}

func configFlag(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "config", defaultConfig, "the configuration file")
}

// listed puts each problem on its own line, so that editors find file and line.
func listed(what string, err error) error {
	var problems config.Problems
	if !errors.As(err, &problems) {
		return err
	}
	return fmt.Errorf("%s:\n%w", what, problems)
}

func (a *app) config() *cobra.Command {
	return group("config", "Look at configuration files", "", a.configCheck())
}

// checkResult is the JSON of config check.
type checkResult struct {
	File     string          `json:"file"`
	Valid    bool            `json:"valid"`
	Problems config.Problems `json:"problems"`
	Unbuilt  config.Problems `json:"unbuilt"`  // valid, but refused by this version
	Missing  config.Problems `json:"missing"`  // files that cannot be read here
	Warnings config.Problems `json:"warnings"` // allowed, but seldom meant
}

func (a *app) configCheck() *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration file",
		Long: `Check a configuration file (` + defaultConfig + ` when none is named), with the
overrides of the environment. No name is resolved, nothing is changed.

It reports all problems at once. A valid file may still ask for what this version
cannot do yet, or need files that are not here: that is told, too, and is a failure
with --strict.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			result := checkResult{File: defaultConfig}
			if len(args) > 0 {
				result.File = args[0]
			}
			cfg, err := config.Load(result.File)
			if err != nil && !errors.As(err, &result.Problems) {
				return err // the file could not be read
			}
			if cfg != nil {
				result.Valid = true
				result.Unbuilt, result.Missing, result.Warnings = cfg.Unbuilt(), cfg.Missing(), cfg.Warnings()
			}
			result.fillLists()
			if err := a.show(result, func() { a.printCheck(result) }); err != nil {
				return err
			}
			switch {
			case !result.Valid:
				return fmt.Errorf("%s is not valid", result.File)
			case strict && len(result.Unbuilt)+len(result.Missing) > 0:
				return fmt.Errorf("%s is valid, but cannot be served here", result.File)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "fail as well when usher serve would refuse the file here")
	return c
}

// fillLists makes lists of JSON lists even when they are empty.
func (r *checkResult) fillLists() {
	for _, list := range []*config.Problems{&r.Problems, &r.Unbuilt, &r.Missing, &r.Warnings} {
		if *list == nil {
			*list = config.Problems{}
		}
	}
}

func (a *app) printCheck(r checkResult) {
	part := func(title string, list config.Problems) {
		if len(list) > 0 {
			a.printf("%s\n%v\n", title, list)
		}
	}
	if r.Valid {
		a.printf("%s is valid\n", r.File)
	}
	part("problems:", r.Problems)
	part("this version refuses:", r.Unbuilt)
	part("cannot be read here:", r.Missing)
	part("warnings:", r.Warnings)
}

func (a *app) probe() *cobra.Command {
	return &cobra.Command{
		Use:   "probe",
		Short: "Tell which modes work on this machine, and why others do not",
		Long: `Tell for each mode (xdp, tc, splice, copy) whether it works here, and why not:
kernel, capabilities, interfaces, and a real hand-over with compared bytes over a
private pair of interfaces. The running daemon is left alone.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.env.Probe == nil {
				return notBuilt("probe")
			}
			return a.env.Probe(c.Context(), a.env.Stdout, a.json)
		},
	}
}

func (a *app) unpin() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "unpin",
		Short: "Remove everything that usher keeps in the kernel",
		Long: `Remove the programs and maps that usher keeps in the kernel while its daemon is away.
The sessions which they carry end. This is the way out when a daemon refuses the pins
of another version. It is refused while a daemon answers on the socket.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := a.client().Status(c.Context())
			if !errors.Is(err, admin.ErrUnreachable) {
				return fmt.Errorf("a daemon answers on %s: stop it first", a.socket)
			}
			if a.env.Unpin == nil {
				return notBuilt("unpin")
			}
			if err := a.env.Unpin(c.Context(), path); err != nil {
				return err
			}
			return a.done("nothing of usher is left in %s", path)
		},
	}
	c.Flags().StringVar(&path, "pin-path", config.Default().Steer.PinPath, "steer.pin_path of the configuration")
	return c
}

func (a *app) demo() *cobra.Command {
	var o DemoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show a whole site at work on this machine",
		Long: `Build a site in network namespaces (clients, this director, three backends), log users
in, show where they are and what the kernel carries, move a user, kill the daemon,
start it again. Without root: the same on the loopback interface without the kernel's
part. It ends by itself, leaves nothing behind, and fails when anything it showed was
wrong.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.For <= 0 || o.Users <= 0 || o.Sessions <= 0 {
				return usageError("--for, --users and --sessions must be more than nothing")
			}
			if a.env.Demo == nil {
				return notBuilt("demo")
			}
			o.JSON = a.json
			return a.env.Demo(c.Context(), a.env.Stdout, o)
		},
	}
	f := c.Flags()
	f.DurationVar(&o.For, "for", time.Minute, "how long it runs")
	f.IntVar(&o.Users, "users", 200, "how many users log in")
	f.IntVar(&o.Sessions, "sessions", 3, "sessions of each user")
	f.StringVar(&o.Mode, "mode", "auto", "steer.mode of the configuration")
	f.BoolVar(&o.Dovecot, "dovecot", false, "real Dovecot as backends (must be installed)")
	return c
}
