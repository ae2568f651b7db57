package probe

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"usher/director"
	"usher/loader"
	"usher/loader/netns"
	"usher/steer/expire"
	"usher/steer/handover"
	"usher/steer/upstream"
)

const (
	// before is exchanged in user space, through what will be handed over.
	before = 16 << 10
	// through is exchanged by the path under test, in each direction: enough for
	// splice(2) to take over from copying, and for windows to move.
	through = 2 << 20
	// patience bounds every wait of a trial; a hand-over takes milliseconds.
	patience = 3 * time.Second
	quiet    = 5 * time.Millisecond // as steer.quiet
)

// tryKernel hands a session over at a site of its own, one per IP version.
func tryKernel(ctx context.Context, m Mode) Mode {
	s, err := newSite(m.Mode == ModeXDP)
	if err != nil {
		m.State, m.Reason = Untried, "build the private site: "+err.Error()
		return m
	}
	defer s.close()
	return s.try(ctx, m)
}

func (s *site) try(ctx context.Context, m Mode) Mode {
	m.State = Fails
	pins, file, err := privatePins()
	if err != nil {
		m.State, m.Reason = Untried, err.Error()
		return m
	}
	defer file.Close()
	cfg := kernelConfig(m, pins)
	cfg.Log = zerolog.Nop()
	var k *loader.Kernel
	err = s.director.Do(func() (err error) {
		k, err = loader.Open(cfg)
		return err
	})
	if err != nil {
		m.Reason = err.Error()
		return m
	}
	defer k.Close() // leaves the pins, which end with their file system
	m.opened = true
	// The loader goes on with clsact by itself where there are no tcx links; what it pinned tells.
	if m.Attach == AttachTCX && !pinned(pins, "egress") {
		m.opened, m.absent = false, true
		m.Reason = "Linux " + release() + " has no tcx links, they came with 6.6"
		return m
	}
	for _, f := range s.families {
		t, err := s.handOver(ctx, k, f)
		if err != nil {
			m.Reason = f.name + ": " + err.Error()
			return m
		}
		m.Trials = append(m.Trials, t)
	}
	if s.noIPv6 != nil {
		m.Note = "IPv4 only: " + s.noIPv6.Error()
	}
	m.State = Works
	return m
}

// pinned reports whether the loader has pinned a link of this kind.
func pinned(pins, kind string) bool {
	found, _ := filepath.Glob(filepath.Join(pins, "layout-*", kind+"-*"))
	return len(found) > 0
}

// owner is the user of the trials; its entry is needed for packets to pass.
var owner = handover.Owner{Hash: 1, Epoch: 1, User: "probe", Protocol: "imap"}

// handOver is the trial of the kernel modes.
func (s *site) handOver(ctx context.Context, k *loader.Kernel, f family) (Trial, error) {
	t := Trial{Family: f.name}
	key := director.Key{Hash: owner.Hash}
	if err := k.PutEntry(key, f.backend, owner.Epoch, true); err != nil {
		return t, err
	}
	x, err := s.open(ctx, f, k, handover.Relayer{Kernel: k, Quiet: func() time.Duration { return quiet }})
	if err != nil {
		return t, err
	}
	defer x.close()
	// Sequence numbers, windows and timestamps of the two legs must differ by more than their start.
	if _, err := exchange(x.client, x.backend, before); err != nil {
		return t, fmt.Errorf("before the hand-over: %w", err)
	}
	if err := x.awaitForwarded(ctx); err != nil {
		return t, err
	}
	was, err := x.counted(k)
	if err != nil {
		return t, err
	}
	if t.Bytes, err = exchange(x.client, x.backend, through); err != nil {
		return t, fmt.Errorf("through the kernel: %w", err)
	}
	// The director's sockets are closed by now, so nothing else can have carried the bytes. But what the
	// counters miss, accounting and expiry would miss, too.
	is, err := x.counted(k)
	if err != nil {
		return t, err
	}
	for i, side := range []string{"client", "backend"} {
		if is[i].Packets == was[i].Packets || is[i].Bytes < was[i].Bytes+through {
			return t, fmt.Errorf("the bytes arrived, but the %s's flow counted %d packets with %d bytes of %d",
				side, is[i].Packets-was[i].Packets, is[i].Bytes-was[i].Bytes, through)
		}
		t.Packets += is[i].Packets - was[i].Packets
	}
	return t, s.kick(k, key, f, x)
}

// kick ends the session as the daemon does, and waits until both peers know.
func (s *site) kick(k *loader.Kernel, key director.Key, f family, x *session) error {
	// The write that stops a user's flows; then what tells the peers at once.
	if err := k.PutEntry(key, f.backend, owner.Epoch+1, false); err != nil {
		return err
	}
	ended := false
	err := s.director.Do(func() error { // a reset is sent by a new socket
		ended = expire.New(k, nobody{}, time.Hour, zerolog.Nop()).End(x.pair.ClientTuple, "probe")
		return nil
	})
	if err != nil {
		return err
	}
	if !ended {
		return errors.New("kick: the session was not in the kernel any more")
	}
	for _, c := range []net.Conn{x.client, x.backend} {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, unix.ECONNRESET) {
			return fmt.Errorf("kick: a peer read %d bytes and %v, not a reset", n, err)
		}
	}
	return nil
}

// nobody is a table of sessions that need no tidying up.
type nobody struct{}

func (nobody) Known(handover.Tuple, time.Time) bool                    { return true }
func (nobody) Ended(handover.Tuple, time.Time, uint64, uint64, string) {}

// tryUserSpace relays a session over the loopback interface.
func tryUserSpace(ctx context.Context, m Mode) Mode {
	m.State = Fails
	if m.Mode == ModeSplice {
		if err := trySplice(); err != nil {
			m.Reason = "splice(2): " + err.Error()
			return m
		}
	}
	local := family{name: "ipv4", backend: netip.MustParseAddr("127.0.0.1"), service: netip.MustParseAddr("127.0.0.1")}
	t := Trial{Family: local.name}
	err := func() error {
		x, err := (&site{}).open(ctx, local, nil, handover.Relayer{Copy: m.Mode == ModeCopy})
		if err != nil {
			return err
		}
		defer x.close()
		if t.Bytes, err = exchange(x.client, x.backend, through); err != nil {
			return err
		}
		return x.finish()
	}()
	if err != nil {
		m.Reason = err.Error()
		return m
	}
	m.State, m.Trials = Works, []Trial{t}
	return m
}

// trySplice: a container may forbid the call, which net.TCPConn would pass on as an error of the session.
func trySplice() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	if _, err := unix.Write(pair[0], []byte{0}); err != nil {
		return err
	}
	_, err = unix.Splice(pair[1], nil, pipe[1], nil, 1, unix.SPLICE_F_NONBLOCK)
	return err
}

// session is one connection through a relay, with both of its outer ends.
type session struct {
	client, backend net.Conn
	pair            *handover.Pair
	outcome         chan handover.Outcome
	end             context.CancelFunc
}

func (x *session) close() {
	x.end()
	x.client.Close()
	x.backend.Close()
}

// open connects a client to the site's director, and the director to the backend, and starts the relay between them:
// the daemon's way without a dialogue. k is nil in user space.
func (s *site) open(ctx context.Context, f family, k *loader.Kernel, r handover.Relayer) (_ *session, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	front, err := listen(s.director, f.service)
	if err != nil {
		return nil, err
	}
	defer front.Close()
	back, err := listen(s.backend, f.backend)
	if err != nil {
		return nil, err
	}
	defer back.Close()

	x := &session{outcome: make(chan handover.Outcome, 1)}
	var inside, out net.Conn
	defer func() {
		if err == nil {
			return
		}
		for _, c := range []net.Conn{x.client, x.backend, inside, out} {
			if c != nil {
				c.Close()
			}
		}
	}()
	if x.client, err = s.client.Dial(ctx, "tcp", nil, front.Addr().String()); err != nil {
		return nil, err
	}
	if inside, err = front.Accept(); err != nil {
		return nil, err
	}
	legs := handover.Tuple{Remote: addrPort(inside.RemoteAddr()), Local: addrPort(inside.LocalAddr())}
	dialer := upstream.Dialer{Control: s.director.Control}
	if k != nil {
		dialer.Kernel = k
		// From its first byte on, or the hand-over cannot tell whether all that passed was received.
		if err := k.Observe(legs, 0); err != nil {
			return nil, fmt.Errorf("observe the client: %w", err)
		}
	}
	strip, mss, err := handover.Options(inside.(*net.TCPConn))
	if err != nil {
		return nil, err
	}
	to, err := dialer.Dial(ctx, addrPort(back.Addr()), strip, mss)
	if err != nil {
		return nil, err
	}
	out = to
	if x.backend, err = back.Accept(); err != nil {
		return nil, err
	}
	x.pair = &handover.Pair{
		Client: inside.(*net.TCPConn), Backend: to.TCPConn, ClientTuple: legs, BackendTuple: to.Tuple,
		Owner: owner, Stays: to.NotObserved,
	}
	x.pair.Owner.Since = time.Now()
	running, end := context.WithCancel(context.Background())
	x.end = end
	go func() { x.outcome <- r.Run(running, x.pair) }()
	return x, nil
}

// listen announces on a free port; a connection that does not come ends the wait.
func listen(ns *netns.NS, a netip.Addr) (*net.TCPListener, error) {
	ln, err := ns.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		return nil, err
	}
	tcp := ln.(*net.TCPListener)
	return tcp, tcp.SetDeadline(time.Now().Add(patience))
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// awaitForwarded waits until the kernel carries the session, or will not.
func (x *session) awaitForwarded(ctx context.Context) error {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case o := <-x.outcome:
			if o.Forwarded {
				return nil
			}
			return fmt.Errorf("the session ended in user space: %w", errors.Join(o.Err, o.Cause))
		case <-look.C:
			// Run does not return while a session lives in user space.
			switch why := x.pair.Reason(); why {
			case handover.Waiting, handover.Spliced:
				continue
			default:
				x.end() // so that the outcome, and with it the cause, comes
				select {
				case o := <-x.outcome:
					if o.Cause != nil {
						return fmt.Errorf("no hand-over: %s: %w", why, o.Cause)
					}
				case <-limit.C:
				}
				return fmt.Errorf("no hand-over: %s", why)
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return fmt.Errorf("no hand-over in %v: %s", patience, x.pair.Reason())
		}
	}
}

// counted returns what the programs counted in both flows, the client's first.
func (x *session) counted(k *loader.Kernel) (both [2]handover.Flow, err error) {
	for i, t := range []handover.Tuple{x.pair.ClientTuple, x.pair.BackendTuple} {
		if both[i], err = k.Flow(t); err != nil {
			return both, fmt.Errorf("flow from %v: %w", t.Remote, err)
		}
	}
	return both, nil
}

// finish half-closes both ways, in turn, and expects the relay's orderly end.
func (x *session) finish() error {
	for _, way := range [][2]net.Conn{{x.client, x.backend}, {x.backend, x.client}} {
		if err := way[0].(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		if n, err := way[1].Read(make([]byte, 1)); n != 0 || err != io.EOF {
			return fmt.Errorf("after a half-close: %d bytes and %v, not the end", n, err)
		}
	}
	select {
	case o := <-x.outcome:
		return o.Err
	case <-time.After(patience):
		return errors.New("the relay did not end with the session")
	}
}

// exchange sends n random bytes each way at the same time and compares what arrives. It returns how
// many bytes were compared, of both directions.
func exchange(a, b net.Conn, n int) (uint64, error) {
	until := time.Now().Add(patience)
	for _, c := range []net.Conn{a, b} {
		if err := c.SetDeadline(until); err != nil {
			return 0, err
		}
	}
	sent, arrived := make(chan error, 2), make(chan error, 2)
	way := func(from, to net.Conn, name string) {
		data := make([]byte, n)
		rand.Read(data)
		go func() {
			_, err := from.Write(data)
			sent <- err
		}()
		go func() {
			sum := sha256.New()
			got, err := io.CopyN(sum, to, int64(n))
			switch {
			case err != nil:
				err = fmt.Errorf("%s: %d of %d bytes arrived: %w", name, got, n, err)
			case [sha256.Size]byte(sum.Sum(nil)) != sha256.Sum256(data):
				err = fmt.Errorf("%s: %d bytes arrived, but other ones", name, n)
			}
			arrived <- err
		}()
	}
	way(a, b, "to the backend")
	way(b, a, "to the client")
	var err error
	// What arrived tells more than what could not be sent, and one direction is enough.
	for _, c := range []chan error{arrived, arrived, sent, sent} {
		if e := <-c; err == nil {
			err = e
		}
	}
	return 2 * uint64(n), err
}
