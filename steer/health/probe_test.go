package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/testenv/backend"
)

var loopback = netip.MustParseAddr("127.0.0.1")

func dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", to.String())
}

type dialFunc = func(context.Context, netip.AddrPort) (net.Conn, error)

// encrypt believes every certificate.
func encrypt(conn net.Conn, _ netip.Addr) (net.Conn, error) {
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	return c, c.Handshake()
}

// check runs a probe with a timeout.
func check(t *testing.T, p Probe, dial dialFunc, timeout time.Duration) *Failure {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return p.run(ctx, Network{Dial: dial, Encrypt: encrypt}, loopback)
}

// TestProbe: all checks against a mail server that behaves and misbehaves.
func TestProbe(t *testing.T) {
	server, err := backend.Start(nil, loopback, backend.Options{
		IMAPPort: backend.AnyPort, POP3Port: backend.AnyPort, Password: "secret",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	imap, pop3 := Service{Protocol: "imap", Port: server.IMAP().Port()}, Service{Protocol: "pop3", Port: server.POP3().Port()}
	both := []Service{imap, pop3}
	for _, tt := range []struct {
		name      string
		behaviour backend.Behaviour
		probe     Probe
		want      map[Check]Reason // of each check
		text      string           // in the error of the last one
	}{
		{name: "good", probe: Probe{Services: both, Password: "secret"}, want: map[Check]Reason{Connect: "", Greeting: "", Login: ""}},
		{name: "wrong password", probe: Probe{Services: []Service{imap}, Password: "wrong"}, text: "AUTHENTICATIONFAILED",
			want: map[Check]Reason{Connect: "", Greeting: "", Login: LoginRejected}},
		{name: "wrong password, POP3", probe: Probe{Services: []Service{pop3}, Password: "wrong"}, text: "-ERR",
			want: map[Check]Reason{Connect: "", Greeting: "", Login: LoginRejected}},
		{name: "logins are refused for now", behaviour: backend.Behaviour{Refuse: func(string) backend.Refusal { return backend.Unavailable }},
			probe: Probe{Services: both, Password: "secret"}, text: "UNAVAILABLE", want: map[Check]Reason{Connect: "", Greeting: "", Login: LoginRejected}},
		{name: "closes at the login", behaviour: backend.Behaviour{Refuse: func(string) backend.Refusal { return backend.HangUp }},
			probe: Probe{Services: both, Password: "secret"}, text: "imap on port", want: map[Check]Reason{Connect: "", Greeting: "", Login: Closed}},
		{name: "says goodbye", behaviour: backend.Behaviour{Bye: true}, probe: Probe{Services: both, Password: "secret"}, text: "Too many guests",
			want: map[Check]Reason{Connect: "", Greeting: WrongGreeting, Login: WrongGreeting}},
		{name: "says goodbye, POP3", behaviour: backend.Behaviour{Bye: true}, probe: Probe{Services: []Service{pop3}, Password: "secret"}, text: "Too many guests",
			want: map[Check]Reason{Connect: "", Greeting: WrongGreeting, Login: WrongGreeting}},
		{name: "says nothing", behaviour: backend.Behaviour{Hang: true}, probe: Probe{Services: both, Password: "secret"}, text: "time",
			want: map[Check]Reason{Connect: "", Greeting: Timeout, Login: Timeout}},
		{name: "another protocol", probe: Probe{Services: []Service{imap, {Protocol: "pop3", Port: imap.Port}}, Password: "secret"}, text: "pop3 on port",
			want: map[Check]Reason{Connect: "", Greeting: WrongGreeting, Login: WrongGreeting}},
		{name: "another protocol, IMAP", probe: Probe{Services: []Service{{Protocol: "imap", Port: pop3.Port}}, Password: "secret"}, text: "+OK",
			want: map[Check]Reason{Connect: "", Greeting: WrongGreeting, Login: WrongGreeting}},
		{name: "a protocol without words", probe: Probe{Services: []Service{{Protocol: "doveadm", Port: imap.Port}}}, want: map[Check]Reason{Connect: "", Greeting: "", Login: ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server.Behave(tt.behaviour)
			var last *Failure
			for _, depth := range []Check{Connect, Greeting, Login} {
				p := tt.probe
				p.Check, p.User = depth, "anna"
				timeout := 5 * time.Second
				if tt.want[depth] == Timeout {
					timeout = 50 * time.Millisecond
				}
				f := check(t, p, dialTCP, timeout)
				if f.reason() != tt.want[depth] {
					t.Errorf("%s: got %v, want %q", depth, f, tt.want[depth])
				}
				last = f
			}
			if tt.text != "" && (last == nil || !strings.Contains(last.Error(), tt.text)) {
				t.Errorf("the failure reads %v, want %q in it", last, tt.text)
			}
		})
	}
	// A check leaves as a client does, so that no host logs an error for each.
	server.Behave(backend.Behaviour{})
	if f := check(t, Probe{Check: Login, Services: both, User: "polite", Password: "secret"}, dialTCP, 5*time.Second); f != nil {
		t.Fatal(f)
	}
	polite := func() (n int) {
		for _, s := range server.Sessions() {
			if s.User == "polite" && s.Ending == backend.Logout {
				n++
			}
		}
		return n
	}
	for deadline := time.Now().Add(5 * time.Second); polite() != 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d checks ended with a logout, want 2; sessions %+v", polite(), server.Sessions())
		}
	}
}

// TestDial: what keeps a check from its host, and whose fault that is.
func TestDial(t *testing.T) {
	p := Probe{Check: Connect, Services: []Service{{Protocol: "imap", Port: 1}}}
	op := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for _, tt := range []struct {
		err  error
		want Reason
	}{
		{op(syscall.ECONNREFUSED), Refused},
		{op(syscall.EHOSTUNREACH), Unreachable},
		{op(syscall.ENETUNREACH), Unreachable},
		{op(syscall.ETIMEDOUT), Timeout},
		{context.DeadlineExceeded, Timeout},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, Timeout},
		{op(syscall.ECONNRESET), Closed},
		{op(syscall.EMFILE), Local},
		{op(syscall.EADDRNOTAVAIL), Local},
		{errors.New("no free source port"), Local},
	} {
		f := check(t, p, func(context.Context, netip.AddrPort) (net.Conn, error) {
			return nil, fmt.Errorf("connect to backend: %w", tt.err)
		}, time.Second)
		if f.reason() != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, f.reason(), tt.want)
		}
	}
	// The real thing: nobody listens.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.Services[0].Port = uint16(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	if f := check(t, p, dialTCP, time.Second); f.reason() != Refused || !errors.Is(f, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: got %v", f)
	}
}

func TestGreeting(t *testing.T) {
	for _, tt := range []struct {
		protocol, said string
		want           Reason
	}{
		{"imap", "* OK ready\r\n", ""},
		{"imap", "* ok\n", ""},
		{"imap", "* OKAY\r\n", WrongGreeting},
		{"imap", "* PREAUTH welcome back\r\n", WrongGreeting},
		{"imap", "* BYE full\r\n", WrongGreeting},
		{"imap", "", Closed},
		{"imap", "* OK no line end", Closed},
		{"pop3", "+OK\r\n", ""},
		{"pop3", "+OK ready <1@x>\r\n", ""},
		{"pop3", "-ERR full\r\n", WrongGreeting},
		{"pop3", "+O", Closed},
		{"lmtp", "220 x LMTP\r\n", ""},
		{"submission", "220-hello\r\n220-again\r\n220 x ESMTP\r\n", ""},
		{"submission", "220\r\n", ""},
		{"submission", "220-hello\r\n", Closed},
		{"submission", "220-hello\r\n554 no\r\n", WrongGreeting},
		{"submission", "421 busy\r\n", WrongGreeting},
		{"submission", "2200 x\r\n", WrongGreeting},
		{"sieve", "\"IMPLEMENTATION\" \"x\"\r\n\"SASL\" \"PLAIN\"\r\nOK \"ready\"\r\n", ""},
		{"sieve", "OK\r\n", ""},
		{"sieve", "BYE (TRYLATER) \"full\"\r\n", WrongGreeting},
		{"sieve", "\"SASL\" \"PLAIN\"\r\n", Closed},
		{"sieve", "* OK imap\r\n", WrongGreeting},
		{"pop3", strings.Repeat("x", 100_000), WrongGreeting},
		{"lmtp", strings.Repeat("220-more\r\n", 100_000), WrongGreeting},
	} {
		host, checker := net.Pipe()
		go func() {
			_, _ = io.WriteString(host, tt.said)
			if tt.want == "" {
				_, _ = io.ReadFull(host, make([]byte, len(protocols[tt.protocol].goodbye)+2))
			}
			host.Close()
		}()
		p := Probe{Check: Greeting, Services: []Service{{Protocol: tt.protocol, Port: 1}}}
		f := check(t, p, func(context.Context, netip.AddrPort) (net.Conn, error) { return checker, nil }, 5*time.Second)
		if f.reason() != tt.want {
			t.Errorf("%s, %.40q: got %v, want %q", tt.protocol, tt.said, f, tt.want)
		}
	}
}

// TestTLS: a server speaks lines of a script, "tls" being the handshake and "<" a line to be read.
func TestTLS(t *testing.T) {
	web := httptest.NewTLSServer(nil) // has a certificate
	defer web.Close()
	certificate := web.TLS.Certificates[0]
	for _, tt := range []struct {
		name     string
		script   string
		check    Check
		protocol string
		tls      string
		want     Reason
	}{
		{"implicit", "tls|* OK ready|<", Greeting, "imap", ImplicitTLS, ""},
		{"implicit, with a login", "tls|* OK [CAPABILITY AUTH=PLAIN SASL-IR] ready|<|health OK in|<", Login, "imap", ImplicitTLS, ""},
		{"implicit, only connected to", "", Connect, "imap", ImplicitTLS, ""},
		{"implicit, with a bad greeting", "tls|* BYE", Greeting, "imap", ImplicitTLS, WrongGreeting},
		{"implicit, without TLS", "* OK ready|<", Greeting, "imap", ImplicitTLS, TLSFailed},
		{"implicit, closed", "", Greeting, "imap", ImplicitTLS, Closed},
		{"by command, only the greeting", "* OK ready|<", Greeting, "imap", StartTLS, ""},
		{"by command", "* OK ready|<|usher OK go on|tls|<|* CAPABILITY AUTH=PLAIN SASL-IR|usher OK|<|health OK in|<", Login, "imap", StartTLS, ""},
		{"by command, POP3", "+OK ready|<|+OK go on|tls|<|+OK|<|+OK in|<", Login, "pop3", StartTLS, ""},
		{"by command, not offered", "* OK ready|<|usher BAD what?", Login, "imap", StartTLS, TLSFailed},
		{"by command, no login over it", "220 ready|<", Login, "submission", StartTLS, ""},
		{"by command, login rejected", "+OK ready|<|+OK go on|tls|<|+OK|<|-ERR no", Login, "pop3", StartTLS, LoginRejected},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				lines := bufio.NewReader(conn)
				for _, step := range strings.Split(tt.script, "|") {
					switch step {
					case "":
					case "tls":
						c := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{certificate}})
						if c.Handshake() != nil {
							return
						}
						conn, lines = c, bufio.NewReader(c)
					case "<":
						if _, err := lines.ReadString('\n'); err != nil {
							return
						}
					default:
						if _, err := io.WriteString(conn, step+"\r\n"); err != nil {
							return
						}
					}
				}
			}()
			p := Probe{Check: tt.check, Services: []Service{{tt.protocol, uint16(l.Addr().(*net.TCPAddr).Port), tt.tls}}, User: "anna", Password: "secret"}
			f := check(t, p, dialTCP, 5*time.Second)
			if f.reason() != tt.want {
				t.Errorf("got %v, want %q", f, tt.want)
			}
		})
	}
	p := Probe{Check: Greeting, Services: []Service{{"imap", 1, ImplicitTLS}}}
	checker, _ := net.Pipe()
	dial := func(context.Context, netip.AddrPort) (net.Conn, error) { return checker, nil }
	if f := p.run(t.Context(), Network{Dial: dial}, loopback); f.reason() != TLSFailed {
		t.Errorf("without a way to encrypt: got %v", f)
	}
}

// TestParting: a host that answers and then does not close costs little time, and the check is good.
func TestParting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, "* OK ready\r\n")
		_, _ = io.Copy(io.Discard, c)
	}()
	p := Probe{Check: Greeting, Services: []Service{{Protocol: "imap", Port: uint16(l.Addr().(*net.TCPAddr).Port)}}}
	began := time.Now()
	if f := check(t, p, dialTCP, time.Minute); f != nil {
		t.Error(f)
	}
	if took := time.Since(began); took > 20*parting {
		t.Errorf("took %v", took)
	}
}

// FuzzGreeting: however a greeting arrives it is judged alike, within limits, and only good words are good.
func FuzzGreeting(f *testing.F) {
	for _, seed := range []string{"* OK\r\n", "+OK x\r\n", "220-a\r\n220 b\r\n", "\"a\" {3}\r\nOK\r\n", "BYE\r\n", "2", "\n\n"} {
		f.Add(seed, uint8(0))
	}
	f.Fuzz(func(t *testing.T, said string, size uint8) {
		for name, words := range protocols {
			whole := words.greeting(prelogin.NewReader(scriptconn.New(said), 64, 256))
			parts := words.greeting(prelogin.NewReader(scriptconn.Bytewise(int(size)+1, said), 64, 256))
			if fmt.Sprint(whole) != fmt.Sprint(parts) {
				t.Errorf("%s: %q is %v, in pieces %v", name, said, whole, parts)
			}
			if whole == nil && !strings.Contains(strings.ToUpper(said), map[string]string{"imap": "* OK", "pop3": "+OK", "sieve": "OK"}[name]) {
				t.Errorf("%s: %q is good", name, said)
			}
		}
	})
}
