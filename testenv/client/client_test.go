package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"usher/loader/netns"
	"usher/testenv/backend"
	"usher/testenv/content"
	"usher/testenv/lab"
)

// house starts a backend on the loopback interface; it needs no right.
func house(t *testing.T, o backend.Options) *backend.Server {
	t.Helper()
	o.IMAPPort, o.POP3Port = backend.AnyPort, backend.AnyPort
	s, err := backend.Start(nil, netip.MustParseAddr("127.0.0.1"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func config(b *backend.Server, p Protocol, user string) Config {
	c := Config{Server: b.IMAP(), Protocol: p, User: user, Timeout: 5 * time.Second}
	if p == POP3 {
		c.Server = b.POP3()
	}
	return c
}

func dial(t *testing.T, c Config) *Session {
	t.Helper()
	s, err := Dial(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// wait is for records that the server writes in its own time.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("still not: %s", what)
			return
		}
	}
}

var protocols = []Protocol{IMAP, POP3}

func TestLogin(t *testing.T) {
	b := house(t, backend.Options{Name: "stalls", Password: `se"c\ret`})
	for _, p := range protocols {
		for _, m := range Methods {
			for _, pipeline := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/pipeline=%t", p, m, pipeline), func(t *testing.T) {
					c := config(b, p, "anna@example.org")
					c.Method, c.Password, c.Pipeline = m, `se"c\ret`, pipeline
					s := dial(t, c)
					if name, err := s.Who(); err != nil || name != "stalls" {
						t.Errorf("Who: %q, %v", name, err)
					}
					if err := s.Logout(); err != nil {
						t.Error(err)
					}
					// What follows a login that fails would be taken for commands: no client sends it.
					c.Password, c.Pipeline = "guess", false
					if _, err := Dial(t.Context(), c); KindOf(err) != Refused {
						t.Errorf("wrong password: %v", err)
					}
				})
			}
		}
	}
	wait(t, "all sessions have ended", func() bool { return len(b.Live()) == 0 })
	for _, r := range b.Sessions() {
		if r.User != "anna@example.org" || r.Ending != backend.Logout || r.End.Before(r.Login) {
			t.Errorf("record %+v", r)
		}
	}
	if _, _, logins, refused := b.Counts(); logins != 16 || refused != 16 {
		t.Errorf("%d logins, %d refused; want 16 and 16", logins, refused)
	}
}

func TestMaster(t *testing.T) {
	b := house(t, backend.Options{Password: "p", Master: "usher", MasterPassword: "key"})
	for _, c := range []struct {
		user, password string
		ok             bool
	}{{"anna*usher", "key", true}, {"anna*usher", "p", false}, {"anna*other", "key", false}} {
		cfg := config(b, IMAP, c.user)
		cfg.Password = c.password
		s, err := Dial(t.Context(), cfg)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.user, err)
		}
		if err == nil {
			s.Close()
		}
	}
	wait(t, "the session is recorded", func() bool { return len(b.Sessions()) == 1 })
	if r := b.Sessions()[0]; r.User != "anna" || r.Master != "usher" {
		t.Errorf("record %+v", r)
	}
}

func TestCommands(t *testing.T) {
	b := house(t, backend.Options{})
	for _, p := range protocols {
		t.Run(string(p), func(t *testing.T) {
			s := dial(t, config(b, p, "anna"))
			steps := map[string]func() error{
				"noop":        s.Noop,
				"select":      s.Select,
				"fetch":       func() error { return s.Fetch(17) },
				"echo":        func() error { return s.Echo(300_000, 5) },
				"echo 1":      func() error { return s.Echo(1, 5) },
				"source":      func() error { return s.Source(300_000, 6) },
				"source fast": func() error { return s.Source(3_000_000, 0) },
				"idle":        func() error { _, err := s.Idle(time.Millisecond); return err },
			}
			if p == IMAP {
				steps["append"] = func() error { return s.Append(3, 100_000, false) }
				steps["append plus"] = func() error { return s.Append(4, 70, true) }
			} else {
				steps["list"] = s.List
			}
			for name, f := range steps { // in random order, by the map
				if err := f(); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			ops, sent, received := s.Stats()
			if ops < uint64(len(steps)) || sent < 300_000 || received < 3_600_000 {
				t.Errorf("stats: %d ops, %d sent, %d received", ops, sent, received)
			}
		})
	}
}

func TestPOP3Messages(t *testing.T) {
	s := dial(t, config(house(t, backend.Options{}), POP3, "anna"))
	for n := range uint64(100) {
		if err := s.Fetch(n + 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Fetch(101); KindOf(err) != Refused {
		t.Errorf("message 101: %v", err)
	}
}

func TestEndings(t *testing.T) {
	for _, p := range protocols {
		for name, c := range map[string]struct {
			do   func(*Session) error
			want backend.Ending
		}{
			"logout":     {(*Session).Logout, backend.Logout},
			"close":      {(*Session).Close, backend.FIN},
			"abort":      {(*Session).Abort, backend.RST},
			"half-close": {func(s *Session) error { return s.HalfClose(400_000, 7) }, backend.FIN},
			"finish":     {func(s *Session) error { return s.Finish(100_000, 8) }, backend.FIN},
		} {
			t.Run(string(p)+"/"+name, func(t *testing.T) {
				b := house(t, backend.Options{})
				s := dial(t, config(b, p, "anna"))
				if live := b.Live(); live["anna"] != 1 {
					t.Errorf("live: %v", live)
				}
				if err := c.do(s); err != nil {
					t.Fatal(err)
				}
				wait(t, "the session has ended", func() bool { return len(b.Live()) == 0 })
				r := b.Sessions()[0]
				if r.Ending != c.want {
					t.Errorf("ended by %s, want %s", r.Ending, c.want)
				}
				if name == "finish" {
					h := sha256.New()
					io.CopyN(h, content.Stream(8), 100_000)
					if r.Tail != 100_000 || r.TailSHA256 != hex.EncodeToString(h.Sum(nil)) {
						t.Errorf("tail %d %s", r.Tail, r.TailSHA256)
					}
				}
			})
		}
	}
}

func TestKinds(t *testing.T) {
	b := house(t, backend.Options{})
	try := func(bv backend.Behaviour, p Protocol) error {
		b.Behave(bv)
		c := config(b, p, "anna")
		c.Timeout = 100 * time.Millisecond
		s, err := Dial(t.Context(), c)
		if err == nil {
			defer s.Close()
			err = s.simple("X-RESET", nil)
		}
		return err
	}
	for _, p := range protocols {
		for _, c := range []struct {
			name string
			b    backend.Behaviour
			want Kind
		}{
			{"reset", backend.Behaviour{}, Reset},
			{"hang", backend.Behaviour{Hang: true}, Timeout},
			{"bye", backend.Behaviour{Bye: true}, Bye},
			{"slow", backend.Behaviour{Delay: time.Second}, Timeout},
			{"reject", backend.Behaviour{Refuse: func(string) backend.Refusal { return backend.Reject }}, Refused},
			{"unavailable", backend.Behaviour{Refuse: func(string) backend.Refusal { return backend.Unavailable }}, Refused},
			{"hang up", backend.Behaviour{Refuse: func(string) backend.Refusal { return backend.HangUp }}, EOF},
		} {
			if err := try(c.b, p); KindOf(err) != c.want {
				t.Errorf("%s %s: %v; want %s", p, c.name, err, c.want)
			}
		}
	}
	c := config(b, IMAP, "anna")
	b.Close()
	if _, err := Dial(t.Context(), c); KindOf(err) != Connect {
		t.Errorf("nobody there: %v", err)
	}
}

// A client that finds nothing wrong proves nothing unless it finds what is wrong.
func TestCorruptionIsFound(t *testing.T) {
	b := house(t, backend.Options{})
	liar := func(f func(*Session) error) error {
		s := dial(t, config(b, IMAP, "anna"))
		return f(s)
	}
	err := liar(func(s *Session) error { // the stream of another seed
		return s.do("source", func() error { s.send("X-SOURCE 100000 1"); return s.sourced(100000, 2) })
	})
	if KindOf(err) != Corrupt || !strings.Contains(err.Error(), "differs at byte 0: want") {
		t.Errorf("wrong stream: %v", err)
	}
	err = liar(func(s *Session) error { // one byte too many
		return s.do("source", func() error { s.send("X-SOURCE 1001 2"); return s.sourced(1000, 2) })
	})
	if k := KindOf(err); k != Corrupt && k != Nonsense {
		t.Errorf("a byte too many: %v", err)
	}
	err = liar(func(s *Session) error { // one missing
		s.cfg.Timeout = 50 * time.Millisecond
		return s.do("source", func() error { s.send("X-SOURCE 10 2"); return s.sourced(1000, 2) })
	})
	if k := KindOf(err); k != Corrupt {
		t.Errorf("bytes missing: %v", err)
	}
}

func TestNotify(t *testing.T) {
	b := house(t, backend.Options{})
	s := dial(t, config(b, IMAP, "anna"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait(t, "the session idles", func() bool { return b.Notify("anna", "7 EXISTS") == 1 })
	}()
	lines, err := s.Idle(300 * time.Millisecond)
	<-done
	if err != nil || len(lines) != 1 || lines[0] != "* 7 EXISTS" {
		t.Errorf("%q, %v", lines, err)
	}
	if err := s.Noop(); err != nil {
		t.Error(err)
	}
	if n := b.Notify("anna", "8 EXISTS"); n != 0 {
		t.Errorf("told %d sessions that do not idle", n)
	}
}

func TestTrafficEndsWithContext(t *testing.T) {
	b := house(t, backend.Options{})
	for _, p := range protocols {
		ctx, cancel := context.WithCancel(t.Context())
		s := dial(t, config(b, p, "anna"))
		go func() {
			wait(t, "fifty operations", func() bool { ops, _, _ := s.Stats(); return ops >= 50 })
			cancel()
		}()
		if err := s.Hammer(ctx, 1); err != nil {
			t.Error(err)
		}
		if err := s.Logout(); err != nil {
			t.Error(err)
		}
	}
}

func TestLoad(t *testing.T) {
	b := house(t, backend.Options{})
	sessions, report := DialAll(t.Context(), 8, 4, func(i int) Config { return config(b, IMAP, fmt.Sprint("u", i)) })
	if err := report.Err(); err != nil || len(sessions) != 8 {
		t.Fatal(len(sessions), err)
	}
	defer CloseAll(sessions)
	const d = 200 * time.Millisecond
	for _, size := range [][2]int{{1, 1}, {64, 1024}} {
		r, err := PingPong(t.Context(), sessions, size[0], size[1], d)
		if err != nil || r.Sessions != 8 || r.Requests < 8 || r.P50 <= 0 || r.P99 < r.P50 || r.Max < r.P99 || r.Elapsed < d {
			t.Errorf("ping-pong %v: %+v, %v", size, r, err)
		}
		if r.Bytes != r.Requests*uint64(size[0]+size[1]) {
			t.Errorf("%d rounds, %d bytes", r.Requests, r.Bytes)
		}
	}
	for _, dir := range []Direction{Download, Upload} {
		if r, err := Bulk(t.Context(), sessions, dir, d); err != nil || r.Bytes == 0 || r.Elapsed < d {
			t.Errorf("bulk %v: %+v, %v", dir, r, err)
		}
	}
	if err := Each(sessions, func(_ int, s *Session) error { return s.Logout() }).Err(); err != nil {
		t.Errorf("sessions after the load: %v", err)
	}
}

func TestHistogram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for d := time.Duration(1); d < time.Hour; d += d/7 + 1 {
			i := bucket(d)
			if upper(i) < d || float64(upper(i)-d) > float64(d)/16 || i > 0 && upper(i-1) >= d {
				t.Fatalf("%v is in bucket %d, which ends at %v", d, i, upper(i))
			}
		}
		var h histogram
		for i := range 1000 {
			h.add(time.Duration(i+1) * time.Microsecond)
		}
		for q, want := range map[float64]time.Duration{0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
			if got := h.quantile(q); got < want || got > want*17/16 {
				t.Errorf("quantile %v = %v, want about %v", q, got, want)
			}
		}
	})
}

func TestReport(t *testing.T) {
	r := Each(make([]*Session, 30), func(i int, _ *Session) error {
		if i < 20 {
			return &Error{Reset, "anna", "NOOP", io.EOF}
		}
		return nil
	})
	if err := r.Err(); err == nil || !strings.HasPrefix(err.Error(), "10 good, 20 reset\n") || strings.Count(err.Error(), "\n") != 10 {
		t.Errorf("%v", err)
	}
}

// 500 sessions at once through real interfaces, without a proxy, in each address family.
func TestFiveHundred(t *testing.T) {
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
	l, err := lab.New(lab.Options{Clients: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.SetForwarding(true); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nets() {
		var backends []*backend.Server
		for i, a := range n.Backends {
			b, err := backend.Start(l.Backend, a, backend.Options{Name: fmt.Sprint("b", i)})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			backends = append(backends, b)
		}
		before := runtime.NumGoroutine()
		const count = 500
		sessions, report := DialAll(t.Context(), count, 50, func(i int) Config {
			c := config(backends[i%len(backends)], protocols[i/5%2], fmt.Sprint("user", i))
			c.NS, c.Local, c.Method, c.Pipeline = l.Client, n.Clients[i%2], Methods[i%4], i%3 == 0
			c.Timeout = 20 * time.Second
			return c
		})
		if err := report.Err(); err != nil {
			t.Fatal(err)
		}
		live := 0
		for _, b := range backends {
			for user, n := range b.Live() {
				if live += n; n != 1 {
					t.Errorf("%s has %d sessions", user, n)
				}
			}
		}
		if live != count {
			t.Errorf("%d sessions live, want %d", live, count)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := Each(sessions, func(i int, s *Session) error { return s.Traffic(ctx, uint64(i)) }).Err(); err != nil {
			t.Error(err)
		}
		cancel()
		endings := []func(*Session) error{
			(*Session).Logout, (*Session).Abort,
			func(s *Session) error { return s.HalfClose(50_000, 3) }, func(s *Session) error { return s.Finish(50_000, 4) },
		}
		if err := Each(sessions, func(i int, s *Session) error { return endings[i%4](s) }).Err(); err != nil {
			t.Error(err)
		}
		want := map[backend.Ending]int{backend.Logout: count / 4, backend.RST: count / 4, backend.FIN: count / 2}
		got := map[backend.Ending]int{}
		var mu sync.Mutex
		for _, b := range backends {
			wait(t, "sessions have ended", func() bool { return len(b.Live()) == 0 })
			mu.Lock()
			for _, r := range b.Sessions() {
				got[r.Ending]++
			}
			mu.Unlock()
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("endings %v, want %v", got, want)
		}
		wait(t, "goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
	}
}
