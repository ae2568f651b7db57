package dovecot

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"usher/director"
	"usher/steer/route"
)

// newDirector has the hosts of the transcripts: 127.0.2.1, .2 and .4, and .3 for users with the tag "fast".
func newDirector(c director.Config) *director.Director {
	d := director.New(c)
	for _, h := range []director.Host{
		{Addr: netip.MustParseAddr("127.0.2.1"), Weight: 100}, {Addr: netip.MustParseAddr("127.0.2.2"), Weight: 100},
		{Addr: netip.MustParseAddr("127.0.2.3"), Weight: 100, Tag: "fast"}, {Addr: netip.MustParseAddr("127.0.2.4"), Weight: 100},
	} {
		d.Step(time.Now(), director.HostPut{Host: h})
	}
	return d
}

// scene is a DropIn before a director that is alone.
type scene struct {
	*DropIn
	router *route.Router
	levers *levers
}

// newScene makes one. Its router runs until the test ends.
func newScene(t *testing.T, c director.Config, base string) *scene {
	s := &scene{levers: &levers{}}
	if c.UserExpire == 0 {
		c.UserExpire = 15 * time.Minute
	}
	s.DropIn = NewDropIn(DropInConfig{BaseDir: base, UserExpire: c.UserExpire, Log: zerolog.Nop()}, lateRouter{&s.router})
	s.DropIn.connect = func(context.Context) (lever, error) { return s.levers.open() }
	s.router = route.New(route.Config{
		Director: newDirector(c), Store: route.Forgetful{}, Stop: func(director.Stop) {}, Guests: s.Stop, StopAlt: s.StopAlt, Log: zerolog.Nop(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.router.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

type lateRouter struct{ r **route.Router }

func (l lateRouter) Route(ctx context.Context, user, tag string) (director.Assigned, error) {
	return (*l.r).Route(ctx, user, tag)
}
func (l lateRouter) WaitSynced(ctx context.Context) error { return (*l.r).WaitSynced(ctx) }
func (l lateRouter) Tell(ev director.Event)               { (*l.r).Tell(ev) }
func (l lateRouter) View(f func(*director.Director))      { (*l.r).View(f) }

// must returns a user's host.
func (s *scene) must(t *testing.T, user, tag string) director.Assigned {
	t.Helper()
	a, err := s.router.Route(t.Context(), user, tag)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// entry returns a user's entry.
func (s *scene) entry(key director.Key) (e director.EntryInfo, ok bool) {
	s.router.View(func(d *director.Director) { e, ok = d.Entry(key) })
	return e, ok
}

// move begins a move to another host than the present one.
func (s *scene) move(t *testing.T, user string) (to netip.Addr, done chan error) {
	t.Helper()
	to = netip.MustParseAddr("127.0.2.1")
	if s.must(t, user, "").Host.Addr == to {
		to = netip.MustParseAddr("127.0.2.2")
	}
	done = make(chan error, 1)
	go func() {
		done <- s.router.Begin(func(id uint64) director.Event { return director.Move{ID: id, User: user, To: to} }).Wait(context.Background())
	}()
	return to, done
}

// levers are in place of Dovecot: they note what is kicked.
type levers struct {
	mu    sync.Mutex
	calls []string
	hold  chan struct{} // kicks wait for it, unless nil
	fail  error
	there [][2]string // sessions: login name and host
}

func (l *levers) list(_ context.Context, yield func(string, netip.Addr)) error {
	for _, s := range l.there {
		yield(s[0], netip.MustParseAddr(s[1]))
	}
	return nil
}

func (l *levers) open() (lever, error) { return l, nil }
func (l *levers) close()               {}

func (l *levers) note(ctx context.Context, call string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, call)
	if hold := l.hold; hold != nil {
		l.mu.Unlock()
		select {
		case <-hold:
		case <-ctx.Done():
		}
		l.mu.Lock()
	}
	return l.fail
}

func (l *levers) kickUser(ctx context.Context, login string) error { return l.note(ctx, "user "+login) }

func (l *levers) kickHash(ctx context.Context, hash uint32, except netip.Addr) error {
	call := "hash " + director.Key{Hash: hash}.String()
	if except.IsValid() {
		call += " except " + except.String()
	}
	return l.note(ctx, call)
}

func (l *levers) kickField(ctx context.Context, field, value string) error {
	return l.note(ctx, field+"="+value)
}

func (l *levers) kicked() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.calls...)
}

// lineConn is one end of a connection with lines.
type lineConn struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func newLineConn(t *testing.T, conn net.Conn) *lineConn {
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &lineConn{t, conn, bufio.NewReader(conn)}
}

func (x *lineConn) send(lines ...string) {
	x.t.Helper()
	if _, err := io.WriteString(x.conn, strings.Join(lines, "\n")+"\n"); err != nil {
		x.t.Error(err)
	}
}

func (x *lineConn) line() string {
	x.t.Helper()
	s, err := x.in.ReadString('\n')
	if err != nil {
		x.t.Fatalf("got %q, %v", s, err)
	}
	return strings.TrimSuffix(s, "\n")
}

func (x *lineConn) expect(lines ...string) {
	x.t.Helper()
	for _, want := range lines {
		if got := x.line(); got != want {
			x.t.Fatalf("got  %q\nwant %q", got, want)
		}
	}
}

func (x *lineConn) eof() {
	x.t.Helper()
	if s, err := x.in.ReadString('\n'); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		x.t.Fatalf("got %q, %v; want the end of the connection", s, err)
	}
}

// relayed runs one of the desks before a socket on which the test plays auth.
func relayed(t *testing.T, s *scene, login bool) (client, auth *lineConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "auth")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, b := net.Pipe()
	d := desk{s.DropIn, "test", path, "PASS", login}
	if login {
		d.kind = "OK"
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); d.serve(ctx, b) }()
	t.Cleanup(func() { cancel(); a.Close(); <-ended })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return newLineConn(t, a), newLineConn(t, conn)
}

// transcript reads a file of testdata with its <TAB>s.
func transcript(t *testing.T, name string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(strings.ReplaceAll(string(b), "<TAB>", "\t"), "\n"), "\n")
}
