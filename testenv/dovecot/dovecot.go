// Package dovecot runs the real Dovecot 2.3 at a test site, as a mail backend (Start) or as a director that
// proxies to backends and is a member of a ring (StartDirector): the binary of the machine's packages,
// with a configuration, run directory, state and mail of its own under one directory. Nothing in
// /etc/dovecot, /run/dovecot or /var is read or written.
package dovecot

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"

	"usher/loader/netns"
)

// binary is where Debian's package dovecot-core puts the master process.
const binary = "/usr/sbin/dovecot"

// mailID owns all mail, as user and as group. It needs no entry in /etc/passwd.
const mailID = 5000

// Times that starting and stopping may take.
const (
	startTimeout = 15 * time.Second
	stopTimeout  = 5 * time.Second
)

// Options describe one instance. The zero value lets every user in with every password.
type Options struct {
	Name           string         // instance name, in its log and its process titles; default "backend"
	Password       string         // the one that every user has; empty: any
	Master         string         // master user, empty: none; logs in as "user*master" or by SASL authzid
	MasterPassword string         // of the master user
	Trusted        []netip.Prefix // login_trusted_networks: the proxies, whose word about the client's address counts
	Extra          string         // lines added at the end of the configuration
}

// Server is a running instance.
type Server struct {
	Dir   string // what Start was given: dovecot.conf, dovecot.log, run/, mail/
	Addrs []netip.Addr

	cmd  *exec.Cmd
	done chan struct{}
	err  error // of the process, once done is closed
}

// Available says why real Dovecot cannot be started here, or nil: it needs root, the packages
// dovecot-imapd and dovecot-pop3d, and version 2.3.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("real Dovecot needs root")
	}
	for _, f := range []string{binary, "/usr/lib/dovecot/imap-login", "/usr/lib/dovecot/pop3-login", "/usr/lib/dovecot/director"} {
		if _, err := os.Stat(f); err != nil {
			return fmt.Errorf("real Dovecot needs the packages dovecot-imapd and dovecot-pop3d: %w", err)
		}
	}
	v, err := exec.Command(binary, "--version").Output()
	if err != nil {
		return fmt.Errorf("ask Dovecot for its version: %w", err)
	}
	if !bytes.HasPrefix(v, []byte("2.3.")) {
		return fmt.Errorf("real Dovecot needs to be 2.3, this is %s", bytes.TrimSpace(v))
	}
	return nil
}

//go:embed dovecot.conf.tmpl
var confText string

var conf = template.Must(template.New("dovecot.conf").Parse(confText))

// Start runs one instance inside a namespace (nil: the process's own), on ports 143 and 110 of all addresses,
// and returns when it answers. One instance has one mail store: a site with several backends starts
// several, each in a directory of its own. Every directory above dir must be open to all users,
// because mail is not root's business (the one of testing.T.TempDir is not). The process ends with the
// namespace, with Stop, or when this process dies.
func Start(ns *netns.NS, dir string, addrs []netip.Addr, o Options) (*Server, error) {
	if o.Name == "" {
		o.Name = "backend"
	}
	s := &Server{Dir: dir, Addrs: addrs}
	if o.Master != "" {
		entry := fmt.Sprintf("%s:{PLAIN}%s\n", o.Master, o.MasterPassword)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "masters"), []byte(entry), 0o644)); err != nil {
			return nil, fmt.Errorf("prepare dovecot %s: %w", o.Name, err)
		}
	}
	err := s.start(ns, o.Name, conf, struct {
		Options
		Dir    string
		Addrs  string
		Nets   string
		MailID int
	}{o, s.Dir, join(s.Addrs), join(o.Trusted), mailID})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// start writes the configuration, starts the master process and waits until it greets.
func (s *Server) start(ns *netns.NS, name string, conf *template.Template, values any) error {
	var text bytes.Buffer
	if err := conf.Execute(&text, values); err != nil {
		return err
	}
	if err := s.prepare(text.Bytes()); err != nil {
		return fmt.Errorf("prepare dovecot %s: %w", name, err)
	}
	s.done = make(chan struct{})
	s.cmd = exec.Command(binary, "-F", "-c", s.configFile())
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGTERM, // its master must end the others
		Setpgid:   true,            // for Kill
	}
	var out bytes.Buffer // what is wrong with the configuration is said here and not in the log
	s.cmd.Stdout, s.cmd.Stderr = &out, &out
	if err := ns.StartProcess(s.cmd); err != nil {
		return fmt.Errorf("start dovecot %s: %w", name, err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	if err := s.await(ns); err != nil {
		s.Stop()
		return fmt.Errorf("start dovecot %s: %w\n%s%s", name, err, out.String(), s.Log())
	}
	return nil
}

func (s *Server) configFile() string { return filepath.Join(s.Dir, "dovecot.conf") }

// prepare makes the directories and the configuration file.
func (s *Server) prepare(conf []byte) error {
	run := filepath.Join(s.Dir, "run")
	// Sockets live there, as deep as login/ipc-proxy; struct sockaddr_un has 108 bytes.
	if len(run) > 80 {
		return fmt.Errorf("%s: path is too long for Unix sockets, at most 80 bytes", run)
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return err
	}
	for _, d := range []struct {
		name string
		mode fs.FileMode
		id   int
	}{{"run", 0o755, 0}, {"state", 0o755, 0}, {"mail", 0o700, mailID}} {
		path := filepath.Join(s.Dir, d.name)
		if err := errors.Join(os.MkdirAll(path, d.mode), os.Chmod(path, d.mode), os.Chown(path, d.id, d.id)); err != nil {
			return err
		}
	}
	for p := s.Dir; p != "/" && p != "."; p = filepath.Dir(p) {
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		if st.Mode()&0o001 == 0 {
			return fmt.Errorf("%s must be open to all users (o+x), as every directory above %s", p, s.Dir)
		}
	}
	return os.WriteFile(s.configFile(), conf, 0o644)
}

func join[T fmt.Stringer](all []T) string {
	var texts []string
	for _, a := range all {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, " ")
}

// await waits until every address greets.
func (s *Server) await(ns *netns.NS) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for _, a := range s.Addrs {
		for _, port := range []uint16{143, 110} {
			for err := greets(ctx, ns, netip.AddrPortFrom(a, port)); err != nil; err = greets(ctx, ns, netip.AddrPortFrom(a, port)) {
				select {
				case <-s.done:
					return fmt.Errorf("it ended at once: %w", s.err)
				case <-ctx.Done():
					return err
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
	}
	return nil
}

func greets(ctx context.Context, ns *netns.NS, addr netip.AddrPort) error {
	c, err := ns.Dial(ctx, "tcp", nil, addr.String())
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	b := make([]byte, 4)
	if _, err := c.Read(b); err != nil {
		return fmt.Errorf("no greeting from %s: %w", addr, err)
	}
	return nil
}

// Pid returns the number of the master process.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// Log returns what Dovecot has logged so far.
func (s *Server) Log() string {
	b, err := os.ReadFile(filepath.Join(s.Dir, "dovecot.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Kill ends the instance with all its processes at once, as a power failure would.
func (s *Server) Kill() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.done
}

// Stop ends the instance with all its processes and waits for that. Its directory stays.
func (s *Server) Stop() error {
	// By the process that we started, never by a name or a pid file: other instances are not ours. The
	// error, that it has ended before, is what we want.
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
		return nil
	case <-time.After(stopTimeout):
	}
	_ = s.cmd.Process.Kill()
	<-s.done
	return fmt.Errorf("dovecot in %s had to be killed:\n%s", s.Dir, s.Log())
}
