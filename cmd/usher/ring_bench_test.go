package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/director"
	"usher/director/ring/wire"
)

// Turns and size of the comparison of directors: less than two minutes.
const (
	ringTurns  = 5
	ringUsers  = 500_000
	ringWindow = 100_000 // USER lines on their way at a time; Dovecot drops a neighbour that lags 10 MB behind
	ringStuck  = 30 * time.Second
)

// candidate is a program that may be a director of the ring.
type candidate struct {
	name string
	kind site.Kind
	mode string // of an Usher
	ring *site.Ring
}

// figures of a candidate, one of each per turn.
type figures struct {
	newRate, newCPU         []float64 // updates per second, seconds per million
	refreshRate, refreshCPU []float64
	memory, kernel          []float64 // bytes per user
	join, joinCPU           []float64 // seconds
}

// BenchmarkRing measures one director of Dovecot 2.3 and one Usher side by side, each between two neighbours that
// exist on the wire only: make bench-ring. The neighbours share the machine with it, so CPU is the figure to compare.
func BenchmarkRing(b *testing.B) {
	candidates := []*candidate{
		{name: "Dovecot 2.3", kind: site.Dovecot},
		{name: "Usher, tc", kind: site.Usher, mode: "tc"},
		{name: "Usher, copy", kind: site.Usher, mode: "copy"}, // what the kernel's table of users costs
	}
	results := map[*candidate]*figures{}
	for _, c := range candidates {
		// The other two are addresses to us; as Dovecots that are not started they need nothing.
		o := site.RingOptions{Members: []site.Kind{site.Dovecot, site.Dovecot, site.Dovecot}}
		o.Site.Mode, o.Site.MaxFlows = c.mode, 1<<20
		c.ring = newRing(b, o)
		results[c] = &figures{}
	}
	for range ringTurns {
		for _, i := range rand.Perm(len(candidates)) {
			c := candidates[i]
			if err := errors.Join(c.news(b, results[c]), c.joining(b, results[c])); err != nil {
				b.Fatalf("%s: %v", c.name, err)
			}
		}
	}

	w := table()
	row := func(title, format string, of func(*figures) []float64) {
		fmt.Fprintf(w, "%s\t", title)
		for _, c := range candidates {
			fmt.Fprintf(w, format+"\t", median(of(results[c])))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "%d users, medians of %d turns\t", ringUsers, ringTurns)
	for _, c := range candidates {
		fmt.Fprintf(w, "%s\t", c.name)
	}
	fmt.Fprintln(w)
	row("new users passed on", "%.0f/s", func(f *figures) []float64 { return f.newRate })
	row("  CPU per million", "%.2f s", func(f *figures) []float64 { return f.newCPU })
	row("refreshes passed on", "%.0f/s", func(f *figures) []float64 { return f.refreshRate })
	row("  CPU per million", "%.2f s", func(f *figures) []float64 { return f.refreshCPU })
	row("memory per user (RSS)", "%.0f B", func(f *figures) []float64 { return f.memory })
	row("  in the kernel's map", "%.0f B", func(f *figures) []float64 { return f.kernel })
	row("joining, until handshaked", "%.2f s", func(f *figures) []float64 { return f.join })
	row("  CPU", "%.2f s", func(f *figures) []float64 { return f.joinCPU })
	w.Flush()
}

// turn starts the director anew, knowing nothing, and gives it its right neighbour; it ends it when it is measured.
func (c *candidate) turn(ctx context.Context, measure func(e *ends, pid int) error) error {
	m := c.ring.Members[0]
	if err := m.Become(c.kind); err != nil {
		return err
	}
	e, err := newEnds(c.ring)
	if err != nil {
		return err
	}
	defer e.close()
	if err := m.Start(ctx); err != nil {
		return err
	}
	pid, err := c.pid()
	if err == nil {
		err = errors.Join(measure(e, pid), c.knows(ctx))
	}
	if err != nil { // what do both sides say about it?
		err = fmt.Errorf("%w (%v)\n%s", err, e.failed(), m.Log(10))
	}
	return errors.Join(err, m.Stop())
}

// news: how fast what the left neighbour tells reaches the right one, and what that costs.
func (c *candidate) news(b *testing.B, f *figures) error {
	return c.turn(b.Context(), func(e *ends, pid int) error {
		if err := e.join(b.Context(), c, 0); err != nil {
			return err
		}
		rss, kernel := resident(pid), c.kernelMemory(b)
		for _, pass := range []struct{ rate, cpu *[]float64 }{{&f.newRate, &f.newCPU}, {&f.refreshRate, &f.refreshCPU}} {
			time.Sleep(1100 * time.Millisecond) // the same user is news once a second
			cpu, begin := processCPU(pid), time.Now()
			if err := e.tell(begin.Unix()); err != nil {
				return err
			}
			*pass.rate = append(*pass.rate, ringUsers/time.Since(begin).Seconds())
			*pass.cpu = append(*pass.cpu, (processCPU(pid)-cpu).Seconds()*1e6/ringUsers)
		}
		f.memory = append(f.memory, (resident(pid)-rss)/ringUsers)
		f.kernel = append(f.kernel, (c.kernelMemory(b)-kernel)/ringUsers)
		return nil
	})
}

// joining: the director, which knows nothing, is told all users by its left neighbour in the handshake.
func (c *candidate) joining(b *testing.B, f *figures) error {
	return c.turn(b.Context(), func(e *ends, pid int) error {
		cpu, begin := processCPU(pid), time.Now()
		if err := e.join(b.Context(), c, ringUsers); err != nil {
			return err
		}
		f.joinCPU = append(f.joinCPU, (processCPU(pid) - cpu).Seconds())
		e.mu.Lock()
		defer e.mu.Unlock()
		f.join = append(f.join, e.synced.Sub(begin).Seconds())
		return nil
	})
}

// knows checks that the director has learnt every user.
func (c *candidate) knows(ctx context.Context) error {
	hosts, err := c.ring.Members[0].Admin.Hosts(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, h := range hosts {
		n += h.Users
	}
	if n != ringUsers {
		return fmt.Errorf("it knows %d users, want %d", n, ringUsers)
	}
	return nil
}

// pid finds the director: an Usher's daemon, or the process of that name below the Dovecot master that we started.
func (c *candidate) pid() (int, error) {
	if c.kind == site.Usher {
		return c.ring.Members[0].Daemon.Pid(), nil
	}
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range all {
		stat, _ := os.ReadFile(path) // it may have ended
		if !strings.Contains(string(stat), "(director)") {
			continue
		}
		if parent(parent(filepath.Dir(path))) == fmt.Sprint("/proc/", os.Getpid()) {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, errors.New("no director process below ours")
}

// parent returns the directory in /proc of a process' parent.
func parent(proc string) string {
	stat, _ := os.ReadFile(filepath.Join(proc, "stat"))
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	if len(f) < 2 {
		return ""
	}
	return "/proc/" + f[1]
}

// kernelMemory is what the table of users has in the kernel, which is not in the daemon's memory.
func (c *candidate) kernelMemory(b *testing.B) float64 {
	if c.kind != site.Usher || c.mode == "copy" {
		return 0
	}
	return mapMemory(b, c.ring.Members[0].Daemon.PinPath)["users"]
}

// ends are the neighbours of a director in a ring of three. Of the ring they do just what the director needs of
// it: SYNCs that leave on its right come back on its left, and PINGs are answered.
//
//	left ──► director ──► right ──► (SYNC only) left
type ends struct {
	ring     *site.Ring
	listener net.Listener // of the right one

	users atomic.Int64 // USER lines that came out on the right

	mu     sync.Mutex
	conns  []net.Conn
	left   *end       // nil before join
	taken  bool       // the director has taken the handshake of the left one
	sync   *wire.Sync // the last that came out on the right
	pings  int        // behind SYNCs, not answered yet
	synced time.Time  // when the last of them was answered
	err    error
}

// end is a connection.
type end struct {
	net.Conn
	mu sync.Mutex // writing
}

// newEnds makes the right neighbour, to which the director will connect: it must be there first, since Dovecot
// avoids for a minute whom it could not reach.
func newEnds(r *site.Ring) (*ends, error) {
	m := r.Members[1]
	l, err := m.Node.NS.Listen("tcp", m.Addr.String())
	if err != nil {
		return nil, err
	}
	e := &ends{ring: r, listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go e.serve(c)
		}
	}()
	return e, nil
}

func (e *ends) close() {
	e.listener.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.conns {
		c.Close()
	}
}

// serve is the life of a connection from the director.
func (e *ends) serve(c net.Conn) {
	right := e.open(c)
	e.fail(right.send(&wire.Version{Name: wire.Protocol, Major: wire.Major, Minor: wire.Minor},
		&wire.Me{Addr: e.ring.Members[1].Addr, Time: time.Now().Unix()}))
	e.fail(e.hear(right, func(l wire.Line) error {
		switch l := l.(type) {
		case *wire.User:
			e.users.Add(1)
		case *wire.Done:
			return right.send(l)
		case *wire.Sync:
			e.mu.Lock()
			defer e.mu.Unlock()
			e.sync = l
			return e.around()
		}
		return nil
	}))
}

// around sends the last SYNC to where it came from, but not before the director has become the right neighbour
// of the left one: Dovecot's ends (an assertion) when its SYNC is back before it has two neighbours. mu must be held.
func (e *ends) around() error {
	if e.left == nil || !e.taken || e.sync == nil {
		return nil
	}
	e.pings++ // its answer says that the SYNC was heard
	return e.left.send(e.sync, &wire.Ping{Time: time.Now().Unix()})
}

// join connects the left neighbour, with so many users in its handshake, and returns when the director is synced.
func (e *ends) join(ctx context.Context, c *candidate, users int) error {
	var (
		director = e.ring.Members[0].Addr
		self     = e.ring.Members[2]
		local    = net.TCPAddrFromAddrPort(netip.AddrPortFrom(self.Addr.Addr(), 0))
	)
	conn, err := self.Node.NS.Dial(ctx, "tcp", local, director.String())
	if err != nil {
		return err
	}
	left := e.open(conn)
	e.mu.Lock()
	e.left = left
	e.mu.Unlock()
	go func() {
		e.fail(e.hear(left, func(l wire.Line) error {
			e.mu.Lock()
			defer e.mu.Unlock()
			switch l.(type) {
			case *wire.Done:
				e.taken = true
				return e.around()
			case *wire.Pong:
				e.pings--
				e.synced = time.Now()
			}
			return nil
		}))
	}()
	if err := e.handshake(left, users); err != nil {
		return err
	}
	for end := time.Now().Add(ringStuck); ; time.Sleep(time.Millisecond) {
		e.mu.Lock()
		around := !e.synced.IsZero() && e.pings == 0
		e.mu.Unlock()
		if around {
			ctx, cancel := context.WithTimeout(ctx, ringStuck)
			defer cancel()
			return c.ring.Members[0].Admin.AwaitSync(ctx, 2)
		}
		if err := e.failed(); err != nil {
			return err
		}
		if time.Now().After(end) {
			return errors.New("it is not synced in time")
		}
	}
}

// handshake is what the left neighbour tells at first. Its ring is whole: what it says of hosts holds.
func (e *ends) handshake(left *end, users int) error {
	now := time.Now().Unix()
	lines := []wire.Line{
		&wire.Version{Name: wire.Protocol, Major: wire.Major, Minor: wire.Minor},
		&wire.Me{Addr: e.ring.Members[2].Addr, Time: now},
	}
	for _, m := range e.ring.Members {
		lines = append(lines, &wire.Director{Addr: m.Addr})
	}
	lines = append(lines, &wire.HandStart{Handshaked: true})
	for _, h := range e.ring.Hosts {
		lines = append(lines, &wire.HandHost{HostUpdate: director.HostUpdate{Host: director.Host{Addr: h, Weight: 100}, Up: true}})
	}
	if err := left.send(append(lines, &wire.HandEnd{Handshaked: true})...); err != nil {
		return err
	}
	var u wire.HandUser
	var text []byte
	for i := range users {
		u.UserUpdate = e.user(i, now-300+int64(i)*300/ringUsers) // oldest first
		if text = u.Append(text, peer); len(text) > 60_000 || i == users-1 {
			if err := left.write(text); err != nil {
				return err
			}
			text = text[:0]
		}
	}
	return left.send(&wire.Options{ConsistentHashing: true}, &wire.Done{})
}

// tell says of all users that they were used in this second, and returns when the right neighbour knows it.
func (e *ends) tell(second int64) error {
	first := e.users.Load()
	var u wire.User
	var text []byte
	for i := range ringUsers {
		u.UserUpdate = e.user(i, second)
		if text = u.Append(text, peer); len(text) > 60_000 || i == ringUsers-1 {
			if err := e.left.write(text); err != nil {
				return err
			}
			text = text[:0]
			if err := e.await(first + int64(i) - ringWindow); err != nil {
				return err
			}
		}
	}
	return e.await(first + ringUsers)
}

// await waits until so many USER lines have come out.
func (e *ends) await(n int64) error {
	last, end := int64(0), time.Now().Add(ringStuck)
	for ; ; time.Sleep(200 * time.Microsecond) {
		now := e.users.Load()
		if now >= n {
			return nil
		}
		if now > last {
			last, end = now, time.Now().Add(ringStuck)
		}
		if err := e.failed(); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d of %d users came out, and no more", now, n)
		}
	}
}

// user number i. An odd factor makes different hashes of different numbers; no name has the hash 0.
func (e *ends) user(i int, second int64) director.UserUpdate {
	return director.UserUpdate{Hash: uint32(i+1) * 2654435761, Host: e.ring.Hosts[i%len(e.ring.Hosts)], Refreshed: second}
}

// hear reads a connection until it ends. PINGs are answered, and a QUIT is an error.
func (e *ends) hear(c *end, line func(wire.Line) error) error {
	in := bufio.NewReaderSize(c, 256<<10)
	var p wire.Parser
	for {
		text, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		l, err := p.Parse(text[:len(text)-1])
		if err == nil {
			switch l := l.(type) {
			case *wire.Quit:
				err = errors.New(l.Reason)
			case *wire.Ping:
				err = c.send(&wire.Pong{Time: time.Now().Unix()})
			default:
				err = line(l)
			}
		}
		if err != nil {
			return fmt.Errorf("%q: %w", text, err)
		}
	}
}

func (e *ends) open(c net.Conn) *end {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns = append(e.conns, c)
	return &end{Conn: c}
}

// fail remembers the first error.
func (e *ends) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		e.err = err
	}
}

func (e *ends) failed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// peer is a Dovecot of today, as the neighbours are: Usher says nothing more to them than Dovecot does.
var peer = wire.Peer{Minor: wire.Minor}

func (c *end) send(lines ...wire.Line) error {
	var text []byte
	for _, l := range lines {
		text = l.Append(text, peer)
	}
	return c.write(text)
}

func (c *end) write(text []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.SetWriteDeadline(time.Now().Add(ringStuck))
	_, err := c.Write(text)
	return err
}
