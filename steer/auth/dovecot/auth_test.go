package dovecot

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"usher/steer/auth"
	"usher/steer/prelogin"
	"usher/steer/upstream"
)

var compareAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func request23(user, password string) auth.Request {
	return auth.Request{
		Protocol: "imap", Login: prelogin.Login{User: user, Password: password, Mechanism: "LOGIN", Tag: "a"}, Session: "s1",
		Client: netip.MustParseAddrPort("127.0.0.9:5555"), Local: netip.MustParseAddrPort("127.0.1.1:143"),
	}
}

func own(user, password string) upstream.Credentials {
	return upstream.Credentials{User: user, Password: password, Tag: "a"}
}

// The lines of the transcripts, 2.3 and 2.4.
func TestReplies(t *testing.T) {
	master := auth.Master{User: "boss", Password: "m", Separator: "*"}
	for _, tt := range []struct {
		name    string
		reply   string
		master  auth.Master
		user    string
		want    auth.Answer
		err     error
		text    string
		refused bool
	}{
		{name: "2.3", reply: "OK|%s|user=user2@x.test|proxy|lip=127.0.1.1|lport=10143|pass=pw", want: auth.Answer{User: "user2@x.test", Upstream: own("user2@x.test", "pw")}},
		{name: "2.4", reply: "OK|%s|user=u24@x.test|proxy=y|user_alt=alt-u24@x.test|lip=127.0.1.24|lport=10143|pass=pw", want: auth.Answer{User: "u24@x.test", Upstream: own("u24@x.test", "pw"), Alt: map[string]string{"alt": "alt-u24@x.test"}}},
		{name: "tag", reply: "OK|%s|user=tagged@x.test|proxy|director_tag=fast|lip=127.0.1.1|lport=143|pass=pw", want: auth.Answer{User: "tagged@x.test", Tag: "fast", Upstream: own("tagged@x.test", "pw")}},
		{name: "destuser", reply: "OK|%s|user=dest@x.test|proxy|destuser=other@y.test|pass=pw", want: auth.Answer{User: "other@y.test", Upstream: own("other@y.test", "pw")}},
		{name: "alternative name and forward", reply: "OK|%s|user=alt@x.test|proxy|user_uid=4711|forward_foo=bar|pass=pw", want: auth.Answer{User: "alt@x.test", Upstream: own("alt@x.test", "pw"), Alt: map[string]string{"uid": "4711"}, Forward: map[string]string{"foo": "bar"}}},
		{name: "host", reply: "OK|%s|user=fixed@x.test|proxy|host=127.0.2.3|port=1143|pass=pw", want: auth.Answer{User: "fixed@x.test", Host: netip.MustParseAddr("127.0.2.3"), Port: 1143, Upstream: own("fixed@x.test", "pw")}},
		{name: "host by name", reply: "OK|%s|user=byname@x.test|proxy|host=localhost|hostip=127.0.0.1|ssl=any-cert|pass=pw", want: auth.Answer{User: "byname@x.test", Host: netip.MustParseAddr("127.0.0.1"), HostName: "localhost", TLS: auth.BackendTLS{Mode: "implicit", AnyCert: true}, Upstream: own("byname@x.test", "pw")}},
		{name: "maybe", reply: "OK|%s|user=maybe@x.test|lip=127.0.1.1|lport=143|proxy_maybe|pass=pw", want: auth.Answer{User: "maybe@x.test", Upstream: own("maybe@x.test", "pw")}},
		{name: "director maybe, and no password", reply: "OK|%s|user=dmaybe@x.test|director_proxy_maybe=y", want: auth.Answer{User: "dmaybe@x.test", Upstream: own("dmaybe@x.test", "x")}},
		{name: "flags have any value", reply: "OK|%s|user=a|proxy=1|starttls=Y", want: auth.Answer{User: "a", TLS: auth.BackendTLS{Mode: "starttls"}, Upstream: own("a", "x")}},
		{name: "escaped", reply: "OK|%s|user=a|proxy|pass=a\x01t=b", err: auth.ErrTemporary},
		{name: "unknown fields", reply: "OK|%s|user=a|proxy|source_ip=10.0.0.1|event_x=y||x", want: auth.Answer{User: "a", Upstream: own("a", "x")}},
		{name: "own master", reply: "OK|%s|user=a|proxy|master=adm|pass=mp", master: master, want: auth.Answer{User: "a", Upstream: upstream.Credentials{User: "a", Password: "mp", Tag: "a", MasterUser: "adm", MasterPassword: "mp", Separator: "*"}}},
		{name: "the site's master", reply: "OK|%s|user=a|proxy|pass=x", master: master, want: auth.Answer{User: "a", Upstream: upstream.Credentials{User: "a", Password: "x", Tag: "a", MasterUser: "boss", MasterPassword: "m", Separator: "*"}}},
		{name: "login of a master user", reply: "OK|%s|user=fred|proxy|pass=x", user: "fred*adm", master: auth.Master{Separator: "*"}, want: auth.Answer{User: "fred", Upstream: upstream.Credentials{User: "adm", Authzid: "fred", Password: "x", Tag: "a"}}},

		{name: "no proxy", reply: "OK|%s|user=a", err: auth.ErrDisabled},
		{name: "nologin", reply: "OK|%s|user=a|nologin|reason=Go=away|proxy", err: auth.ErrDisabled, text: "Go=away", refused: true},
		{name: "no user", reply: "OK|%s|proxy", err: auth.ErrTemporary},
		{name: "bad port", reply: "OK|%s|user=a|proxy|port=x", err: auth.ErrTemporary},
		{name: "host is a name", reply: "OK|%s|user=a|proxy|host=mail1", err: auth.ErrTemporary},
		{name: "loop", reply: "OK|%s|user=a|proxy|host=127.0.1.1|port=143", err: auth.ErrTemporary},
		{name: "wrong password", reply: "FAIL|%s|user=a", err: auth.ErrCredentials, refused: true},
		{name: "temporary", reply: "FAIL|%s|user=a|code=temp_fail|reason=inside", err: auth.ErrTemporary, refused: true},
		{name: "temporary, as 2.2", reply: "FAIL|%s|user=a|temp", err: auth.ErrTemporary, refused: true},
		{name: "disabled", reply: "FAIL|%s|user=a|code=user_disabled|reason=Ask us", err: auth.ErrDisabled, text: "Ask us", refused: true},
		{name: "expired", reply: "FAIL|%s|user=a|pass_expired", err: auth.ErrDisabled, text: "Password expired.", refused: true},
		{name: "authz", reply: "FAIL|%s|code=authz_fail", err: auth.ErrDisabled, refused: true},
		{name: "another reply", reply: "PASS|%s|user=a|proxy", err: auth.ErrTemporary},
		{name: "asks on", reply: "CONT|%s|", err: auth.ErrTemporary},
		{name: "no base64", reply: "CONT|%s|!", err: auth.ErrTemporary},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, answering(hello23, func(string) string { return tt.reply + "\n" }))
			a := driver(t, Config{LoginSocket: f.path, Master: tt.master})
			r := request23("fred", "x")
			if tt.user != "" {
				r.Login.User = tt.user
			}
			got, err := a.Authenticate(t.Context(), r)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			tt.want.Verified = tt.err == nil
			if diff := cmp.Diff(tt.want, got, compareAddr); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			var refused *auth.Refused
			if errors.As(err, &refused) != tt.refused || refused != nil && refused.Text != tt.text {
				t.Errorf("refused %+v", refused)
			}
			c := a.login.slots[0].conn.Load()
			c.mu.Lock()
			defer c.mu.Unlock()
			if n := c.load.Load(); n != 0 || len(c.pending) != 0 || len(a.login.running) != 0 {
				t.Errorf("%d requests are not finished, %d wait, %d places taken", n, len(c.pending), len(a.login.running))
			}
		})
	}
}

// What auth hears, byte for byte.
func TestLogins(t *testing.T) {
	cert := &tls.ConnectionState{ServerName: "mail.example.org", VerifiedChains: [][]*x509.Certificate{{}}}
	for _, tt := range []struct {
		name, hello string
		change      func(*auth.Request)
		config      Config
		want        string
	}{
		{name: "2.3", hello: hello23, want: "AUTH|1|PLAIN|service=imap|session=s1|lip=127.0.1.1|lport=143|rip=127.0.0.9|rport=5555|final-resp-ok|resp=AGZyZWQAeA=="},
		{name: "2.4", hello: hello24, want: "AUTH|1|PLAIN|protocol=imap|session=s1|lip=127.0.1.1|lport=143|rip=127.0.0.9|rport=5555|final-resp-ok|resp=AGZyZWQAeA=="},
		{name: "TLS, another address, own penalty", hello: hello23, config: Config{NoPenalty: true}, change: func(r *auth.Request) {
			r.TLS = &tls.ConnectionState{ServerName: "a\tb"}
			r.RealClient, r.RealLocal, r.Session = netip.MustParseAddrPort("[::ffff:10.0.0.1]:1"), r.Local, ""
		}, want: "AUTH|1|PLAIN|service=imap|lip=127.0.1.1|lport=143|rip=127.0.0.9|rport=5555|real_rip=10.0.0.1|real_rport=1|local_name=a\x01tb|secured=tls|no-penalty|final-resp-ok|resp=AGZyZWQAeA=="},
		{name: "authzid", hello: hello23, change: func(r *auth.Request) { r.Login.Authzid = "anna" }, want: "AUTH|1|PLAIN|service=imap|session=s1|lip=127.0.1.1|lport=143|rip=127.0.0.9|rport=5555|final-resp-ok|resp=YW5uYQBmcmVkAHg="},
		{name: "certificate", hello: hello23, change: func(r *auth.Request) {
			r.TLS, r.Login.Mechanism, r.Session = cert, "EXTERNAL", ""
		}, want: "AUTH|1|EXTERNAL|service=imap|lip=127.0.1.1|lport=143|rip=127.0.0.9|rport=5555|local_name=mail.example.org|secured=tls|valid-client-cert|cert_username=fred|final-resp-ok|resp=="},
		{name: "token", hello: hello23, change: func(r *auth.Request) {
			r.Login.Mechanism, r.Login.Message, r.Session = "XOAUTH2", "abc", ""
		}, want: "AUTH|1|XOAUTH2|service=imap|lip=127.0.1.1|lport=143|rip=127.0.0.9|rport=5555|final-resp-ok|resp=YWJj"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, answering(tt.hello, func(string) string { return "OK|%s|user=fred|proxy|pass=x\n" }))
			tt.config.LoginSocket = f.path
			a := driver(t, tt.config)
			r := request23("fred", "x")
			if tt.change != nil {
				tt.change(&r)
			}
			if _, err := a.Authenticate(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			heard := f.lines()
			if len(heard) != 3 || heard[0] != "VERSION|1|"+tt.hello[len("VERSION|1|"):][:1] || !strings.HasPrefix(heard[1], "CPID|") || heard[2] != tt.want {
				t.Errorf("heard %q\nwant %q", heard, tt.want)
			}
		})
	}
}

// A certificate is not believed because a client says EXTERNAL.
func TestExternalWithoutCertificate(t *testing.T) {
	f := start(t, answering(hello23, func(string) string { return "OK|%s|user=fred|proxy|pass=x\n" }))
	r := request23("fred", "x")
	r.Login.Mechanism, r.TLS = "EXTERNAL", &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}}
	if _, err := driver(t, Config{LoginSocket: f.path}).Authenticate(t.Context(), r); !errors.Is(err, auth.ErrCredentials) {
		t.Error(err)
	}
	r.TLS, r.Login.Authzid = verified, "anna"
	if _, err := driver(t, Config{LoginSocket: f.path}).Authenticate(t.Context(), r); !errors.Is(err, auth.ErrCredentials) {
		t.Errorf("for another user: %v", err)
	}
}

// The explanation of a token's refusal reaches the client.
func TestTokenRefused(t *testing.T) {
	f := start(t, answering(hello23, func(line string) string {
		if strings.HasPrefix(line, "AUTH|") {
			return "CONT|%s|eyJzdGF0dXMiOiI0MDEifQ==\n"
		}
		return "FAIL|%s|user=fred\n"
	}))
	r := request23("fred", "token")
	r.Login.Mechanism, r.Login.Message = "OAUTHBEARER", "n,,\x01auth=Bearer token\x01\x01"
	_, err := driver(t, Config{LoginSocket: f.path}).Authenticate(t.Context(), r)
	var refused *auth.Refused
	if !errors.As(err, &refused) || !errors.Is(err, auth.ErrCredentials) || string(refused.Challenge) != `{"status":"401"}` {
		t.Errorf("got %v, %+v", err, refused)
	}
	if heard := f.lines(); heard[len(heard)-1] != "CONT|1|AQ==" {
		t.Errorf("heard %q", heard)
	}
}

// Replies come in another order than the requests, on few connections.
func TestConcurrent(t *testing.T) {
	f := start(t, func(p peer) {
		p.say("%s", hello23)
		p.hear()
		p.hear()
		var mu sync.Mutex
		for line := p.hear(); line != ""; line = p.hear() {
			id := strings.Split(line, "|")[1]
			session := strings.Split(line, "|session=")[1]
			session = session[:strings.IndexByte(session, '|')]
			go func() {
				time.Sleep(time.Duration(len(session)%7) * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				p.say("OK|%s|user=%s|proxy|pass=x\n", id, session)
			}()
		}
	})
	a := driver(t, Config{LoginSocket: f.path, Connections: 3, Parallel: 50})
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() {
			r := request23("fred", "x")
			r.Session = fmt.Sprintf("%s%d", strings.Repeat("s", i%11+1), i)
			if got, err := a.Authenticate(t.Context(), r); err != nil || got.User != r.Session {
				t.Errorf("%s: got %q, %v", r.Session, got.User, err)
			}
		})
	}
	wg.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.conns); n > 3 {
		t.Errorf("%d connections", n)
	}
	ids := map[string]bool{}
	for _, line := range f.heard {
		if strings.HasPrefix(line, "CPID|") && ids[line] {
			t.Errorf("%s twice", line)
		}
		ids[line] = ids[line] || strings.HasPrefix(line, "CPID|")
	}
}

func TestHandshakeFaults(t *testing.T) {
	t.Parallel()
	for name, hello := range map[string]string{
		"another protocol": "* OK ready\n",
		"another version":  "VERSION|2|0\n",
		"version twice":    "VERSION|1\n",
		"no mechanisms":    "VERSION|1|2\nSPID|1\nCUID|1\nCOOKIE|0\nDONE\n",
		"no cookie":        "VERSION|1|2\nMECH|PLAIN\nSPID|1\nCUID|1\nDONE\n",
		"no pid":           "VERSION|1|2\nMECH|PLAIN\nCUID|1\nCOOKIE|0\nDONE\n",
		"only bad names":   "VERSION|1|2\nMECH|pl\x01tain\nMECH\nSPID|1\nCUID|1\nCOOKIE|0\nDONE\n",
		"endless":          "VERSION|1|2\n" + strings.Repeat("MECH|PLAIN\n", 2*maxHandshake),
		"long line":        "VERSION|1|2\nMECH|" + strings.Repeat("X", 2*maxLine) + "\n",
		"NUL":              "VERSION|1|2\x00\n",
		"closed":           "VERSION|1|2\nMECH|PLAIN\n",
		"nothing":          "",
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, func(p peer) { p.say("%s", hello) })
			if _, err := driver(t, Config{LoginSocket: f.path}).Authenticate(t.Context(), request23("fred", "topsecret")); !errors.Is(err, auth.ErrTemporary) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestConnectionFaults(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	defer close(hang)
	for _, tt := range []struct {
		name  string
		serve func(p peer)
	}{
		{"never says hello", func(p peer) { <-hang }},
		{"never answers", func(p peer) { p.say("%s", hello23); <-hang }},
		{"closes always", func(p peer) { p.say("%s", hello23); p.hear(); p.hear(); p.hear() }},
		{"long line", answering(hello23, func(string) string { return strings.Repeat("x", 2*maxLine) })},
		{"bad escape", answering(hello23, func(string) string { return "OK|%s|user=\x01x|proxy\n" })},
		{"no number", answering(hello23, func(string) string { return "OK|x|user=a|proxy\n" })},
		{"number 0", answering(hello23, func(string) string { return "OK|0|user=a|proxy\n" })},
		{"only another's number", answering(hello23, func(string) string { return "OK|77|user=a|proxy\n" })},
		{"unknown lines", answering(hello23, func(string) string { return "PING|%s\n\n" })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, tt.serve)
			a := driver(t, Config{LoginSocket: f.path, Timeout: 300 * time.Millisecond})
			begin := time.Now()
			_, err := a.Authenticate(t.Context(), request23("fred", "topsecret"))
			if !errors.Is(err, auth.ErrTemporary) || strings.Contains(err.Error(), "topsecret") || time.Since(begin) > 4*time.Second {
				t.Errorf("got %v after %v", err, time.Since(begin))
			}
			if len(a.login.running) != 0 {
				t.Error("a place is taken")
			}
		})
	}
}

// A request that was given up is cancelled, and its late reply does no harm to the next one.
func TestLateReply(t *testing.T) {
	t.Parallel()
	f := start(t, func(p peer) {
		p.say("%s", hello23)
		for line := p.hear(); line != ""; line = p.hear() {
			switch {
			case strings.HasPrefix(line, "CANCEL|1"):
				p.say("OK|1|user=late|proxy\n")
			case strings.HasPrefix(line, "AUTH|2"):
				p.say("CONT|2|\nOK|3|user=x\nOK|2|user=fred|proxy\n") // two at once is a fault
			case strings.HasPrefix(line, "AUTH|3"):
				p.say("OK|3|user=fred|proxy|pass=x\n")
			}
		}
	})
	a := driver(t, Config{LoginSocket: f.path, Connections: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := a.Authenticate(ctx, request23("fred", "x")); !errors.Is(err, auth.ErrTemporary) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := a.Authenticate(t.Context(), request23("fred", "x")); !errors.Is(err, auth.ErrTemporary) {
		t.Errorf("a login that is asked on: %v", err)
	}
}

// While auth restarts a login waits; one whose connection ends is asked again.
func TestReconnect(t *testing.T) {
	t.Parallel()
	serve := answering(hello23, func(string) string { return "OK|%s|user=fred|proxy|pass=x\n" })
	f := start(t, serve)
	var log bytes.Buffer
	a := driver(t, Config{LoginSocket: f.path, Log: zerolog.New(&syncWriter{w: &log})})
	login := func() error {
		_, err := a.Authenticate(t.Context(), request23("fred", "x"))
		return err
	}
	if err := login(); err != nil {
		t.Fatal(err)
	}
	f.stop()
	go func() {
		time.Sleep(200 * time.Millisecond)
		f.listen(t, serve)
	}()
	if err := login(); err != nil {
		t.Errorf("during a short restart: %v", err)
	}
	f.stop()
	begin := time.Now()
	for range 100 {
		if err := login(); !errors.Is(err, auth.ErrTemporary) {
			t.Errorf("while auth is away: %v", err)
		}
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("100 failures took %v: they waited one after the other", d)
	}
	f.listen(t, serve)
	time.Sleep(dialTime)
	if err := login(); err != nil {
		t.Errorf("auth is back: %v", err)
	}
	if n := strings.Count(log.String(), "cannot be asked"); n != 1 || strings.Count(log.String(), "answers again") != 1 {
		t.Errorf("log:\n%s", log.String())
	}

	// The first connection ends in the middle of a request.
	first := true
	var mu sync.Mutex
	g := start(t, func(p peer) {
		mu.Lock()
		drop := first
		first = false
		mu.Unlock()
		if drop {
			p.say("%s", hello23)
			p.hear()
			p.hear()
			p.hear()
			return
		}
		serve(p)
	})
	b := driver(t, Config{LoginSocket: g.path})
	if _, err := b.Authenticate(t.Context(), request23("fred", "x")); err != nil {
		t.Errorf("a connection that ended: %v", err)
	}
}

// syncWriter lets goroutines share a buffer.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}

// Numbers begin again behind the largest one; 0 is none, and those that are in use are left out.
func TestNumbers(t *testing.T) {
	c := &conn{pending: map[uint32]chan reply{1: nil, 2: nil}, last: math.MaxUint32 - 1}
	for _, want := range []uint32{math.MaxUint32, 3, 4} {
		if rq, err := c.open(); err != nil || rq.id != want {
			t.Errorf("got %+v, %v, want %d", rq, err, want)
		}
	}
}

// Only mechanisms that can work are offered.
func TestMechanisms(t *testing.T) {
	for hello, want := range map[string][]string{hello23: {"PLAIN", "CRAM-MD5", "X-ODD"}, hello24: {"PLAIN"}} {
		f := start(t, answering(hello, func(string) string { return "" }))
		all, err := driver(t, Config{LoginSocket: f.path}).Mechanisms(t.Context())
		var got []string
		for _, m := range all {
			got = append(got, m.Name)
			if m.Plaintext != (m.Name == "PLAIN") || m.Private != (m.Name == "X-ODD") {
				t.Errorf("%+v", m)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{}); err == nil {
		t.Error("a driver without sockets")
	}
	a := driver(t, Config{LoginSocket: "/nonexistent/auth", Timeout: 100 * time.Millisecond})
	if _, err := a.Authenticate(t.Context(), request23("fred", "x")); !errors.Is(err, auth.ErrTemporary) {
		t.Error(err)
	}
	if _, err := a.Find(t.Context(), request23("fred", "x")); !errors.Is(err, auth.ErrTemporary) {
		t.Error(err)
	}
	if _, err := a.Mechanisms(t.Context()); !errors.Is(err, auth.ErrTemporary) && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// verified is a connection whose client showed a certificate that was verified.
var verified = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{}}}
