package dovecot

import (
	"context"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"usher/director"
)

// exchange is a connection of a transcript: what each side said.
type exchange struct {
	client, auth, want []string
	login              bool
}

// ours is what a director adds.
var ours = regexp.MustCompile("\tproxy_refresh=[0-9]+\thost=.*$")

// recorded reads a transcript with the lines "C:" and "S:" up to the next title or the end of the connection. Auth has
// said what the director said, less what the director added.
func recorded(t *testing.T, name string) (x exchange) {
	speaker := regexp.MustCompile(`^ *[0-9.]* *([CS]): (.*)$`)
	for i, l := range transcript(t, name) {
		m := speaker.FindStringSubmatch(l)
		switch {
		case m == nil && i == 0:
		case m == nil:
			return x
		case m[1] == "C":
			x.client = append(x.client, m[2])
		case m[2] == "[EOF]":
			return x
		default:
			x.want = append(x.want, m[2])
			x.auth = append(x.auth, ours.ReplaceAllString(m[2], ""))
		}
	}
	return x
}

// traced picks connections out of a transcript that was made with a tracer: the prefixes of what the client said, of
// what auth said, and of what the client, or at the other end the director, got.
func traced(t *testing.T, name string, prefixes [3]string) (x exchange) {
	for _, l := range transcript(t, name) {
		for i, to := range []*[]string{&x.client, &x.auth, &x.want} {
			if rest, ok := strings.CutPrefix(l, prefixes[i]+" "); ok {
				*to = append(*to, rest)
			}
		}
	}
	return x
}

func TestTranscripts(t *testing.T) {
	login23 := traced(t, "login-and-lmtp-lookup-2.3.19.txt",
		[3]string{"imap-login cli:director >>", "auth srv:d1:auth-login >>", "director srv:d1:login/director >>"})
	lmtp23 := traced(t, "login-and-lmtp-lookup-2.3.19.txt",
		[3]string{"lmtp cli:d1:director-userdb >>", "auth srv:d1:auth-userdb >>", "director srv:d1:director-userdb >>"})
	pop24 := traced(t, "login-2.4.1-through-director.txt",
		[3]string{"pop3-login-2.4 cli:director >>", "auth-2.4 srv:/run/d24/auth-login >>", "pop3-login-2.4 cli:director <<"})
	// Auth's two connections are mixed there; that of imap-login is the first.
	pop24.auth = slices.DeleteFunc(pop24.auth[8:], func(l string) bool { return strings.Contains(l, "user=u24@") })
	lmtp24 := traced(t, "login-2.4.1-through-director.txt",
		[3]string{"lmtp-2.4 cli:/run/d24/director-userdb >>", "auth-2.4 srv:/run/d24/auth-userdb >>", "lmtp-2.4 cli:/run/d24/director-userdb <<"})
	fields := recorded(t, "login-director-fields.txt")
	userdb := recorded(t, "director-userdb.txt")
	for name, x := range map[string]exchange{
		"login 2.3": login23, "lmtp 2.3": lmtp23, "pop3 2.4": pop24, "lmtp 2.4": lmtp24, "fields": fields, "director-userdb": userdb,
	} {
		t.Run(name, func(t *testing.T) {
			x.login = !strings.Contains(name, "lmtp") && !strings.Contains(name, "userdb")
			replay(t, x, strings.Contains(name, "2.4"))
		})
	}
}

func replay(t *testing.T, x exchange, kickByField bool) {
	if len(x.client) < 2 || len(x.auth) < 2 || len(x.auth) != len(x.want) {
		t.Fatalf("the transcript is not understood: %d, %d, %d lines", len(x.client), len(x.auth), len(x.want))
	}
	s := newScene(t, director.Config{}, "")
	client, auth := relayed(t, s, x.login)
	go client.send(x.client...)
	auth.expect(x.client...)
	go auth.send(x.auth...)
	var got []string
	for range x.want {
		got = append(got, client.line())
	}
	want := slices.Clone(x.want)
	if kickByField && x.login {
		for i, l := range want {
			if a, ok := parseAnswer([]byte(l), "OK"); ok && ours.MatchString(l) {
				want[i] += "\tuser_director_hash=" + strconv.FormatUint(uint64(s.must(t, a.user, "").Key.Hash), 10)
			}
		}
	}
	// The handshake keeps its order, answers may overtake each other.
	for i, l := range want {
		if strings.HasPrefix(l, "OK\t") || strings.HasPrefix(l, "PASS\t") {
			slices.Sort(want[i:])
			slices.Sort(got[i:])
			break
		}
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got  %q\nwant %q", got[i], want[i])
		}
	}
	auth.conn.Close()
	client.eof()
	routed := 0
	for _, l := range x.want {
		if ours.MatchString(l) && x.login {
			routed++
		}
	}
	if n := s.Guests(); n != routed {
		t.Errorf("%d guests, want one for each of %d answers to login processes", n, routed)
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		line   string
		routed bool
		user   string
		login  string
		tag    string
	}{
		{"OK\t1\tuser=a@x\tproxy", true, "a@x", "a@x", ""},
		{"OK\t1\tuser=a@x\tproxy=y\tdestuser=b@x\tdirector_tag=t", true, "b@x", "a@x", "t"},
		{"OK\t1\tuser=a@x\tproxy\thost=10.0.0.1", false, "a@x", "a@x", ""},
		{"OK\t1\tuser=a@x\tproxy\thost=", false, "a@x", "a@x", ""},
		{"OK\t1\tuser=a@x", false, "a@x", "a@x", ""},
		{"OK\t1\tproxy", false, "", "", ""},
		{"OK\t1\tuser=tab\x01there\tproxy", true, "tab\there", "tab\there", ""},
		{"OK\t1\tuser=a@x\tdirector_proxy_maybe", true, "a@x", "a@x", ""},
		{"OK\t1\tuser=a@x\tproxyish\thostip=1.2.3.4", false, "a@x", "a@x", ""},
	} {
		line := strings.ReplaceAll(c.line, "\x01there", "\x01there")
		a, ok := parseAnswer([]byte(line), "OK")
		if !ok || a.routed() != c.routed || a.user != c.user || a.login != c.login || a.tag != c.tag {
			t.Errorf("%q: %+v, %v", c.line, a, ok)
		}
	}
	for _, line := range []string{"", "OK", "OK\t", "FAIL\t1\tuser=a\tproxy", "PASS\t1\tuser=a\tproxy", "OKAY\t1\tuser=a\tproxy"} {
		if a, ok := parseAnswer([]byte(line), "OK"); ok && a.routed() {
			t.Errorf("%q is taken for an answer: %+v", line, a)
		}
	}
}

func TestHostByName(t *testing.T) {
	h := director.Host{Addr: s1, Name: "be1.example.com"}
	if got := string(appendHost([]byte("OK\t1\tuser=a\tproxy\n"), h, 450)); got != "OK\t1\tuser=a\tproxy\tproxy_refresh=450\thost=be1.example.com\thostip=127.0.2.1\n" {
		t.Errorf("got %q", got)
	}
}

// With director_proxy_maybe a user whose backend is this machine stays here.
func TestProxyMaybe(t *testing.T) {
	s := newScene(t, director.Config{}, "")
	client, auth := relayed(t, s, true)
	host := s.must(t, "a@x", "").Host.Addr.String()
	for _, line := range []string{
		"OK\t1\tuser=a@x\tdirector_proxy_maybe\tlip=" + host,
		"OK\t2\tuser=a@x\tdirector_proxy_maybe\tlip=" + host + "\tlport=143\tport=143",
	} {
		auth.send(line)
		client.expect(line)
	}
	for _, line := range []string{
		"OK\t3\tuser=a@x\tproxy\tlip=" + host,
		"OK\t4\tuser=a@x\tdirector_proxy_maybe\tlip=" + host + "\tlport=143\tport=1143",
		"OK\t5\tuser=a@x\tdirector_proxy_maybe\tlip=127.0.2.99",
	} {
		auth.send(line)
		client.expect(line + "\tproxy_refresh=450\thost=" + host)
	}
}

func TestNoHost(t *testing.T) {
	for _, login := range []bool{true, false} {
		s := newScene(t, director.Config{}, "")
		client, auth := relayed(t, s, login)
		kind := map[bool]string{true: "OK", false: "PASS"}[login]
		auth.send(kind+"\t7\tuser=a@x\tproxy\tdirector_tag=nowhere", "FAIL\t8\tuser=a@x\tcode=authz_fail")
		got := []string{client.line(), client.line()}
		slices.Sort(got)
		if got[0] != "FAIL\t7\tcode=temp_fail" || got[1] != "FAIL\t8\tuser=a@x\tcode=authz_fail" {
			t.Errorf("got %q", got)
		}
	}
}

// While a user is moved the others are served, and a login that gives up is forgotten.
func TestCanceledRequest(t *testing.T) {
	s := newScene(t, director.Config{KickDelay: 300 * time.Millisecond}, "")
	s.up.Store(true)
	client, auth := relayed(t, s, true)
	auth.send("OK\t1\tuser=moved@x\tproxy")
	client.line()
	to, done := s.move(t, "moved@x")
	for e, _ := s.entry(s.keyOf("moved@x")); !e.Moving; e, _ = s.entry(s.keyOf("moved@x")) {
		time.Sleep(time.Millisecond)
	}
	auth.send("OK\t2\tuser=moved@x\tproxy", "OK\t3\tuser=moved@x\tproxy", "OK\t4\tuser=other@x\tproxy")
	if got := client.line(); !strings.HasPrefix(got, "OK\t4\tuser=other@x\tproxy\tproxy_refresh=450\thost=") {
		t.Errorf("got %q while another user is moved", got)
	}
	client.send("CANCEL\t2")
	auth.expect("CANCEL\t2")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.levers.hold = nil
	go s.kicks.run(ctx) // until now nobody was kicked, and so the move waited
	client.expect("OK\t3\tuser=moved@x\tproxy\tproxy_refresh=450\thost=" + to.String())
	if err := <-done; err != nil {
		t.Error(err)
	}
	auth.send("NEXT\t1") // what is not known goes through, and the canceled answer does not come before it
	client.expect("NEXT\t1")
	eventually(t, "no answer waits", func() bool { return s.pending.Load() == 0 })
}

func TestLongLines(t *testing.T) {
	long := strings.Repeat("x", maxRelayLine-1)
	s := newScene(t, director.Config{}, "")
	client, auth := relayed(t, s, true)
	go client.send(long) // with its LF just short enough
	auth.expect(long)
	go auth.send(long)
	client.expect(long)
	go client.conn.Write([]byte(long + "x\n"))
	auth.eof()
	client, auth = relayed(t, s, true)
	go auth.conn.Write([]byte(long + "x\n"))
	client.eof()
}

// Auth may be a moment late; and when it goes the client must know.
func TestAuthComesAndGoes(t *testing.T) {
	s := newScene(t, director.Config{}, "")
	path := filepath.Join(t.TempDir(), "auth")
	a, b := net.Pipe()
	ended := make(chan struct{})
	go func() { defer close(ended); desk{s.DropIn, "test", path, "OK", true}.serve(t.Context(), b) }()
	time.Sleep(100 * time.Millisecond)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client, auth := newLineConn(t, a), newLineConn(t, conn)
	auth.send("SPID\t1")
	client.expect("SPID\t1")
	conn.Close()
	client.eof()
	<-ended

	l.Close()
	a, b = net.Pipe()
	begin := time.Now()
	go desk{s.DropIn, "test", path, "OK", true}.serve(t.Context(), b)
	newLineConn(t, a).eof()
	if took := time.Since(begin); took < dialPatience/2 || took > 3*dialPatience {
		t.Errorf("without auth the connection was closed after %v, want %v", took, dialPatience)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add("OK\t1\tuser=a@x\tproxy\tdestuser=b\tdirector_tag=t\tlip=127.0.0.1\tlport=143\tport=143\tpass=pw\n")
	f.Add("OK\t1\tuser=\x01\x01t\tdirector_proxy_maybe\n")
	f.Add("OK\t\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "\n") {
			text, _, _ = strings.Cut(text, "\n")
		}
		_, _ = canceled([]byte(text + "\n"))
		_, _ = minorVersion([]byte(text + "\n"))
		a, ok := parseAnswer([]byte(text), "OK")
		if !ok || !a.routed() {
			return
		}
		out := appendHost([]byte(text+"\n"), director.Host{Addr: s1}, 450)
		out = appendHash(out, director.Key{Hash: 1})
		if !strings.HasPrefix(string(out), text+"\tproxy_refresh=450\thost=127.0.2.1\tuser_director_hash=1\n") {
			t.Errorf("%q became %q", text, out)
		}
		b, ok := parseAnswer(out[:len(out)-1], "OK")
		if !ok || b.routed() || b.user != a.user || b.id != a.id {
			t.Errorf("%q, completed, is read as %+v", text, b)
		}
	})
}
