package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// world is some hosts and directors inside a synctest bubble. Every director checks all hosts.
type world struct {
	t         *testing.T
	group     *Group
	start     time.Time
	directors []*node

	mu    sync.Mutex
	hosts map[netip.Addr]*fake
}

// fake is a host.
type fake struct {
	dead   bool
	hangs  bool
	checks []time.Time // beginnings
}

// node is a director.
type node struct {
	*Checker
	world *world
	self  netip.AddrPort
	stop  context.CancelFunc
	log   bytes.Buffer

	mu      sync.Mutex
	cut     map[netip.Addr]bool // hosts that it cannot reach
	uplink  bool
	local   bool // every dial fails by its own fault
	quiet   bool // the others do not hear it
	hosts   []Host
	decided []string // "10.2.0.1 down"
	flushed []string // "10.2.0.1 at 10"
	flush   error    // answer of Flush
}

// newWorld makes n directors; prepare, if not nil, may change the group.
func newWorld(t *testing.T, directors, hosts int, prepare func(*Group)) *world {
	w := &world{t: t, start: time.Now(), hosts: map[netip.Addr]*fake{}}
	w.group = &Group{
		Interval: 5 * time.Second, Timeout: 3 * time.Second,
		Rules:     Rules{Rise: 2, Fall: 3, FlapLimit: 3, FlapWindow: 10 * time.Minute},
		Probe:     Probe{Check: Greeting, Services: []Service{{Protocol: "imap", Port: 143}}},
		DrainRate: 10,
	}
	if prepare != nil {
		prepare(w.group)
	}
	for i := range hosts {
		w.hosts[address(i+1)] = &fake{}
	}
	for i := range directors {
		n := &node{world: w, self: director(i + 1), cut: map[netip.Addr]bool{}, uplink: true}
		for j := range hosts {
			n.hosts = append(n.hosts, Host{Addr: address(j + 1), Group: w.group, Weight: 100, Up: true, Users: 100})
		}
		n.Checker = New(Config{
			Interval: w.group.Interval, Self: n.self, Hosts: n.all, Network: Network{Dial: n.dial}, Say: n.say, Decide: n.decide, Flush: n.flushing,
			Log: zerolog.New(zerolog.SyncWriter(&n.log)),
		})
		w.directors = append(w.directors, n)
	}
	for _, n := range w.directors {
		n.run()
	}
	return w
}

func (n *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.Run(ctx); err != nil {
			n.world.t.Error(err)
		}
	}()
	n.stop = func() { cancel(); <-done }
}

// end stops everything, so that the bubble can end, and returns.
func (w *world) end() {
	for _, n := range w.directors {
		n.stop()
	}
	synctest.Wait()
}

// wait lets time pass.
func (w *world) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// host changes a host.
func (w *world) host(n int, change func(*fake)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w.hosts[address(n)])
}

func (w *world) kill(hosts ...int) {
	for _, n := range hosts {
		w.host(n, func(f *fake) { f.dead = true })
	}
}

func (w *world) revive(hosts ...int) {
	for _, n := range hosts {
		w.host(n, func(f *fake) { f.dead, f.hangs = false, false })
	}
}

func (w *world) passed() time.Duration { return time.Since(w.start).Round(time.Second) }

func (n *node) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	reached, local := n.uplink && !n.cut[to.Addr()], n.local
	n.mu.Unlock()
	w := n.world
	w.mu.Lock()
	host := w.hosts[to.Addr()]
	host.checks = append(host.checks, time.Now())
	dead, hangs := host.dead, host.hangs
	w.mu.Unlock()
	switch {
	case local:
		return nil, os.NewSyscallError("socket", syscall.EMFILE)
	case !reached:
		<-ctx.Done()
		return nil, ctx.Err()
	case dead:
		return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	}
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		if hangs {
			_, _ = io.Copy(io.Discard, there)
			return
		}
		_, _ = io.WriteString(there, "* OK ready\r\n")
		_, _ = io.ReadFull(there, make([]byte, len("x LOGOUT\r\n")))
	}()
	return here, nil
}

// say travels to all other directors.
func (n *node) say(host netip.Addr, up bool) {
	n.mu.Lock()
	quiet := n.quiet
	n.mu.Unlock()
	for _, other := range n.world.directors {
		if other != n && !quiet {
			other.Hear(n.self, host, up)
		}
	}
}

func (n *node) all() []Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.hosts)
}

// change changes a host as this director has it.
func (n *node) change(host int, f func(*Host)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(&n.hosts[host-1])
}

func (n *node) decide(d Decision) {
	n.mu.Lock()
	defer n.mu.Unlock()
	verdict := "down"
	if d.Up {
		verdict = "up"
	}
	n.decided = append(n.decided, fmt.Sprintf("%v %s", d.Host, verdict))
	for i := range n.hosts {
		if n.hosts[i].Addr == d.Host {
			n.hosts[i].Up, n.hosts[i].Marked = d.Up, !d.Up
		}
	}
}

func (n *node) flushing(ctx context.Context, host netip.Addr, rate float64) error {
	n.mu.Lock()
	n.flushed = append(n.flushed, fmt.Sprintf("%v at %v", host, rate))
	err := n.flush
	n.mu.Unlock()
	select {
	case <-time.After(20 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	return err
}

// expect compares what a director has decided since the last call.
func (n *node) expect(want ...string) {
	n.world.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(n.decided, want) {
		n.world.t.Errorf("after %v, director %v decided %q, want %q\n%s", n.world.passed(), n.self, n.decided, want, &n.log)
	}
	n.decided = nil
}

// expectFlushed is the same for drains.
func (n *node) expectFlushed(want ...string) {
	n.world.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(n.flushed, want) {
		n.world.t.Errorf("after %v, director %v drained %q, want %q\n%s", n.world.passed(), n.self, n.flushed, want, &n.log)
	}
	n.flushed = nil
}

// expectLog wants one line of the log with all words. The director has to be stopped.
func (n *node) expectLog(words ...string) {
	n.world.t.Helper()
	for line := range strings.Lines(n.log.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return
		}
	}
	n.world.t.Errorf("no line has all of %q:\n%s", words, &n.log)
}

var errMoves = errors.New("3 users were not moved")
