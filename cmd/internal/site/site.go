// Package site runs a whole site on one machine: clients, a director node with a
// real `usher serve` process, and backends. `usher demo`, the end-to-end tests and
// the benchmark use it.
//
// As root the three live in network namespaces (package testenv/lab) and the
// daemon has a bpffs of its own; otherwise everything is on loopback addresses, and
// the daemon stays in user space.
package site

import (
	"context"
	"errors"
	"fmt"
	"net"
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
	"usher/testenv/backend"
	"usher/testenv/client"
	"usher/testenv/lab"
)

// Options describe a site. The zero value is a usable one.
type Options struct {
	Lab      lab.Options
	Loopback bool     // no namespaces
	Command  []string // runs the usher command; default: this executable
	// NoBackends leaves the backends' addresses to others, such as real mail servers.
	NoBackends bool

	Mode       string        // [steer] mode; default "auto"
	UserExpire time.Duration // default 15m
	KickDelay  time.Duration // default 100ms
	MaxFlows   int           // [steer] max_flows; default 200000
	Director   string        // further lines for the tables
	Steer      string
	Auth       string
	Env        []string // for the daemon
}

// Site is a running site. Its daemon is started by Start.
type Site struct {
	Lab      *lab.Lab // nil on loopback
	Backends []*backend.Server
	Hosts    []netip.Addr // addresses of the backends
	Admin    *admin.Client
	Dir      string // configuration, log, socket
	PinPath  string

	options Options
	mounted bool
	net     lab.Net
	imap    uint16
	pop3    uint16

	mu     sync.Mutex
	daemon *exec.Cmd
	exited chan error
}

// New builds everything but the daemon.
func New(o Options) (_ *Site, err error) {
	if len(o.Command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		o.Command = []string{self}
	}
	s := &Site{options: o, imap: 143, pop3: 110}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.Dir, err = os.MkdirTemp("", "usher-site-"); err != nil {
		return nil, err
	}
	s.Admin = admin.NewClient(s.socket())
	if o.Loopback {
		err = s.loopback()
	} else {
		err = s.namespaces()
	}
	if err != nil {
		return nil, err
	}
	return s, s.configure()
}

func (s *Site) namespaces() (err error) {
	// One family: a user of IPv4 on an IPv6 backend could not be spliced.
	if s.options.Lab.Family == 0 {
		s.options.Lab.Family = 4
	}
	if s.Lab, err = lab.New(s.options.Lab); err != nil {
		return err
	}
	s.net = s.Lab.Net(s.options.Lab.Family)
	bpffs := filepath.Join(s.Dir, "bpf")
	if err := os.Mkdir(bpffs, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	s.mounted = true
	s.PinPath = filepath.Join(bpffs, "usher")
	return s.backends(s.Lab.Backend)
}

// loopback uses the addresses of 127/8 as hosts.
func (s *Site) loopback() error {
	n := max(s.options.Lab.Backends, 3)
	s.net = lab.Net{Service: netip.MustParseAddr("127.0.0.1")}
	for i := range n {
		s.net.Backends = append(s.net.Backends, netip.AddrFrom4([4]byte{127, 0, 0, byte(2 + i)}))
	}
	s.PinPath = filepath.Join(s.Dir, "bpf", "usher")
	var err error
	if s.imap, err = freePort(s.net); err != nil {
		return err
	}
	if s.pop3, err = freePort(s.net); err != nil {
		return err
	}
	return s.backends(nil)
}

// freePort finds a port that is free on all addresses.
func freePort(n lab.Net) (uint16, error) {
	for range 100 {
		first, err := net.Listen("tcp", netip.AddrPortFrom(n.Service, 0).String())
		if err != nil {
			return 0, err
		}
		port := first.Addr().(*net.TCPAddr).AddrPort().Port()
		open := []net.Listener{first}
		for _, a := range n.Backends {
			l, err := net.Listen("tcp", netip.AddrPortFrom(a, port).String())
			if err == nil {
				open = append(open, l)
			}
		}
		for _, l := range open {
			l.Close()
		}
		if len(open) == 1+len(n.Backends) {
			return port, nil
		}
	}
	return 0, errors.New("no port is free on all loopback addresses")
}

func (s *Site) backends(ns *netns.NS) error {
	s.Hosts = s.net.Backends
	if s.options.NoBackends {
		return nil
	}
	for _, a := range s.Hosts {
		b, err := backend.Start(ns, a, backend.Options{IMAPPort: int(s.imap), POP3Port: int(s.pop3)})
		if err != nil {
			return err
		}
		s.Backends = append(s.Backends, b)
	}
	return nil
}

func (s *Site) socket() string { return filepath.Join(s.Dir, "admin.sock") }

// ConfigFile is the daemon's configuration file.
func (s *Site) ConfigFile() string { return filepath.Join(s.Dir, "usher.toml") }

func (s *Site) configure() error {
	o := s.options
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
	var b strings.Builder
	fmt.Fprintf(&b, "[director]\nname = \"demo\"\nuser_expire = %q\nuser_kick_delay = %q\n%s\n", o.UserExpire, o.KickDelay, o.Director)
	hosts := make([]string, 0, len(s.Hosts))
	for _, a := range s.Hosts {
		hosts = append(hosts, fmt.Sprintf("%q", a))
	}
	fmt.Fprintf(&b, "\n[[backend]]\nhosts = [%s]\n", strings.Join(hosts, ", "))
	for _, p := range []client.Protocol{client.IMAP, client.POP3} {
		fmt.Fprintf(&b, "\n[[listener]]\nprotocol = %q\naddress = %q\ntls = \"none\"\ndisable_plaintext_auth = false\n", p, s.Service(p))
	}
	fmt.Fprintf(&b, "\n[auth]\n%s\n", o.Auth)
	fmt.Fprintf(&b, "\n[steer]\nmode = %q\npin_path = %q\nmax_flows = %d\n%s\n", o.Mode, s.PinPath, o.MaxFlows, o.Steer)
	fmt.Fprintf(&b, "\n[admin]\nsocket = %q\nhttp = \"\"\n\n[log]\nformat = \"json\"\n", s.socket())
	return os.WriteFile(s.ConfigFile(), []byte(b.String()), 0o600)
}

// Service returns where clients of a protocol connect.
func (s *Site) Service(p client.Protocol) netip.AddrPort {
	if p == client.POP3 {
		return netip.AddrPortFrom(s.net.Service, s.pop3)
	}
	return netip.AddrPortFrom(s.net.Service, s.imap)
}

// Client is the configuration of a client's session.
func (s *Site) Client(user string) client.Config {
	c := client.Config{Server: s.Service(client.IMAP), User: user}
	if s.Lab != nil {
		c.NS = s.Lab.Client
	}
	return c
}

// startTimeout covers loading the programs on a busy machine.
const startTimeout = 30 * time.Second

// Start starts the daemon and waits until it serves.
func (s *Site) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.daemon != nil {
		return errors.New("the daemon runs already")
	}
	logFile, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	args := append(s.options.Command[1:len(s.options.Command):len(s.options.Command)], "serve", "--config", s.ConfigFile())
	cmd := exec.Command(s.options.Command[0], args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = append(os.Environ(), s.options.Env...)
	var ns *netns.NS
	if s.Lab != nil {
		ns = s.Lab.Director
	}
	// It must not outlive this process, and the terminal's Ctrl-C is not for it: Kill and Stop end it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started, exited := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // its end would be that of the parent
		err := start(ns, cmd)
		started <- err
		if err == nil {
			exited <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	s.daemon, s.exited = cmd, exited
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if _, err := s.Admin.Status(ctx); err == nil {
			return nil
		}
		select {
		case err := <-exited:
			s.daemon = nil
			return fmt.Errorf("daemon ended at its start: %w\n%s", err, s.LogTail(20))
		case <-ctx.Done():
			return fmt.Errorf("daemon does not answer: %w\n%s", ctx.Err(), s.LogTail(20))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func start(ns *netns.NS, cmd *exec.Cmd) error {
	if ns == nil {
		return cmd.Start()
	}
	return ns.StartProcess(cmd)
}

// Pid returns the daemon's process, 0 when it does not run.
func (s *Site) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.daemon == nil {
		return 0
	}
	return s.daemon.Process.Pid
}

// Kill kills the daemon without a warning (SIGKILL).
func (s *Site) Kill() error { return s.end(syscall.SIGKILL) }

// Stop stops the daemon in good order (SIGTERM); the error is the daemon's.
func (s *Site) Stop() error { return s.end(syscall.SIGTERM) }

func (s *Site) end(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.daemon == nil {
		return nil
	}
	if err := s.daemon.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	err := <-s.exited
	s.daemon = nil
	if sig == syscall.SIGKILL {
		return nil
	}
	return err
}

// LogFile is where the daemon logs to, in JSON lines.
func (s *Site) LogFile() string { return filepath.Join(s.Dir, "usher.log") }

// LogTail returns the last lines of the daemon's log.
func (s *Site) LogTail(lines int) string {
	b, err := os.ReadFile(s.LogFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Unpin removes what the stopped daemon left in the kernel.
func (s *Site) Unpin() error {
	if s.Lab == nil {
		return nil
	}
	args := append(s.options.Command[1:len(s.options.Command):len(s.options.Command)], "unpin", "--pin-path", s.PinPath, "--socket", s.socket())
	cmd := exec.Command(s.options.Command[0], args...)
	cmd.Env = append(os.Environ(), s.options.Env...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := start(s.Lab.Director, cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("usher unpin: %w: %s", err, out.String())
	}
	return nil
}

// Close ends everything and removes it.
func (s *Site) Close() error {
	errs := []error{s.Kill()}
	for _, b := range s.Backends {
		errs = append(errs, b.Close())
	}
	if s.mounted {
		errs = append(errs, unix.Unmount(filepath.Join(s.Dir, "bpf"), unix.MNT_DETACH))
	}
	if s.Lab != nil {
		errs = append(errs, s.Lab.Close())
	}
	if s.Dir != "" {
		errs = append(errs, os.RemoveAll(s.Dir))
	}
	return errors.Join(errs...)
}
