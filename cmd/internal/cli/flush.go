package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"usher/cmd/internal/admin"
)

// Following a flush or drain that goes on in the daemon.
const (
	pollEvery   = 500 * time.Millisecond
	reportEvery = 10 * time.Second // a line, where there is no terminal
	daemonAway  = time.Minute      // how long a daemon that is being restarted is waited for
	drainRate   = "10/s"           // of users, when nobody says otherwise
	allHosts    = "all"
)

// flush and hostDrain differ in what they order and share how one watches it.
func (a *app) flush() *cobra.Command {
	f := flushFlags{rate: "0"}
	c := &cobra.Command{
		Use:   "flush HOST|all",
		Short: "Move the users of a host to where they belong",
		Long: `Move the users of a host, or of all hosts, to where their hash points: after a host came
back, was added, or has another weight. Their sessions end. To empty a host, drain it.

With --force the users are forgotten instead of moved: their sessions at this director
end, those at Dovecot's directors do not, so that users may be on two hosts.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost(0),
		RunE: func(c *cobra.Command, args []string) error {
			return a.runFlush(c.Context(), args[0], "flush", f, a.client().Flush)
		},
	}
	f.add(c, "flush")
	c.Flags().BoolVar(&f.force, "force", false, "forget the users instead of moving them")
	return c
}

func (a *app) hostDrain() *cobra.Command {
	f := flushFlags{rate: drainRate}
	c := &cobra.Command{
		Use:   "drain HOST",
		Short: "Empty a host at a bounded rate",
		Long: `Empty a host: give it weight 0, and move its users to other hosts at a bounded rate, so that
those are not stormed. The daemon does it and goes on after a restart; this command may be
interrupted at any time, and given again to look or to change the rate. To end a drain
before its end use --stop; the weight stays 0 then.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost(0),
		RunE: func(c *cobra.Command, args []string) error {
			return a.runFlush(c.Context(), args[0], "drain", f,
				func(ctx context.Context, host string, _ bool, rate float64, parallel int) (admin.Reply, error) {
					return a.client().HostDrain(ctx, host, rate, parallel)
				})
		},
	}
	f.add(c, "drain")
	return c
}

type flushFlags struct {
	rate              string
	parallel          int
	force, wait, stop bool
}

func (f *flushFlags) add(c *cobra.Command, what string) {
	flags := c.Flags()
	flags.StringVar(&f.rate, "rate", f.rate, "at most so many users, as in 10/s or 600/m; 0: no limit")
	flags.IntVar(&f.parallel, "parallel", 0, "at most so many users at a time; 0: max_parallel_moves of the configuration")
	flags.BoolVar(&f.stop, "stop", false, "end a "+what+" that is under way")
	waitFlag(c, &f.wait, "until the last user has been moved, show how far it is, and fail if a move failed")
	c.MarkFlagsMutuallyExclusive("wait", "stop")
}

// runFlush starts, stops or follows. A forced flush has ended when it is answered.
func (a *app) runFlush(ctx context.Context, host, what string, f flushFlags,
	start func(ctx context.Context, host string, force bool, rate float64, parallel int) (admin.Reply, error)) error {
	rate, err := parseRate(f.rate)
	if err != nil {
		return err
	}
	if f.stop {
		r, err := a.client().FlushStop(ctx, host)
		if err != nil {
			return err
		}
		return a.replied(r, "the %s of %s is stopped", what, clean(host))
	}
	if !f.wait || f.force {
		r, err := start(ctx, host, f.force, rate, f.parallel)
		switch {
		case err != nil:
			return err
		case f.force:
			return a.replied(r, "the users of %s are forgotten", clean(host))
		}
		return a.replied(r, "the %s of %s has started", what, clean(host))
	}
	r, err := start(ctx, host, f.force, rate, f.parallel)
	if err != nil {
		return err
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(a.env.Stderr, "usher: warning: %s\n", w)
	}
	return a.follow(ctx, host, what)
}

// parseRate reads "10", "10/s", "600/m" or "36000/h" as users per second.
func parseRate(text string) (float64, error) {
	number, unit, _ := strings.Cut(text, "/")
	per := map[string]float64{"": 1, "s": 1, "m": 60, "h": 3600}[unit]
	rate, err := strconv.ParseFloat(number, 64)
	if err != nil || per == 0 || !(rate >= 0 && rate <= 1e9) || strings.HasSuffix(text, "/") {
		return 0, usageError(fmt.Sprintf("%q is no rate, write 10/s or 600/m", text))
	}
	return rate / per, nil
}

// follow shows how far a flush is until it ends. That it is not looked at any more ends nothing.
func (a *app) follow(ctx context.Context, host, what string) error {
	bar := progress{app: a, what: what, host: host}
	away := time.Time{}
	for {
		f, err := a.flushOf(ctx, host)
		switch {
		case ctx.Err() != nil:
			bar.end()
			return fmt.Errorf("interrupted: the %s goes on in the daemon; the same command shows it again, --stop ends it", what)
		case err == nil:
			away = time.Time{}
			bar.show(f)
			if f.EndedAt != nil {
				return bar.finish(f)
			}
		case errors.As(err, new(*admin.ServerError)), errors.Is(err, errNoFlush):
			bar.end()
			return err
		default:
			// A daemon that is being restarted resumes it.
			if away.IsZero() {
				away = time.Now()
			}
			if time.Since(away) > daemonAway {
				bar.end()
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
	}
}

var errNoFlush = errors.New("the daemon does not know of it any more")

// flushOf finds the newest flush of a host, by its address or name.
func (a *app) flushOf(ctx context.Context, host string) (admin.Flush, error) {
	list, err := a.client().Flushes(ctx)
	if err != nil {
		return admin.Flush{}, err
	}
	var named []admin.HostStatus
	if host != allHosts {
		s, err := a.client().Status(ctx)
		if err != nil {
			return admin.Flush{}, err
		}
		named = s.Hosts
	}
	var found *admin.Flush
	for i, f := range list {
		match := host == allHosts && !f.Host.IsValid() || f.Host.IsValid() && f.Host.String() == host
		for _, h := range named {
			match = match || h.Address == f.Host && strings.EqualFold(h.Name, host) && host != ""
		}
		if match && (found == nil || f.StartedAt.After(found.StartedAt)) {
			found = &list[i]
		}
	}
	if found == nil {
		return admin.Flush{}, fmt.Errorf("%s: %w", clean(host), errNoFlush)
	}
	return *found, nil
}

// progress is one line that is written again and again on a terminal, and a line now and then
// elsewhere. With --json there is only the end.
type progress struct {
	*app
	what, host string
	drawn      bool
	reported   time.Time
}

const barWidth = 30

// show draws the present state, or nothing when it is not time for another line.
func (p *progress) show(f admin.Flush) {
	if p.json {
		return
	}
	if terminal(p.env.Stdout) {
		p.printf("\r\x1b[K%s", p.line(f, true))
		p.drawn = true
		return
	}
	if now := time.Now(); p.reported.IsZero() || now.Sub(p.reported) >= reportEvery {
		p.reported = now
		p.printf("%s\n", p.line(f, false))
	}
}

// line is "10.2.0.11  [######....]  60 %, 720 of 1200, 20 moving, 9.8/s, 49s left".
func (p *progress) line(f admin.Flush, bar bool) string {
	over := f.Done + f.Failed
	share := 1.0
	if f.Total > 0 {
		share = min(float64(over)/float64(f.Total), 1)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  ", clean(p.host))
	if bar {
		full := int(share * barWidth)
		fmt.Fprintf(&b, "[%s%s]  ", strings.Repeat("#", full), strings.Repeat(".", barWidth-full))
	}
	fmt.Fprintf(&b, "%.0f %%, %d of %d", share*100, over, f.Total)
	if f.Moving > 0 {
		fmt.Fprintf(&b, ", %d moving", f.Moving)
	}
	if f.Failed > 0 {
		fmt.Fprintf(&b, ", %d failed", f.Failed)
	}
	if f.EndedAt == nil {
		speed := f.Rate
		if took := p.env.Now().Sub(f.StartedAt).Seconds(); took > 0 && over > 0 {
			speed = float64(over) / took
			fmt.Fprintf(&b, ", %.1f/s", speed)
		}
		if speed > 0 {
			fmt.Fprintf(&b, ", %s left", span(seconds(float64(f.Total-over)/speed)))
		}
	}
	return b.String()
}

// end leaves the line on the terminal.
func (p *progress) end() {
	if p.drawn {
		p.printf("\n")
		p.drawn = false
	}
}

// finish shows the end and fails if not every user was moved as it should be.
func (p *progress) finish(f admin.Flush) error {
	p.end()
	took := span(f.EndedAt.Sub(f.StartedAt))
	err := p.app.show(f, func() {
		if f.Error == "" {
			p.printf("the %s of %s has ended after %s: %s moved\n", p.what, clean(p.host), took, count(f.Done, "user"))
		}
	})
	switch {
	case f.Error != "":
		err = fmt.Errorf("the %s of %s has ended after %s, %d of %s moved: %s", p.what, clean(p.host), took, f.Done, count(f.Total, "user"), clean(f.Error))
	case f.Failed > 0:
		err = fmt.Errorf("%s could not be moved in an orderly way: their old sessions did not end in time", count(f.Failed, "user"))
	}
	return err
}

// terminal reports whether w is one.
func terminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
