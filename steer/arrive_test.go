package steer

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"usher/steer/auth"
	"usher/steer/prelogin"
	"usher/steer/proxyheader"
	"usher/testenv/backend"
	"usher/testenv/client"
)

// say writes everything and reads to the end.
func (x *site) say(t *testing.T, words string) string {
	t.Helper()
	c, err := net.Dial("tcp", x.addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, words); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil && len(answer) == 0 && !strings.Contains(err.Error(), "reset") {
		t.Fatal(err)
	}
	return string(answer)
}

// A load balancer's word about the client counts, where one is expected, and nowhere else.
func TestProxyHeader(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	seen := make(chan auth.Request, 1)
	driver := driverFunc(func(_ context.Context, r auth.Request) (auth.Answer, error) {
		seen <- r
		return auth.Answer{}, auth.ErrCredentials
	})
	h := proxyheader.Header{Client: netip.MustParseAddrPort("192.0.2.7:7"), Local: netip.MustParseAddrPort("192.0.2.8:143")}
	private := h
	private.TLS = true
	for _, tt := range []struct {
		name    string
		from    []netip.Prefix
		words   string
		client  string // that the driver sees; empty: it sees none
		answers string
	}{
		{"version 1", loopback, "PROXY TCP4 127.0.0.9 192.0.2.8 7 143\r\na LOGIN fred x\r\nb LOGOUT\r\n", "127.0.0.9:7", "a NO [AUTHENTICATIONFAILED]"},
		{"version 2", loopback, string(private.Append(nil)) + "a LOGIN fred x\r\nb LOGOUT\r\n", "192.0.2.7:7", "a NO [AUTHENTICATIONFAILED]"},
		{"a client that is not on this machine", loopback, string(h.Append(nil)) + "a LOGIN fred x\r\nb LOGOUT\r\n", "", "a NO [PRIVACYREQUIRED]"},
		{"its own connection", loopback, "PROXY UNKNOWN\r\na LOGIN fred x\r\nb LOGOUT\r\n", "127.0.0.1", "a NO [AUTHENTICATIONFAILED]"},
		{"missing", loopback, "a LOGIN fred x\r\nb LOGOUT\r\n", "", ""},
		{"from somebody else", nil, "PROXY TCP4 127.0.0.9 192.0.2.8 7 143\r\nb LOGOUT\r\n", "", "PROXY BAD"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := newSite(t, siteConfig{protocol: "imap", driver: driver, listener: func(l *Listener) { l.ProxyFrom = tt.from }})
			answers := x.say(t, tt.words)
			if !strings.Contains(answers, tt.answers) || (tt.answers == "") != (answers == "") {
				t.Errorf("answers %q", answers)
			}
			client, real := "", ""
			select {
			case r := <-seen:
				client, real = r.Client.String(), r.RealClient.Addr().String()
			default:
			}
			if !strings.HasPrefix(client, tt.client) || (tt.client == "") != (client == "") || client != "" && real != "127.0.0.1" {
				t.Errorf("the driver saw %q, really %q", client, real)
			}
		})
	}
}

// driverFunc is a driver for tests.
type driverFunc func(context.Context, auth.Request) (auth.Answer, error)

func (f driverFunc) Authenticate(ctx context.Context, r auth.Request) (auth.Answer, error) {
	return f(ctx, r)
}

// A backend may be sent a header as well, before everything else.
func TestProxyHeaderToBackend(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan proxyheader.Header, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h, err := proxyheader.Read(c)
		if err != nil {
			t.Error(err)
		}
		got <- h
	}()
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	x := newSite(t, siteConfig{
		protocol: "imap", driver: auth.Static{NoPassword: true, Host: to.Addr()},
		listener: func(l *Listener) { l.BackendPort, l.ProxyBackend = to.Port(), true },
	})
	answers := x.say(t, "a LOGIN fred x\r\nb LOGOUT\r\n")
	if h := <-got; !h.Client.Addr().IsLoopback() || h.Local != x.addr() {
		t.Errorf("header %+v", h)
	}
	if !strings.Contains(answers, "a NO [UNAVAILABLE]") {
		t.Errorf("answers %q", answers)
	}
}

// Backends that want to know are told who the client is.
func TestForward(t *testing.T) {
	for protocol, want := range map[string]string{"imap": `"x-originating-ip" "127.0.0.1"`, "submission": "client.example"} {
		x := newSite(t, siteConfig{protocol: protocol, backend: backend.Options{Trusting: true}, listener: func(l *Listener) { l.Forward = true }})
		s, err := x.dial(client.Config{Pipeline: true, Method: client.PlainInitial})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Echo(1000, 1); err != nil {
			t.Error(err)
		}
		s.Close()
		if all := x.backends[0].Sessions(); len(all) != 1 || !strings.Contains(all[0].ClientID, want) {
			t.Errorf("%s: sessions %+v", protocol, all)
		}
	}
}

// A client's certificate is a login, if the driver believes it; a backend that shall verify it cannot.
func TestExternal(t *testing.T) {
	verified := driverFunc(func(_ context.Context, r auth.Request) (auth.Answer, error) {
		if r.Login.Mechanism != "EXTERNAL" || r.Login.Password != "" || r.TLS == nil {
			return auth.Answer{}, auth.ErrCredentials
		}
		a := auth.Answer{User: r.Login.User, Verified: true}
		a.Upstream.User, a.Upstream.Tag = r.Login.User, r.Login.Tag
		a.Upstream.MasterUser, a.Upstream.MasterPassword = "boss", "m"
		return a, nil
	})
	careless := driverFunc(func(_ context.Context, r auth.Request) (auth.Answer, error) {
		a := auth.Answer{User: r.Login.User}
		a.Upstream.User, a.Upstream.Tag = r.Login.User, r.Login.Tag
		return a, nil
	})
	for name, driver := range map[string]auth.Driver{"believed": verified, "relayed": auth.Static{NoPassword: true}, "relayed carelessly": careless} {
		t.Run(name, func(t *testing.T) {
			x := newSite(t, siteConfig{protocol: "imap", client: TLSImplicit, driver: driver, backend: backend.Options{Master: "boss", MasterPassword: "m"}})
			cert, err := x.ca.Certificate("fred")
			if err != nil {
				t.Fatal(err)
			}
			c, err := tls.Dial("tcp", x.addr().String(), &tls.Config{RootCAs: x.ca.Pool, ServerName: "usher.test", Certificates: []tls.Certificate{cert}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprint(c, "a AUTHENTICATE EXTERNAL =\r\nb X-WHO\r\n")
			r := bufio.NewReader(c)
			greeting, _ := r.ReadString('\n')
			answer, _ := r.ReadString('\n')
			who, _ := r.ReadString('\n')
			if !strings.Contains(greeting, " AUTH=EXTERNAL") {
				t.Errorf("greeting %q", greeting)
			}
			if good := strings.HasPrefix(answer, "a OK") && strings.HasPrefix(who, "* X-WHO fred "); good != (name == "believed") {
				t.Errorf("answers %q, %q", answer, who)
			}
		})
	}
}

// One mail for users of several backends, over TLS on both legs.
func TestLMTP(t *testing.T) {
	x := newSite(t, siteConfig{protocol: "lmtp", backends: 3, client: TLSStart, upstream: TLSStart, listener: func(l *Listener) { l.Delimiter = "+" }})
	c, err := net.Dial("tcp", x.addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(c, "LHLO mx\r\nSTARTTLS\r\n")
	plain := bufio.NewReader(c)
	for {
		line, err := plain.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, "220 2.0.0") {
			break
		}
	}
	secret := tls.Client(c, &tls.Config{RootCAs: x.ca.Pool, ServerName: "usher.test"})
	words := "LHLO mx\r\nMAIL FROM:<s@x>\r\n"
	var want []string
	for i := range 20 {
		words += fmt.Sprintf("RCPT TO:<user%d+box@x>\r\n", i)
		want = append(want, fmt.Sprintf("<user%d+box@x>", i))
	}
	fmt.Fprint(secret, words+"DATA\r\nhello\r\n.\r\nQUIT\r\n")
	answers, err := io.ReadAll(secret)
	if err != nil && err != io.EOF && !strings.Contains(err.Error(), "EOF") {
		t.Fatal(err)
	}
	if n := strings.Count(string(answers), "Saved\r\n"); n != 20 {
		t.Errorf("%d replies of 20:\n%s", n, answers)
	}
	var got []string
	for _, b := range x.backends {
		mails := b.Mails()
		if len(mails) != 1 {
			t.Fatalf("%s got %d mails, want one with several recipients", b.Name(), len(mails))
		}
		got = append(got, mails[0].To...)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("delivered to %q", got)
	}
}

// Clients that nobody here wrote: Python's.
func TestPythonClients(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	for protocol, script := range map[string]string{
		"imap": `
import imaplib
c = imaplib.IMAP4_SSL(host, port, ssl_context=ctx) if implicit else imaplib.IMAP4(host, port)
if not implicit: c.starttls(ctx)
assert c.login("fred", "secret")[0] == "OK"
assert c.select()[0] == "OK"
assert c.append("INBOX", None, None, b"x" * 100000)[0] == "OK"
c.logout()
c = imaplib.IMAP4_SSL(host, port, ssl_context=ctx) if implicit else imaplib.IMAP4(host, port)
if not implicit: c.starttls(ctx)
try:
    c.login("fred", "wrong")
    assert False
except imaplib.IMAP4.error as e:
    assert "AUTHENTICATIONFAILED" in str(e), e
assert c.authenticate("PLAIN", lambda _: b"\0fred\0secret")[0] == "OK"
c.logout()
`, "pop3": `
import poplib
c = poplib.POP3_SSL(host, port, context=ctx) if implicit else poplib.POP3(host, port)
if not implicit: c.stls(ctx)
c.user("fred"); c.pass_("secret")
assert c.stat()[0] == 100
c.retr(7)
c.quit()
`, "submission": `
import smtplib
c = smtplib.SMTP_SSL(host, port, context=ctx) if implicit else smtplib.SMTP(host, port)
if not implicit: c.starttls(context=ctx)
c.login("fred", "secret")
assert c.docmd("NOOP")[0] == 250
c.quit()
c = smtplib.SMTP_SSL(host, port, context=ctx) if implicit else smtplib.SMTP(host, port)
if not implicit: c.starttls(context=ctx)
c.ehlo()
c.user, c.password = "fred", "secret"
c.auth("LOGIN", c.auth_login)
c.quit()
`, "lmtp": `
import smtplib, ssl
c = smtplib.LMTP(host, port)
if not implicit:
    c.ehlo()
    c.starttls(context=ctx)
assert c.sendmail("s@x", ["fred@x", "anna@x"], "Subject: x\n\n.dots\n..\n") == {}
c.quit()
`,
	} {
		for _, mode := range []TLSMode{TLSStart, TLSImplicit} {
			if protocol == "lmtp" && mode == TLSImplicit {
				continue // it cannot
			}
			t.Run(protocol+"/"+string(mode), func(t *testing.T) {
				x := newSite(t, siteConfig{protocol: protocol, client: mode, backends: 2, backend: backend.Options{Password: "secret"}})
				if err := os.WriteFile(ca, x.ca.PEM, 0o644); err != nil {
					t.Fatal(err)
				}
				implicit := "False"
				if mode == TLSImplicit {
					implicit = "True"
				}
				head := fmt.Sprintf("import ssl\nhost, port, implicit = '127.0.0.1', %d, %s\nctx = ssl.create_default_context(cafile=%q)\n", x.addr().Port(), implicit, ca)
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				if out, err := exec.CommandContext(ctx, python, "-c", head+script).CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}

// curl with every protocol that it has, and every way to use TLS.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	for _, tt := range []struct{ protocol, scheme, request string }{
		{"imap", "imap", "EXAMINE INBOX"}, {"pop3", "pop3", "UIDL"}, {"submission", "smtp", "NOOP"},
	} {
		for _, mode := range []TLSMode{TLSNone, TLSStart, TLSImplicit} {
			t.Run(tt.scheme+"/"+string(mode), func(t *testing.T) {
				x := newSite(t, siteConfig{protocol: tt.protocol, client: mode, upstream: mode, backend: backend.Options{Password: "secret"}})
				if err := os.WriteFile(ca, x.ca.PEM, 0o644); err != nil {
					t.Fatal(err)
				}
				args := []string{"-sS", "--max-time", "20", "--cacert", ca, "-u", "fred:secret", "-X", tt.request}
				scheme := tt.scheme
				switch mode {
				case TLSStart:
					args = append(args, "--ssl-reqd")
				case TLSImplicit:
					scheme += "s"
				}
				url := fmt.Sprintf("%s://%v/", scheme, x.addr())
				if out, err := exec.CommandContext(t.Context(), curl, append(args, url)...).CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
				if _, _, logins, _ := x.backends[0].Counts(); logins != 1 {
					t.Errorf("%d logins", logins)
				}
			})
		}
	}
}

// Nobody gets more than a bounded refusal for these, and others do not notice.
func TestHostileClients(t *testing.T) {
	limits := prelogin.Limits{Idle: 300 * time.Millisecond, Whole: time.Second}
	for protocol, attacks := range map[string]map[string]string{
		"imap":       {"parentheses": "a ID " + strings.Repeat("(", 100_000), "literal": "a LOGIN {999999999+}\r\n", "NUL": strings.Repeat("\x00", 20_000), "response": "a AUTHENTICATE PLAIN " + strings.Repeat("A", 100_000) + "\r\n", "slow": "a LOG"},
		"pop3":       {"line": strings.Repeat("\xff", 20_000), "response": "AUTH PLAIN " + strings.Repeat("A", 100_000) + "\r\n", "slow": "USER"},
		"submission": {"line": strings.Repeat("\xff", 20_000), "response": "EHLO x\r\nAUTH PLAIN " + strings.Repeat("A", 100_000) + "\r\n", "slow": "EH"},
		"sieve":      {"literal": "AUTHENTICATE {99999999999+}\r\n", "strings": "NOOP " + strings.Repeat(`"" `, 30_000) + "\r\n", "slow": "NO"},
		"lmtp":       {"line": strings.Repeat("\xff", 20_000), "faults": strings.Repeat("x\r\n", 10_000)},
	} {
		t.Run(protocol, func(t *testing.T) {
			x := newSite(t, siteConfig{protocol: protocol, server: func(c *Config) { c.Limits = limits }})
			var neighbour *client.Session
			if protocol != "lmtp" {
				var err error
				if neighbour, err = x.dial(client.Config{}); err != nil {
					t.Fatal(err)
				}
				defer neighbour.Close()
			}
			for name, words := range attacks {
				began := time.Now()
				c, err := net.Dial("tcp", x.addr().String())
				if err != nil {
					t.Fatal(err)
				}
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				go io.WriteString(c, words)
				n, _ := io.Copy(io.Discard, c)
				c.Close()
				if took := time.Since(began); took > 5*time.Second || n > 4000 {
					t.Errorf("%s: %d bytes of answers in %v", name, n, took)
				}
			}
			if neighbour != nil {
				if err := neighbour.Echo(1000, 1); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
