package site

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"usher/cmd/internal/admin"
	"usher/loader/netns"
)

// Daemon is a place for one `usher serve` process: a directory with its configuration, log and sockets,
// and in a namespace a bpffs of its own. The process may be started, killed and started again.
type Daemon struct {
	Admin   *admin.Client
	Dir     string
	PinPath string

	command []string
	env     []string
	ns      *netns.NS
	mounted bool

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan error
}

// newDaemon makes the place. remove must be called also after an error.
func newDaemon(ns *netns.NS, command, env []string) (_ *Daemon, err error) {
	d := &Daemon{ns: ns, env: env, command: command}
	if len(d.command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return d, err
		}
		d.command = []string{self}
	}
	if d.Dir, err = os.MkdirTemp("", "usher-site-"); err != nil {
		return d, err
	}
	d.Admin = admin.NewClient(d.socket())
	bpffs := filepath.Join(d.Dir, "bpf")
	d.PinPath = filepath.Join(bpffs, "usher")
	if ns == nil {
		return d, nil
	}
	if err := os.Mkdir(bpffs, 0o700); err != nil {
		return d, err
	}
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		return d, fmt.Errorf("mount bpffs: %w", err)
	}
	d.mounted = true
	return d, nil
}

// remove kills the process and removes the place.
func (d *Daemon) remove() error {
	errs := []error{d.Kill()}
	if d.mounted {
		errs = append(errs, unix.Unmount(filepath.Join(d.Dir, "bpf"), unix.MNT_DETACH))
	}
	if d.Dir != "" {
		errs = append(errs, os.RemoveAll(d.Dir))
	}
	return errors.Join(errs...)
}

func (d *Daemon) socket() string { return filepath.Join(d.Dir, "admin.sock") }

// ConfigFile is the daemon's configuration file.
func (d *Daemon) ConfigFile() string { return filepath.Join(d.Dir, "usher.toml") }

// listener is a table of the configuration.
type listener struct {
	protocol string
	address  netip.AddrPort
}

// configure writes the configuration file.
func (d *Daemon) configure(o Options, hosts []netip.Addr, listeners []listener) error {
	if o.Mode == "" {
		o.Mode = "auto"
	}
	if o.UserExpire == 0 {
		o.UserExpire = 15 * time.Minute
	}
	if o.KickDelay == 0 {
		o.KickDelay = 100 * time.Millisecond
	}
	if o.MaxFlows == 0 {
		o.MaxFlows = 200_000
	}
	if o.Auth == "" {
		o.Auth = `driver = "static"` + "\nnopassword = true"
	}
	if !strings.Contains(o.Auth, "failure_delay") {
		// All clients have one address: whose password is wrong would make the others wait.
		o.Auth = "failure_delay = \"0s\"\n" + o.Auth
	}
	var b strings.Builder
	fmt.Fprintf(&b, "[director]\nname = \"demo\"\nstate_file = %q\nuser_expire = %q\nuser_kick_delay = %q\n%s\n",
		filepath.Join(d.Dir, "state.toml"), o.UserExpire, o.KickDelay, o.Director)
	fmt.Fprintf(&b, "\n[[backend]]\nhosts = [%s]\n%s\n", quoted(hosts), o.Backend)
	for _, l := range listeners {
		fmt.Fprintf(&b, "\n[[listener]]\nprotocol = %q\naddress = %q\ntls = \"none\"\ndisable_plaintext_auth = false\n", l.protocol, l.address)
	}
	fmt.Fprintf(&b, "\n[auth]\n%s\n", o.Auth)
	fmt.Fprintf(&b, "\n[steer]\nmode = %q\npin_path = %q\nmax_flows = %d\n%s\n", o.Mode, d.PinPath, o.MaxFlows, o.Steer)
	fmt.Fprintf(&b, "\n[admin]\nsocket = %q\nhttp = \"\"\n\n[log]\nformat = \"json\"\n", d.socket())
	if o.Tables != "" {
		fmt.Fprintf(&b, "\n%s\n", o.Tables)
	}
	return os.WriteFile(d.ConfigFile(), []byte(b.String()), 0o600)
}

// quoted lists values as TOML strings.
func quoted[T any](all []T) string {
	var texts []string
	for _, x := range all {
		texts = append(texts, fmt.Sprintf("%q", fmt.Sprint(x)))
	}
	return strings.Join(texts, ", ")
}

// startTimeout covers loading the programs on a busy machine.
const startTimeout = 30 * time.Second

// Start starts the daemon and waits until it serves.
func (d *Daemon) Start(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil {
		return errors.New("the daemon runs already")
	}
	logFile, err := os.OpenFile(d.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	args := append(d.command[1:len(d.command):len(d.command)], "serve", "--config", d.ConfigFile())
	cmd := exec.Command(d.command[0], args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = append(os.Environ(), d.env...)
	// It must not outlive this process, and the terminal's Ctrl-C is not for it: Kill and Stop end it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started, exited := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // its end would be that of the parent
		err := d.run(cmd)
		started <- err
		if err == nil {
			exited <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	d.cmd, d.exited = cmd, exited
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if _, err := d.Admin.Status(ctx); err == nil {
			return nil
		}
		select {
		case err := <-exited:
			d.cmd = nil
			return fmt.Errorf("daemon ended at its start: %w\n%s", err, d.LogTail(20))
		case <-ctx.Done():
			return fmt.Errorf("daemon does not answer: %w\n%s", ctx.Err(), d.LogTail(20))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// run starts a process where the daemon lives.
func (d *Daemon) run(cmd *exec.Cmd) error {
	if d.ns == nil {
		return cmd.Start()
	}
	return d.ns.StartProcess(cmd)
}

// Pid returns the daemon's process, 0 when it does not run.
func (d *Daemon) Pid() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// Kill kills the daemon without a warning (SIGKILL).
func (d *Daemon) Kill() error { return d.end(syscall.SIGKILL) }

// Stop stops the daemon in good order (SIGTERM); the error is the daemon's.
func (d *Daemon) Stop() error { return d.end(syscall.SIGTERM) }

func (d *Daemon) end(sig syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return nil
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	err := <-d.exited
	d.cmd = nil
	if sig == syscall.SIGKILL {
		return nil
	}
	return err
}

// LogFile is where the daemon logs to, in JSON lines.
func (d *Daemon) LogFile() string { return filepath.Join(d.Dir, "usher.log") }

// LogTail returns the last lines of the daemon's log.
func (d *Daemon) LogTail(lines int) string {
	b, err := os.ReadFile(d.LogFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Unpin removes what the stopped daemon left in the kernel.
func (d *Daemon) Unpin() error {
	if d.ns == nil {
		return nil
	}
	args := append(d.command[1:len(d.command):len(d.command)], "unpin", "--pin-path", d.PinPath, "--socket", d.socket())
	cmd := exec.Command(d.command[0], args...)
	cmd.Env = append(os.Environ(), d.env...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := d.run(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("usher unpin: %w: %s", err, out.String())
	}
	return nil
}
