package httphook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"usher/steer/auth"
	"usher/steer/prelogin"
	"usher/steer/upstream"
)

var compareAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func request(user, password string) auth.Request {
	return auth.Request{
		Protocol: "imap", Login: prelogin.Login{User: user, Password: password, Mechanism: "LOGIN", Tag: "a"},
		Client: netip.MustParseAddrPort("192.0.2.42:5555"), Local: netip.MustParseAddrPort("10.1.0.1:143"),
	}
}

// hook is a driver that asks server.
func hook(t *testing.T, server *httptest.Server, change func(*Config)) *Hook {
	t.Helper()
	t.Cleanup(server.Close)
	c := Config{URL: server.URL + "/auth?site=x", Timeout: 5 * time.Second}
	if change != nil {
		change(&c)
	}
	h, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.client.CloseIdleConnections)
	return h
}

// answers is a server that answers each request with these headers, "Name: value".
func answers(lines ...string) *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, line := range lines {
			name, value, _ := strings.Cut(line, ": ")
			w.Header()[name] = append(w.Header()[name], value)
		}
	}))
}

func TestAnswers(t *testing.T) {
	master := auth.Master{User: "boss", Password: "m", Separator: "*"}
	own := func(user, password string) upstream.Credentials {
		return upstream.Credentials{User: user, Password: password, Tag: "a"}
	}
	for _, tt := range []struct {
		name    string
		headers []string
		user    string
		authzid string
		master  auth.Master
		want    auth.Answer
		err     error
		refused auth.Refused
	}{
		{name: "nginx's own", headers: []string{"Auth-Status: OK", "Auth-Server: 198.51.100.1", "Auth-Port: 1143"}, want: auth.Answer{User: "fred", Host: netip.MustParseAddr("198.51.100.1"), Port: 1143, Upstream: own("fred", "x")}},
		{name: "the director decides", headers: []string{"Auth-Status: OK"}, want: auth.Answer{User: "fred", Upstream: own("fred", "x")}},
		{name: "the director decides among some", headers: []string{"Auth-Status: OK", "Auth-Director-Tag: fast", "Auth-Port: 1143"}, want: auth.Answer{User: "fred", Tag: "fast", Port: 1143, Upstream: own("fred", "x")}},
		{name: "any case of names", headers: []string{"auth-status: OK", "AUTH-SERVER: fd00::1"}, want: auth.Answer{User: "fred", Host: netip.MustParseAddr("fd00::1"), Upstream: own("fred", "x")}},
		{name: "another user and password", headers: []string{"Auth-Status: OK", "Auth-User: f r", "Auth-Pass: y%20"}, want: auth.Answer{User: "f r", Upstream: own("f r", "y%20")}},
		{name: "master", headers: []string{"Auth-Status: OK"}, master: master, want: auth.Answer{User: "fred", Upstream: upstream.Credentials{User: "fred", Password: "x", Tag: "a", MasterUser: "boss", MasterPassword: "m", Separator: "*"}}},
		{name: "separator", headers: []string{"Auth-Status: OK", "Auth-User: fred"}, user: "fred*admin", master: auth.Master{Separator: "*"}, want: auth.Answer{User: "fred", Upstream: upstream.Credentials{User: "admin", Authzid: "fred", Password: "x", Tag: "a"}}},
		{name: "separator and its password", headers: []string{"Auth-Status: OK", "Auth-User: fred", "Auth-Pass: y"}, user: "fred*admin", master: auth.Master{Separator: "*"}, want: auth.Answer{User: "fred", Upstream: own("fred", "y")}},
		{name: "authzid", headers: []string{"Auth-Status: OK", "Auth-User: fred"}, user: "admin", authzid: "fred", want: auth.Answer{User: "fred", Upstream: upstream.Credentials{User: "admin", Authzid: "fred", Password: "x", Tag: "a"}}},

		{name: "refused", headers: []string{"Auth-Status: Invalid login or password", "Auth-Wait: 3"}, err: auth.ErrCredentials, refused: auth.Refused{Text: "Invalid login or password", Wait: 3 * time.Second}},
		{name: "refused for the last time", headers: []string{"Auth-Status: Too many attempts"}, err: auth.ErrCredentials, refused: auth.Refused{Text: "Too many attempts", Close: true}},
		{name: "temporary", headers: []string{"Auth-Status: Temporary server problem, try again later", "Auth-Error-Code: 451 4.3.0", "Auth-Wait: 3"}, err: auth.ErrTemporary, refused: auth.Refused{Text: "Temporary server problem, try again later", Code: "451 4.3.0", Wait: 3 * time.Second}},
		{name: "wrong password in SMTP's words", headers: []string{"Auth-Status: no", "Auth-Error-Code: 535 5.7.8"}, err: auth.ErrCredentials, refused: auth.Refused{Text: "no", Code: "535 5.7.8", Close: true}},
		{name: "disabled", headers: []string{"Auth-Status: suspended", "Auth-Error-Code: 550"}, err: auth.ErrDisabled, refused: auth.Refused{Text: "suspended", Code: "550", Close: true}},
		{name: "no code of SMTP", headers: []string{"Auth-Status: no", "Auth-Error-Code: 451 4.3.0; rm"}, err: auth.ErrCredentials, refused: auth.Refused{Text: "no", Close: true}},
		{name: "text is one line of ASCII", headers: []string{"Auth-Status: nö [ALERT] {5}"}, err: auth.ErrCredentials, refused: auth.Refused{Text: "n?? [ALERT] {5}", Close: true}},
		{name: "waits at most", headers: []string{"Auth-Status: no", "Auth-Wait: 999999"}, err: auth.ErrCredentials, refused: auth.Refused{Text: "no", Wait: maxWait}},
		{name: "ok in other case is a text", headers: []string{"Auth-Status: Ok"}, err: auth.ErrCredentials, refused: auth.Refused{Text: "Ok", Close: true}},

		{name: "no status", headers: []string{"Auth-Server: 198.51.100.1"}, err: auth.ErrTemporary},
		{name: "status twice", headers: []string{"Auth-Status: OK", "Auth-Status: no"}, err: auth.ErrTemporary},
		{name: "user twice", headers: []string{"Auth-Status: OK", "Auth-User: a", "Auth-User: b"}, err: auth.ErrTemporary},
		{name: "server is a name", headers: []string{"Auth-Status: OK", "Auth-Server: mail1"}, err: auth.ErrTemporary},
		{name: "server is everybody", headers: []string{"Auth-Status: OK", "Auth-Server: 0.0.0.0"}, err: auth.ErrTemporary},
		{name: "server is the proxy", headers: []string{"Auth-Status: OK", "Auth-Server: 10.1.0.1"}, err: auth.ErrTemporary},
		{name: "port 0", headers: []string{"Auth-Status: OK", "Auth-Port: 0"}, err: auth.ErrTemporary},
		{name: "port", headers: []string{"Auth-Status: OK", "Auth-Port: 65536"}, err: auth.ErrTemporary},
		{name: "wait", headers: []string{"Auth-Status: no", "Auth-Wait: soon"}, err: auth.ErrTemporary},
		{name: "tab in a user", headers: []string{"Auth-Status: OK", "Auth-User: a\tb"}, err: auth.ErrTemporary},
		{name: "separator without a user", headers: []string{"Auth-Status: OK"}, user: "fred*admin", master: auth.Master{Separator: "*"}, err: auth.ErrCredentials},
		{name: "authzid without a user", headers: []string{"Auth-Status: OK"}, user: "admin", authzid: "fred", err: auth.ErrCredentials},
		{name: "authzid and another user", headers: []string{"Auth-Status: OK", "Auth-User: admin"}, user: "admin", authzid: "fred", err: auth.ErrCredentials},
		{name: "nobody before the separator", headers: []string{"Auth-Status: OK"}, user: "*admin", master: auth.Master{Separator: "*"}, err: auth.ErrCredentials},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := hook(t, answers(tt.headers...), func(c *Config) { c.Master = tt.master })
			r := request("fred", "x")
			if tt.user != "" {
				r.Login.User = tt.user
			}
			r.Login.Authzid = tt.authzid
			got, err := h.Authenticate(t.Context(), r)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			tt.want.Verified = tt.err == nil
			if diff := cmp.Diff(tt.want, got, compareAddr); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			var refused *auth.Refused
			if errors.As(err, &refused) {
				refused.Err = nil
			} else {
				refused = &auth.Refused{}
			}
			if diff := cmp.Diff(&tt.refused, refused); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}

// raw answers every connection's requests with OK and keeps what it read, byte for byte.
func raw(t *testing.T) (url string, read func() string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var mu sync.Mutex
	var all bytes.Buffer
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buffer := make([]byte, 64<<10)
				for {
					n, err := c.Read(buffer)
					if err != nil {
						return
					}
					mu.Lock()
					all.Write(buffer[:n])
					mu.Unlock()
					if bytes.HasSuffix(buffer[:n], []byte("\r\n\r\n")) {
						io.WriteString(c, "HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nContent-Length: 0\r\n\r\n")
					}
				}
			}()
		}
	}()
	return "http://" + l.Addr().String() + "/auth", func() string {
		mu.Lock()
		defer mu.Unlock()
		s := all.String()
		all.Reset()
		return s
	}
}

// The whole request, as a hook sees it.
func TestRequest(t *testing.T) {
	address, read := raw(t)
	h, err := New(Config{URL: address, Header: http.Header{"X-Auth-Key": {"k e y"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.client.CloseIdleConnections()
	lines := func(s string) map[string]bool {
		m := map[string]bool{}
		for _, line := range strings.Split(s, "\r\n") {
			if !strings.HasPrefix(line, "Host: ") {
				m[line] = true
			}
		}
		return m
	}
	r := request("fr%d ü", "a b%\tc")
	r.Login.Authzid = "x y"
	r.RealClient, r.RealLocal = netip.MustParseAddrPort("10.9.9.9:1"), netip.MustParseAddrPort("10.9.9.8:2")
	r.Attempt, r.ClientHost, r.Session = 3, "client.example.org", "s/1"
	if _, err := h.Authenticate(t.Context(), r); !errors.Is(err, auth.ErrCredentials) {
		t.Error(err)
	}
	want := lines(strings.ReplaceAll(`GET /auth HTTP/1.1
Auth-Authzid: x%20y
Auth-Login-Attempt: 3
Auth-Method: plain
Auth-Pass: a%20b%25%09c
Auth-Protocol: imap
Auth-Session: s/1
Auth-User: fr%25d%20ü
Client-Host: client.example.org
Client-IP: 192.0.2.42
Proxy-Protocol-Addr: 192.0.2.42
Proxy-Protocol-Port: 5555
Proxy-Protocol-Server-Addr: 10.1.0.1
Proxy-Protocol-Server-Port: 143
Server-Addr: 10.1.0.1
Server-Port: 143
X-Auth-Key: k e y

`, "\n", "\r\n"))
	if diff := cmp.Diff(want, lines(read())); diff != "" {
		t.Errorf("login (-want +got):\n%s", diff)
	}

	r = auth.Request{
		Protocol: "lmtp", Login: prelogin.Login{User: "b@example.org"}, Client: netip.MustParseAddrPort("[fd00::2]:1"), Local: netip.MustParseAddrPort("[fd00::1]:24"),
		Mail: auth.Mail{Helo: "mx.example.org", From: "MAIL FROM:<> SIZE=1", To: "RCPT TO:<b@example.org>"},
	}
	if a, err := h.Find(t.Context(), r); err != nil || a.User != "b@example.org" {
		t.Errorf("got %+v, %v", a, err)
	}
	want = lines(strings.ReplaceAll(`GET /auth HTTP/1.1
Auth-Login-Attempt: 1
Auth-Method: none
Auth-Pass: 
Auth-Protocol: lmtp
Auth-SMTP-From: MAIL FROM:<> SIZE=1
Auth-SMTP-Helo: mx.example.org
Auth-SMTP-To: RCPT TO:<b@example.org>
Auth-User: b@example.org
Client-IP: fd00::2
Server-Addr: fd00::1
Server-Port: 24
X-Auth-Key: k e y

`, "\n", "\r\n"))
	if diff := cmp.Diff(want, lines(read())); diff != "" {
		t.Errorf("look-up (-want +got):\n%s", diff)
	}
}

// Whatever comes from outside can neither begin a header nor a second request: for each way in, every control character.
func TestNoInjection(t *testing.T) {
	address, read := raw(t)
	h, err := New(Config{URL: address, PassClientCert: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.client.CloseIdleConnections()
	ways := map[string]func(r *auth.Request, evil string){
		"user":        func(r *auth.Request, evil string) { r.Login.User = evil },
		"password":    func(r *auth.Request, evil string) { r.Login.Password = evil },
		"authzid":     func(r *auth.Request, evil string) { r.Login.Authzid = evil },
		"mechanism":   func(r *auth.Request, evil string) { r.Login.Mechanism = evil },
		"protocol":    func(r *auth.Request, evil string) { r.Protocol = evil },
		"client host": func(r *auth.Request, evil string) { r.ClientHost = evil },
		"session":     func(r *auth.Request, evil string) { r.Session = evil },
		"zone": func(r *auth.Request, evil string) {
			r.Client = netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone(evil), 1)
		},
		"helo": func(r *auth.Request, evil string) { r.Mail = auth.Mail{Helo: evil, To: "RCPT TO:<a>"} },
		"from": func(r *auth.Request, evil string) { r.Mail = auth.Mail{From: evil, To: "RCPT TO:<a>"} },
		"to":   func(r *auth.Request, evil string) { r.Mail = auth.Mail{To: evil} },
		"subject": func(r *auth.Request, evil string) {
			c := &x509.Certificate{Raw: []byte(evil)}
			c.Subject.CommonName, c.Issuer.CommonName = evil, evil
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
		},
	}
	for name, set := range ways {
		for _, bad := range []string{"\r\n", "\n", "\r", "\x00", "\x7f", "\t", "\x0b", "\r\n\r\n", "\r\n "} {
			for _, ask := range []func(context.Context, auth.Request) (auth.Answer, error){h.Authenticate, h.Find} {
				r := request("fred", "x")
				set(&r, "a"+bad+"X-Evil: 1"+bad+"b")
				_, _ = ask(t.Context(), r)
				got := read()
				if strings.Count(got, "HTTP/1.1") > 1 || got != "" && !strings.HasSuffix(got, "\r\n\r\n") {
					t.Errorf("%s %q: %q", name, bad, got)
				}
				for _, line := range strings.Split(strings.TrimSuffix(got, "\r\n\r\n"), "\r\n") {
					if strings.ContainsFunc(line, func(c rune) bool { return c < ' ' || c == 0x7f }) || strings.HasPrefix(strings.TrimSpace(line), "X-Evil") {
						t.Errorf("%s %q: line %q", name, bad, line)
					}
				}
			}
		}
	}
}

func TestEncode(t *testing.T) {
	for i := range 256 {
		s := string([]byte{byte(i)})
		want := s
		// nginx's table for mail (ngx_escape_uri), and DEL.
		if i <= ' ' || i == '%' || i == 0x7f {
			want = fmt.Sprintf("%%%02X", i)
		}
		if got := encode(s); got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
}

func FuzzEncode(f *testing.F) {
	f.Add("a b%00\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		e := encode(s)
		back, err := url.PathUnescape(e)
		if err != nil || back != s || !printable(e) || strings.Contains(e, " ") {
			t.Errorf("%q: %q, back %q, %v", s, e, back, err)
		}
		if v := visible(s); !printable(v) {
			t.Errorf("%q: visible %q", s, v)
		}
		if v := hostName(s); v != s && v != "[UNAVAILABLE]" || !printable(v) {
			t.Errorf("%q: host %q", s, v)
		}
	})
}

// An answer gives a login that can be used, a refusal with a line for the client, or a fault.
func FuzzReply(f *testing.F) {
	f.Add("OK", "10.2.0.11", "143", "fred", "x", "", "", "fast")
	f.Add("no\r\n", "", "", "", "", "3", "451 4.3.0", "")
	f.Add("WAIT", "[::1]", "0", "", "\x00", "99999999999", "999", "\n")
	f.Fuzz(func(t *testing.T, status, server, port, user, pass, wait, code, tag string) {
		header := http.Header{}
		for i, v := range []string{status, server, port, user, pass, wait, code, tag} {
			header.Set([]string{"Auth-Status", "Auth-Server", "Auth-Port", "Auth-User", "Auth-Pass", "Auth-Wait", "Auth-Error-Code", "Auth-Director-Tag"}[i], v)
		}
		re, err := parse(header)
		var refused *auth.Refused
		switch {
		case errors.As(err, &refused):
			if refused.Text != auth.Line(refused.Text) || refused.Wait < 0 || refused.Wait > maxWait || !printable(refused.Code) {
				t.Errorf("%+v", refused)
			}
		case err == nil:
			if !printable(re.user) || !printable(re.pass) || !printable(re.tag) || re.host.IsUnspecified() || re.wait > maxWait {
				t.Errorf("%+v", re)
			}
		}
	})
}

func TestKeepAlive(t *testing.T) {
	var connections atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Auth-Status", "OK")
		io.WriteString(w, "a body that nobody reads\n")
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	h := hook(t, server, nil)
	for range 20 {
		if _, err := h.Authenticate(t.Context(), request("fred", "x")); err != nil {
			t.Fatal(err)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	// One that the server closed meanwhile is made anew.
	server.CloseClientConnections()
	if _, err := h.Authenticate(t.Context(), request("fred", "x")); err != nil {
		t.Error(err)
	}
}

func TestParallel(t *testing.T) {
	var running, most atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(5 * time.Millisecond)
		running.Add(-1)
		w.Header().Set("Auth-Status", "OK")
	}))
	h := hook(t, server, func(c *Config) { c.Parallel = 3 })
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if _, err := h.Authenticate(t.Context(), request("fred", "x")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n != 3 {
		t.Errorf("%d at a time, want 3", n)
	}
}

func TestFailures(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"no answer", func(http.ResponseWriter, *http.Request) { <-release }, "deadline exceeded"},
		{"status 500", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Auth-Status", "OK")
			w.WriteHeader(503)
		}, "status 503"},
		{"not found", http.NotFound, "status 404, no Auth-Status"},
		{"sent elsewhere", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) }, "status 302, no Auth-Status"},
		{"very long headers", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Auth-Status", "OK")
			w.Header().Set("X", strings.Repeat("x", maxHeader))
		}, "exceeded"},
		{"closes", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		{"endless WAIT", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Auth-Status", "WAIT") }, "said WAIT"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(tt.handler)
			h := hook(t, server, func(c *Config) { c.Timeout = 200 * time.Millisecond })
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			_, err := h.Authenticate(ctx, request("fred", "topsecret"))
			if !errors.Is(err, auth.ErrTemporary) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), "site=x") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			server.CloseClientConnections()
			if tt.name == "no answer" {
				release <- struct{}{}
			}
		})
	}
}

// A 4xx status with Auth-Status is an answer: nginx never looked at the status.
func TestStatusOfRefusal(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Auth-Status", "no")
		w.WriteHeader(401)
	}))
	if _, err := hook(t, server, nil).Authenticate(t.Context(), request("fred", "x")); !errors.Is(err, auth.ErrCredentials) {
		t.Error(err)
	}
}

func TestWait(t *testing.T) {
	var n atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Auth-Status", map[bool]string{true: "WAIT", false: "OK"}[n.Add(1) == 1])
	}))
	if _, err := hook(t, server, nil).Authenticate(t.Context(), request("fred", "x")); err != nil || n.Load() != 2 {
		t.Errorf("%v after %d requests", err, n.Load())
	}
}

func TestFindUnknown(t *testing.T) {
	h := hook(t, answers("Auth-Status: No such user", "Auth-Error-Code: 535 5.1.1"), nil)
	_, err := h.Find(t.Context(), request("fred", ""))
	var refused *auth.Refused
	if !errors.Is(err, auth.ErrUnknown) || !errors.As(err, &refused) || refused.Text != "No such user" {
		t.Errorf("got %v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{}, {URL: "127.0.0.1:9000/auth"}, {URL: "ftp://127.0.0.1/"}, {URL: "http:///auth"}, {URL: "http://a:topsecret@127.0.0.1/"},
		{URL: "http://127.0.0.1/", CA: "testdata/missing.pem"}, {URL: "http://127.0.0.1/", CA: "hook_test.go"},
		{URL: "http://127.0.0.1/", Header: http.Header{"X": {"a\r\nb"}}}, {URL: "http://127.0.0.1/", Header: http.Header{"X:": {"a"}}},
		{URL: "http://127.0.0.1/", Header: http.Header{"auth-user": {"a"}}}, {URL: "http://127.0.0.1/", Header: http.Header{"Host": {"a"}}},
	} {
		if _, err := New(c); err == nil || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
