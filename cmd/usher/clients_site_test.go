package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/site"
	"usher/loader/netns"
	"usher/testenv/dovecot"
	"usher/testenv/lab"
	"usher/testenv/pki"
)

// clientTimeout is for one run of a client on a busy machine.
const clientTimeout = 40 * time.Second

// password is everybody's; it needs quoting in every protocol.
const password = `s3"cret"\and`

// clientSite is a site with real Dovecots as backends and a listener for each protocol and way to use TLS.
type clientSite struct {
	*site.Site
	dir      string // open to all users
	ca       string // file of the authority
	pki      *pki.Authority
	host     string // the service address
	dovecots []*dovecot.Server
	sink     *sink
}

// door is a listener.
type door struct {
	protocol, tls      string
	port, backendPort  int
	backendTLS, wanted string // wanted: mode of its sessions; "kernel", or "copy" where there is TLS
}

// doors are all listeners, beside the two that every site has (imap and pop3 without TLS).
var doors = []door{
	{"imap", "starttls", 1143, 143, "starttls", "copy"},
	{"imap", "implicit", 993, 993, "implicit", "copy"},
	{"imap", "none", 2143, 993, "implicit", "copy"},
	{"imap", "implicit", 3143, 143, "none", "copy"},
	{"pop3", "starttls", 1110, 110, "starttls", "copy"},
	{"pop3", "implicit", 995, 995, "implicit", "copy"},
	{"submission", "none", 587, 587, "none", "kernel"},
	{"submission", "starttls", 1587, 587, "starttls", "copy"},
	{"submission", "implicit", 465, 587, "none", "copy"},
	{"sieve", "none", 4190, 4190, "none", "kernel"},
	{"sieve", "starttls", 14190, 4190, "starttls", "copy"},
	{"lmtp", "none", 24, 24, "none", ""},
	{"lmtp", "starttls", 1024, 24, "starttls", ""},
}

// proxyPort is that of a listener for clients behind a load balancer.
const proxyPort = 4143

// port finds the first listener of a protocol with this TLS.
func port(t testing.TB, protocol, tls string) int {
	t.Helper()
	switch {
	case protocol == "imap" && tls == "none":
		return 143
	case protocol == "pop3" && tls == "none":
		return 110
	}
	for _, d := range doors {
		if d.protocol == protocol && d.tls == tls {
			return d.port
		}
	}
	t.Fatalf("no listener for %s with TLS %s", protocol, tls)
	return 0
}

// backendConfig is added to each backend's configuration.
const backendConfig = `
protocols = imap pop3 lmtp submission sieve
ssl = yes
ssl_cert = <%[1]s/backend.pem
ssl_key = <%[1]s/backend.key
submission_relay_host = %[2]v
submission_relay_port = %[3]d
auth_username_chars =
service imap-login {
  inet_listener imaps {
    port = 993
    ssl = yes
  }
}
service pop3-login {
  inet_listener pop3s {
    port = 995
    ssl = yes
  }
}
service lmtp {
  inet_listener lmtp {
    port = 24
  }
}
service submission-login {
  inet_listener submission {
    port = 587
  }
}
service managesieve-login {
  inet_listener sieve {
    port = 4190
  }
}
`

func newClientSite(t *testing.T) *clientSite {
	t.Helper()
	if err := dovecot.Available(); err != nil {
		t.Skip(err)
	}
	for _, binary := range []string{"submission-login", "managesieve-login", "lmtp"} {
		if _, err := os.Stat("/usr/lib/dovecot/" + binary); err != nil {
			t.Skipf("needs the packages dovecot-submissiond, dovecot-managesieved and dovecot-lmtpd: %v", err)
		}
	}
	// Not t.TempDir: Dovecot's processes are other users.
	dir, err := os.MkdirTemp("", "usher-clients-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	x := &clientSite{dir: dir, ca: filepath.Join(dir, "ca.pem")}
	x.Site = newSite(t, site.Options{NoBackends: true, Lab: lab.Options{Family: 4}, Backend: "[backend.health]\ninterval = \"2s\"\ntimeout = \"20s\""})
	net := x.Lab.Net(4)
	x.host = net.Service.String()
	x.certificates(t, net)
	x.sink = newSink(t, x.Lab.Backend)
	x.dovecots = dovecots(t, x.Site, dovecot.Options{
		Password: password, Trusted: []netip.Prefix{netip.PrefixFrom(net.DirectorBackend, 32)},
		Extra: fmt.Sprintf(backendConfig, dir, x.sink.addr.Addr(), x.sink.addr.Port()),
	})
	x.configure(t)
	start(t, x.Site)
	return x
}

func (x *clientSite) file(name string) string { return filepath.Join(x.dir, name) }

func (x *clientSite) certificates(t *testing.T, net lab.Net) {
	t.Helper()
	ca, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	x.pki = ca
	names := []string{"backend.example"}
	for _, a := range net.Backends {
		names = append(names, a.String())
	}
	if err := errors.Join(
		os.WriteFile(x.ca, ca.PEM, 0o644),
		ca.Write(x.file("usher.pem"), x.file("usher.key"), x.host, "mail.example"), // mbsync knows no addresses but those in the common name
		ca.Write(x.file("backend.pem"), x.file("backend.key"), names...),
	); err != nil {
		t.Fatal(err)
	}
}

// configure adds the doors to the daemon's configuration.
func (x *clientSite) configure(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(x.ConfigFile(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "\n[tls]\ncertificate = %q\nkey = %q\nbackend_ca = %q\n", x.file("usher.pem"), x.file("usher.key"), x.ca)
	fmt.Fprintf(f, "\n[[listener]]\nprotocol = \"imap\"\naddress = \"%s:%d\"\ntls = \"none\"\nbackend_port = 143\ndisable_plaintext_auth = false\nproxy_protocol_from = [\"%v\"]\n",
		x.host, proxyPort, x.Lab.Net(4).Clients[0])
	for _, d := range doors {
		fmt.Fprintf(f, "\n[[listener]]\nprotocol = %q\naddress = \"%s:%d\"\ntls = %q\nbackend_port = %d\nbackend_tls = %q\n",
			d.protocol, x.host, d.port, d.tls, d.backendPort, d.backendTLS)
		if d.tls == "none" && d.protocol != "lmtp" {
			fmt.Fprintln(f, "disable_plaintext_auth = false")
		}
	}
}

// command runs in the clients' namespace.
func (x *clientSite) command(t testing.TB, stdin io.Reader, name string, args ...string) *program {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), clientTimeout)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = x.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "HOME="+t.TempDir(), "PYTHONDONTWRITEBYTECODE=1")
	r := &program{Cmd: cmd}
	cmd.Stderr = &r.out
	cmd.Stdin = stdin
	if stdin == nil {
		r.ask(t)
	} else {
		cmd.Stdout = &r.out
	}
	if err := x.Lab.Client.StartProcess(cmd); err != nil {
		t.Fatal(err)
	}
	return r
}

// program is a running client. Without a stdin of its own, it says "ready" when it is logged in and waits for a line.
type program struct {
	*exec.Cmd
	in   io.WriteCloser
	said *bufio.Reader
	out  safeBuffer
}

func (r *program) ask(t testing.TB) {
	t.Helper()
	in, err := r.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := r.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.in, r.said = in, bufio.NewReader(said)
}

// ready waits for the word.
func (r *program) ready(t testing.TB) {
	t.Helper()
	line, err := r.said.ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("the client said %q, %v, %v:\n%s", line, err, r.Wait(), &r.out)
	}
}

// end waits for the client, which must be content.
func (r *program) end(t testing.TB) string {
	t.Helper()
	if r.in != nil {
		_, _ = io.WriteString(r.in, "\n")
		_, _ = io.Copy(&r.out, r.said)
	}
	if err := r.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s", r.Args, err, &r.out)
	}
	return r.out.String()
}

// safeBuffer is written by the goroutines of exec and read by the test.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// session waits until the user's only session is carried as wanted: "kernel", or "copy" because of TLS. It goes by what
// `usher user --json` shows.
func (x *clientSite) session(t testing.TB, name, protocol, wanted string) {
	t.Helper()
	var last admin.User
	deadline := time.Now().Add(20 * time.Second)
	for ; time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		last = user(t, x.Site, name)
		if len(last.Sessions) != 1 || last.Sessions[0].Protocol != protocol {
			continue
		}
		s := last.Sessions[0]
		if carried(s.Mode, s.Reason, wanted) {
			return
		}
	}
	t.Fatalf("user %s has %+v, want one session by %s, mode %s", name, last.Sessions, protocol, wanted)
}

func carried(mode, reason, wanted string) bool {
	if wanted == "copy" {
		return mode == "copy" && reason == "tls"
	}
	return (mode == "tc" || mode == "xdp") && reason == ""
}

// ended waits for the lines in the log about the user's sessions.
func (x *clientSite) ended(t testing.TB, name, wanted string) {
	t.Helper()
	var all []ending
	eventually(t, "the sessions of "+name+" have ended", func() bool {
		all = all[:0]
		for _, e := range endings(t, x.Site) {
			if e.User == name {
				all = append(all, e)
			}
		}
		return len(all) > 0
	})
	for _, e := range all {
		// A client that says everything in one breath is not silent before its end.
		hasty := wanted == "kernel" && e.Mode == "splice" && (e.Reason == "waiting" || e.Reason == "half-closed")
		if !carried(e.Mode, e.Reason, wanted) && !hasty {
			t.Errorf("user %s: mode %s, reason %q, want %s", name, e.Mode, e.Reason, wanted)
		}
		if e.End != "closed" && e.End != "reset" {
			t.Errorf("user %s: session ended: %s", name, e.End)
		}
	}
}

// home is the user's directory at the backend where the director says it is; it must be nowhere else.
func (x *clientSite) home(t testing.TB, name string) string {
	t.Helper()
	at := user(t, x.Site, name).Host
	home := ""
	for i, d := range x.dovecots {
		dir := filepath.Join(d.Dir, "mail", name)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if x.Hosts[i] != at {
			t.Errorf("user %s has mail at %v, but belongs to %v", name, x.Hosts[i], at)
		}
		home = dir
	}
	if home == "" {
		t.Fatalf("user %s has no mail anywhere", name)
	}
	return home
}

// mails counts the messages in a user's INBOX.
func (x *clientSite) mails(t testing.TB, name string) (n int) {
	t.Helper()
	home := x.home(t, name)
	for _, dir := range []string{"new", "cur"} {
		files, err := os.ReadDir(filepath.Join(home, "Maildir", dir))
		if err != nil {
			t.Fatal(err)
		}
		n += len(files)
	}
	return n
}

// sink is a server that takes every mail: the way out of the backends' submission service.
type sink struct {
	addr  netip.AddrPort
	mu    sync.Mutex
	mails []string // sender, recipients, and the text, each on lines of its own
}

func newSink(t *testing.T, ns *netns.NS) *sink {
	t.Helper()
	l, err := ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &sink{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return s
}

func (s *sink) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	say := func(text string) { fmt.Fprint(c, text+"\r\n") }
	say("220 sink.example ESMTP")
	var mail strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb := strings.ToUpper(line[:min(len(line), 4)]); verb {
		case "EHLO":
			say("250-sink.example\r\n250-PIPELINING\r\n250 8BITMIME")
		case "MAIL", "RSET":
			mail.Reset()
			mail.WriteString(line)
			say("250 OK")
		case "RCPT":
			mail.WriteString(line)
			say("250 OK")
		case "DATA":
			say("354 Go on")
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				mail.WriteString(line)
			}
			s.mu.Lock()
			s.mails = append(s.mails, mail.String())
			s.mu.Unlock()
			say("250 OK")
		case "QUIT":
			say("221 Bye")
			return
		default:
			say("250 OK")
		}
	}
}

// from counts the mails of a sender.
func (s *sink) from(sender string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.mails {
		if strings.HasPrefix(strings.ToUpper(m), "MAIL FROM:<"+strings.ToUpper(sender)+">") {
			n++
		}
	}
	return n
}
