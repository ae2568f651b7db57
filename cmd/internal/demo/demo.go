package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"usher/cmd/internal/cli"
	"usher/cmd/internal/site"
	"usher/loader/netns"
	"usher/testenv/dovecot"
	"usher/testenv/lab"
)

// backends is how many mail servers the site has.
const backends = 3

// demo is one run.
type demo struct {
	o    cli.DemoOptions
	site *site.Site
	real []*dovecot.Server // with DemoOptions.Dovecot
	dir  string            // theirs

	fleet *fleet
	watch *watch
	// The watch runs until unwatch is called and watching is closed; both nil before.
	unwatch  context.CancelFunc
	watching chan struct{}

	// What the acts around the daemon's death remember.
	known   memory
	packets uint64
	over    func()

	board *board
	left  *inventory
	begin time.Time
}

// Run builds a site, shows it on w, and takes it down again when o.For is over or ctx ends. The error
// says everything that was wrong: an act that failed, a client that saw what it
// should not, something left behind, or that ctx ended before the last act.
func Run(ctx context.Context, w io.Writer, o cli.DemoOptions) error {
	// A closed terminal or pipe must not end the process before everything is removed.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)

	d := &demo{o: o, begin: time.Now()}
	d.board = newBoard(d.begin, o)
	out := newOutput(w, o, d.board, cancel)
	var err error
	if d.left, err = takeInventory(); err != nil {
		return err
	}
	shown := make(chan struct{})
	showing, hide := context.WithCancel(context.Background())
	go func() {
		defer close(shown)
		out.run(showing)
	}()
	d.play(ctx)
	hide()
	<-shown
	d.board.update(func(c *scene) { c.ended, c.interrupted = !c.built.IsZero(), ctx.Err() != nil })
	return errors.Join(out.finish(), d.board.verdict(context.Cause(ctx)))
}

// build makes the site and its backends; what was built is removed by close, also after an error.
func (d *demo) build() error {
	o := site.Options{Lab: lab.Options{Backends: backends}, Mode: d.o.Mode, NoBackends: d.o.Dovecot}
	why := netns.Available()
	o.Loopback = why != nil
	if d.o.Dovecot {
		if err := dovecot.Available(); err != nil {
			return err
		}
		if why != nil {
			return why
		}
	}
	if err := enoughFiles(d.o.Users*d.o.Sessions + 2*newcomers(d.o)); err != nil {
		return err
	}
	s, err := site.New(o)
	if err != nil {
		return err
	}
	d.site = s
	d.left.addDir(s.Dir)
	if s.Lab != nil {
		d.left.addNamespaces(s.Lab.Client, s.Lab.Director, s.Lab.Backend)
		if d.o.Mode == "xdp" {
			if err := s.Lab.XDPReady(true); err != nil {
				return err
			}
		}
	}
	d.board.describe(s, d.o.Dovecot, why)
	if d.o.Dovecot {
		return d.startDovecot()
	}
	return nil
}

// startDovecot starts one instance per backend address.
func (d *demo) startDovecot() (err error) {
	if d.dir, err = os.MkdirTemp("", "usher-demo-"); err != nil {
		return err
	}
	d.left.addDir(d.dir)
	if err := os.Chmod(d.dir, 0o755); err != nil { // its mail processes are not root
		return err
	}
	for i, a := range d.site.Hosts {
		name := fmt.Sprintf("backend%d", i+1)
		s, err := dovecot.Start(d.site.Lab.Backend, filepath.Join(d.dir, name), []netip.Addr{a}, dovecot.Options{Name: name})
		if err != nil {
			return err
		}
		d.real = append(d.real, s)
	}
	return nil
}

// close takes down what build made, in the order of the data's way.
func (d *demo) close() error {
	var errs []error
	if d.fleet != nil {
		d.fleet.close()
	}
	if len(d.real) > 0 {
		d.endMailProcesses()
	}
	for _, s := range d.real {
		if err := s.Stop(); err != nil { // its error has the whole log behind the first line
			errs = append(errs, errors.New(firstLine(err.Error())))
		}
	}
	d.real = nil
	if d.site != nil {
		errs = append(errs, d.site.Close())
		d.site = nil
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
		d.dir = ""
	}
	return errors.Join(errs...)
}

// endMailProcesses ends Dovecot's processes that have a session. After unpin they would never hear of its end, and a
// Dovecot that is told to stop waits half a minute for them.
func (d *demo) endMailProcesses() {
	inside := fmt.Sprintf("net:[%d]", d.site.Lab.Backend.Inode())
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || (string(comm) != "imap\n" && string(comm) != "pop3\n") {
			continue
		}
		dir := filepath.Dir(name)
		// No other Dovecot's: the namespace is ours alone.
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err != nil || ns != inside {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
	}
}

// filesBeside is what this process opens apart from the sessions' sockets.
const filesBeside = 200

// enoughFiles looks whether both ends of every session fit into the limit of this process; those of the daemon do then, too.
func enoughFiles(sessions int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	if need := uint64(2*sessions + filesBeside); need > limit.Cur {
		return fmt.Errorf("%d sessions need %d open files, the limit is %d: fewer --users or --sessions, or a higher ulimit -n",
			sessions, need, limit.Cur)
	}
	return nil
}
