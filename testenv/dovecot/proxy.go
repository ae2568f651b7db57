package dovecot

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
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

// ProxyOptions describe a proxy: Dovecot's login, LMTP and doveadm processes before a director that is not Dovecot's.
type ProxyOptions struct {
	Name            string     // instance name; default "proxy"
	Address         netip.Addr // where clients connect
	IMAPPort        int        // default 143
	POP3Port        int        // default 110
	LMTPPort        int        // 0: none. Backends are reached at the same port
	DoveadmPort     int        // 0: none. Backends are reached at the same port
	DoveadmPassword string     // of this server and the backends
	ServiceCount    int        // clients of one login process; 0: no limit, all in one
	Passdb          string     // the passdb blocks; default: the backend verifies the password, and user_alt is "alt-" and the name
	Extra           string     // lines added at the end of the configuration
	// Root is the root directory of a Debian 13, whose Dovecot 2.4 is used; empty: the machine's 2.3. Without doveadm.
	Root string
}

// Proxy is a running proxy.
type Proxy struct {
	Server
	options ProxyOptions
	ns      *netns.NS
}

const (
	proxyPassdb   = "passdb {\n  driver = static\n  args = proxy=y nopassword=y user_alt=alt-%u\n}"
	proxyPassdb24 = "passdb static {\n  fields {\n    proxy = y\n    nopassword = y\n    user_alt = alt-%{user}\n  }\n}"
)

//go:embed proxy.conf.tmpl
var proxyText string

var proxyConf = template.Must(template.New("proxy.conf").Parse(proxyText))

//go:embed proxy24.conf.tmpl
var proxy24Text string

var proxy24Conf = template.Must(template.New("proxy24.conf").Parse(proxy24Text))

// Available24 says why Dovecot 2.4 cannot be started from this root directory, or nil.
func Available24(root string) error {
	if os.Geteuid() != 0 {
		return errors.New("real Dovecot needs root")
	}
	cmd := exec.Command(binary, "--version")
	cmd.SysProcAttr, cmd.Dir = &syscall.SysProcAttr{Chroot: root}, "/"
	v, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("ask the Dovecot below %s for its version: %w", root, err)
	}
	if !bytes.HasPrefix(v, []byte("2.4.")) {
		return fmt.Errorf("the Dovecot below %s needs to be 2.4, it is %s", root, bytes.TrimSpace(v))
	}
	return nil
}

// StartProxy runs one proxy inside a namespace; what Start says about dir, and about the end of the process, is true here too.
// It returns when the master runs. Clients are greeted when there is a director at <dir>/run/login/director.
func StartProxy(ns *netns.NS, dir string, o ProxyOptions) (*Proxy, error) {
	o.Name = cmp.Or(o.Name, "proxy")
	o.IMAPPort, o.POP3Port = cmp.Or(o.IMAPPort, 143), cmp.Or(o.POP3Port, 110)
	if o.Root == "" {
		o.Passdb = cmp.Or(o.Passdb, proxyPassdb)
	} else {
		o.Passdb = cmp.Or(o.Passdb, proxyPassdb24)
	}
	// A pid file of an instance that was killed says nothing about this one.
	if err := os.Remove(filepath.Join(dir, "run", "master.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// No addresses: greetings are not waited for.
	p := &Proxy{Server: Server{Dir: dir}, options: o, ns: ns}
	if err := p.begin(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(startTimeout); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(p.BaseDir(), "master.pid")); err == nil {
			return p, nil
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("start dovecot %s: it ended at once: %w\n%s", o.Name, p.err, p.Log())
		default:
		}
		if time.Now().After(end) {
			p.Stop()
			return nil, fmt.Errorf("start dovecot %s: it does not write its pid\n%s", o.Name, p.Log())
		}
	}
}

// begin starts the master process.
func (p *Proxy) begin() error {
	values := struct {
		ProxyOptions
		Dir string
	}{p.options, strings.TrimPrefix(p.Dir, p.options.Root)}
	if p.options.Root == "" {
		return p.start(p.ns, p.options.Name, proxyConf, values)
	}
	var text bytes.Buffer
	if err := proxy24Conf.Execute(&text, values); err != nil {
		return err
	}
	if err := p.prepare(text.Bytes()); err != nil {
		return fmt.Errorf("prepare dovecot %s: %w", p.options.Name, err)
	}
	p.done = make(chan struct{})
	p.cmd = exec.Command(binary, "-F", "-c", filepath.Join(values.Dir, "dovecot.conf"))
	p.cmd.Dir = "/"
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: p.options.Root, Pdeathsig: syscall.SIGTERM, Setpgid: true}
	p.cmd.Stdout, p.cmd.Stderr = os.Stderr, os.Stderr // what is wrong with the configuration
	if err := p.ns.StartProcess(p.cmd); err != nil {
		return fmt.Errorf("start dovecot %s: %w", p.options.Name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return nil
}

// BaseDir is the directory with Dovecot's sockets.
func (p *Proxy) BaseDir() string { return filepath.Join(p.Dir, "run") }

// Port returns where clients connect: "imap", "pop3", "lmtp" or "doveadm".
func (p *Proxy) Port(protocol string) netip.AddrPort {
	port := map[string]int{
		"imap": p.options.IMAPPort, "pop3": p.options.POP3Port, "lmtp": p.options.LMTPPort, "doveadm": p.options.DoveadmPort,
	}[protocol]
	return netip.AddrPortFrom(p.options.Address, uint16(port))
}

// Doveadm runs a doveadm command that goes over the network to this proxy, and returns what it printed.
func (p *Proxy) Doveadm(ctx context.Context, args ...string) (string, error) {
	all := append([]string{"-c", p.configFile()}, args...)
	cmd := exec.CommandContext(ctx, "/usr/bin/doveadm", all...)
	var out, errout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errout
	if err := p.ns.StartProcess(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("doveadm %s: %w: %s", strings.Join(args, " "), err, errout.String())
	}
	return out.String(), nil
}

// Stop ends the instance. Unlike its master, login processes go on with their sessions for up to half a minute; that is
// not waited for.
func (p *Proxy) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	for end := time.Now().Add(stopTimeout); ; time.Sleep(10 * time.Millisecond) {
		// The file goes when the master has told the others.
		if _, err := os.Stat(filepath.Join(p.BaseDir(), "master.pid")); errors.Is(err, os.ErrNotExist) {
			p.Kill()
			return nil
		}
		if time.Now().After(end) {
			p.Kill()
			return fmt.Errorf("dovecot in %s had to be killed:\n%s", p.Dir, p.Log())
		}
	}
}
