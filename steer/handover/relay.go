package handover

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	bufferSize = 32 << 10
	// longTransfer: a pump that has filled so many buffers in a row goes on by
	// splice(2), in pieces. Measured: copying wins for small messages, splice(2) for bulk.
	longTransfer = 16
	splicePiece  = 1 << 20
	// maxUndone: how often a hand-over may be undone before the session stays here.
	maxUndone = 5
	// longestPause bounds the time between two looks at a connection that is silent, but
	// whose peer does not take what we sent: it may be gone, or asleep for hours.
	longestPause = time.Second
	// parkTime bounds the wait for both pumps to stop: one that is stuck in a write
	// must not keep the other direction waiting.
	parkTime = 20 * time.Millisecond
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// Pair is a logged-in session: two connections and what was read ahead on them.
type Pair struct {
	Client, Backend           *net.TCPConn
	ClientTuple, BackendTuple Tuple
	// ReadAhead are bytes that were read behind the login and belong to the other side.
	ClientReadAhead, BackendReadAhead []byte
	Owner                             Owner
	Stays                             Reason // not Spliced: why it cannot be handed over, known beforehand
	// ToBackend and ToClient count payload bytes relayed so far; readable at any time.
	ToBackend, ToClient atomic.Uint64
	// Why the session is not in the kernel; readable at any time.
	reason atomic.Value
}

// Reason returns why the session is (still) in user space.
func (p *Pair) Reason() Reason {
	r, _ := p.reason.Load().(Reason)
	return r
}

// Stay notes the reason of a session that is relayed elsewhere, not by Run.
func (p *Pair) Stay(r Reason) { p.reason.Store(r) }

// Relayer runs sessions. Its fields are set once, before the first Run.
type Relayer struct {
	Kernel Kernel               // nil: everything stays in user space
	Quiet  func() time.Duration // silence needed before a hand-over
	Copy   bool                 // never use splice(2)
	Undone func()               // called for each hand-over that was undone; may be nil
}

// Outcome tells how a session left Run.
type Outcome struct {
	Forwarded bool  // the kernel carries it; both sockets are closed
	Err       error // in user space: what ended it; nil for an orderly end
	Cause     error // what stands behind the reason KernelFailed
}

// relay is one Run.
type relay struct {
	pair            *Pair
	kernel          Kernel
	copyOnly        bool
	client, backend options
	pumps           [2]*pump
	gate            gate
	cause           error // what stands behind KernelFailed
	undone          int   // hand-overs
}

// Run moves the session's bytes until both directions have ended or the kernel
// took over. It closes both connections in any case, and forgets their flows unless
// they are forwarded. Cancelling ctx ends the session.
func (r *Relayer) Run(ctx context.Context, p *Pair) Outcome {
	defer p.Client.Close()
	defer p.Backend.Close()
	x := &relay{pair: p, kernel: r.Kernel, copyOnly: r.Copy}
	x.pumps[0] = newPump(p.Client, p.Backend, p.ClientReadAhead, &p.ToBackend, x)
	x.pumps[1] = newPump(p.Backend, p.Client, p.BackendReadAhead, &p.ToClient, x)
	p.ClientReadAhead, p.BackendReadAhead = nil, nil

	reason := x.eligible()
	p.reason.Store(reason)
	stop := context.AfterFunc(ctx, x.cut)
	defer stop()
	if reason == Waiting {
		reason = x.verdict(x.first(r.Quiet()), r)
	}
	if reason != Spliced {
		for _, m := range x.pumps {
			go m.run()
		}
	}
	if reason == Waiting {
		reason = x.handOver(r)
	}
	p.reason.Store(reason)
	if reason == Spliced {
		return Outcome{Forwarded: true}
	}
	if x.kernel != nil {
		// Before the sockets are closed: a new connection may have the same tuple then.
		x.kernel.Forget(p.ClientTuple)
		x.kernel.Forget(p.BackendTuple)
	}
	keepalive(p.Client)
	keepalive(p.Backend)
	return Outcome{Err: x.wait(), Cause: x.cause}
}

// Sessions in user space find dead peers as Dovecot's proxy does; while a
// hand-over is possible, keepalive stays off (see attempt).
func keepalive(c *net.TCPConn) {
	_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 5 * time.Minute, Interval: time.Minute, Count: 5})
}

// eligible checks what cannot change during a session.
func (x *relay) eligible() Reason {
	p := x.pair
	if p.Stays != Spliced {
		return p.Stays
	}
	if x.kernel == nil {
		return ModeOff
	}
	if p.ClientTuple.Remote.Addr().Is4() != p.BackendTuple.Remote.Addr().Is4() {
		return Family
	}
	for _, leg := range []struct {
		conn *net.TCPConn
		to   *options
	}{{p.Client, &x.client}, {p.Backend, &x.backend}} {
		err := control(leg.conn, func(fd int) error {
			ti, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil {
				*leg.to = optionsOf(fd, ti)
			}
			return err
		})
		if err != nil {
			return KernelFailed
		}
	}
	if m := mismatch(x.client, x.backend); m != Spliced {
		return m
	}
	return Waiting
}

// patience is how long first waits after the first silence: a client may take 40 ms to
// acknowledge the reply to its login, and before that nothing can be handed over.
var patience = [...]time.Duration{0, 15 * time.Millisecond, 25 * time.Millisecond}

// first tries the quiet moment that follows most logins, before any pump runs: a
// client that has just logged in thinks for a while. The error is that of attempt.
func (x *relay) first(quiet time.Duration) error {
	toBackend, toClient := x.pumps[0], x.pumps[1]
	if len(toBackend.ahead) > 0 {
		return errBusy // it has said more already
	}
	ahead := toClient.ahead
	toClient.ahead = nil
	if toClient.write(ahead) != nil {
		return errBusy // the pumps find the connection broken
	}
	err := errBusy
	for i := 0; i < len(patience) && err == errBusy; i++ {
		if !silent(x.pair.Client, max(quiet, patience[i])) || unread(x.pair.Backend) {
			return errBusy
		}
		err = x.try()
	}
	return err
}

// silent waits, and returns whether nothing came meanwhile.
func silent(c *net.TCPConn, d time.Duration) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	_ = c.SetReadDeadline(time.Now().Add(d))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	looked := false
	err = raw.Read(func(fd uintptr) bool {
		if looked {
			return true
		}
		looked = true
		n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		return err != nil || n > 0
	})
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// unread reports whether bytes wait to be read.
func unread(c *net.TCPConn) bool {
	waiting := false
	err := control(c, func(fd int) error {
		n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		waiting = n > 0
		return err
	})
	return err != nil || waiting
}

// verdict says what the outcome of an attempt means for the session, and counts.
func (x *relay) verdict(err error, r *Relayer) Reason {
	var final *refusal
	switch {
	case err == nil:
		return Spliced
	case errors.As(err, &final):
		x.cause = final.cause
		return final.reason
	case err == errRetry:
		if r.Undone != nil {
			r.Undone()
		}
		if x.undone++; x.undone == maxUndone {
			return Undone
		}
	}
	return Waiting
}

// handOver waits for quiet moments and tries. It returns Spliced, or why not.
func (x *relay) handOver(r *Relayer) Reason {
	var pause time.Duration // before the next look at busy connections
	timer := time.NewTimer(r.Quiet())
	defer timer.Stop()
	for {
		select {
		case <-x.pumps[0].done:
			return HalfClosed
		case <-x.pumps[1].done:
			return HalfClosed
		case <-timer.C:
		}
		quiet := r.Quiet()
		if idle := x.idle(); idle < quiet {
			pause = 0
			timer.Reset(max(quiet-idle, time.Millisecond))
			continue
		}
		err := errBusy
		if x.park() {
			err = x.try()
		}
		x.unpark(err == nil)
		if reason := x.verdict(err, r); reason != Waiting {
			return reason
		}
		if err == errRetry {
			timer.Reset(max(quiet, time.Millisecond) << (2 * x.undone))
			continue
		}
		pause = max(min(2*pause, longestPause), quiet, time.Millisecond)
		timer.Reset(pause)
	}
}

func (x *relay) try() error {
	return control(x.pair.Client, func(c int) error {
		return control(x.pair.Backend, func(b int) error { return x.attempt(c, b) })
	})
}

// idle returns for how long no byte has moved.
func (x *relay) idle() time.Duration {
	last := max(x.pumps[0].last.Load(), x.pumps[1].last.Load())
	return time.Duration(monotonic() - last)
}

// gate stops both pumps between two reads.
type gate struct {
	mu        sync.Mutex
	release   chan struct{} // nil: nobody is asked to stop
	stopped   int
	all       chan struct{} // closed when both have stopped
	forwarded bool          // the last word
}

// park stops both pumps. When it returns false one of them had something to do;
// unpark must be called either way.
func (x *relay) park() bool {
	x.gate.mu.Lock()
	x.gate.release, x.gate.all, x.gate.stopped = make(chan struct{}), make(chan struct{}), 0
	all := x.gate.all
	x.gate.mu.Unlock()
	for _, m := range x.pumps {
		if m.writing.Load() {
			return false
		}
	}
	for _, m := range x.pumps {
		_ = m.src.SetReadDeadline(time.Unix(1, 0))
	}
	limit := time.NewTimer(parkTime)
	defer limit.Stop()
	select {
	case <-all:
		return true
	case <-x.pumps[0].done:
	case <-x.pumps[1].done:
	case <-limit.C:
	}
	return false
}

// unpark lets the pumps go on, or end when the kernel took over.
func (x *relay) unpark(forwarded bool) {
	if !forwarded {
		for _, m := range x.pumps {
			_ = m.src.SetReadDeadline(time.Time{})
		}
	}
	x.gate.mu.Lock()
	x.gate.forwarded = forwarded
	close(x.gate.release)
	x.gate.release = nil
	x.gate.mu.Unlock()
}

// stop is where a pump whose read was interrupted waits; it returns whether to go on.
func (g *gate) stop() bool {
	g.mu.Lock()
	release := g.release
	if release == nil { // the interruption came too late
		defer g.mu.Unlock()
		return !g.forwarded
	}
	if g.stopped++; g.stopped == 2 {
		close(g.all)
	}
	g.mu.Unlock()
	<-release
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.forwarded
}

// wait returns when both directions have ended. A direction that failed ends the
// session; one that ended orderly leaves the other one running.
func (x *relay) wait() error {
	var first error
	for range x.pumps {
		var m *pump
		select {
		case <-x.pumps[0].done:
			m = x.pumps[0]
		case <-x.pumps[1].done:
			m = x.pumps[1]
		}
		m.done = nil // a closed channel would be chosen again
		if m.err != nil && first == nil {
			first = m.err
			x.cut()
		}
	}
	return first
}

// cut resets both connections rather than closing them, so that nobody takes a cut
// for an end.
func (x *relay) cut() {
	for _, c := range []*net.TCPConn{x.pair.Client, x.pair.Backend} {
		_ = c.SetLinger(0)
		c.Close()
	}
}

// pump moves one direction.
type pump struct {
	src, dst *net.TCPConn
	ahead    []byte
	count    *atomic.Uint64
	relay    *relay

	last    atomic.Int64 // monotonic ns of the last byte
	writing atomic.Bool

	done chan struct{} // closed at the end; err is valid then
	err  error
}

func newPump(src, dst *net.TCPConn, ahead []byte, n *atomic.Uint64, x *relay) *pump {
	m := &pump{src: src, dst: dst, ahead: ahead, count: n, relay: x,
		done: make(chan struct{})}
	m.last.Store(monotonic())
	return m
}

func (m *pump) run() {
	done := m.done // wait() takes it out of m
	defer close(done)
	if err := m.write(m.ahead); err != nil {
		m.err = err
		return
	}
	m.ahead = nil
	raw, err := m.src.SyscallConn()
	if err != nil {
		m.err = err
		return
	}
	full := 0
	for {
		n, err := m.step(raw)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !m.relay.gate.stop() {
				return
			}
			continue
		case err == io.EOF:
			m.err = ignoreNotConnected(m.dst.CloseWrite())
			return
		case err != nil:
			m.err = err
			return
		}
		if n < bufferSize || m.relay.copyOnly {
			full = 0
			continue
		}
		if full++; full < longTransfer {
			continue
		}
		for full > 0 {
			n, err := m.splice(raw)
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				m.err = err
				return
			}
			if err != nil || n < bufferSize {
				full = 0
			}
		}
	}
}

// step reads once and writes it all. No buffer is held while it waits for bytes:
// most sessions are idle most of the time.
func (m *pump) step(raw syscall.RawConn) (n int, err error) {
	var buf *[]byte
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[]byte)
		for {
			n, readErr = unix.Read(int(fd), *buf)
			if readErr != unix.EINTR {
				break
			}
		}
		if readErr == unix.EAGAIN {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if buf != nil {
		defer buffers.Put(buf)
	}
	switch {
	case err != nil:
		return 0, err
	case readErr != nil:
		return 0, os.NewSyscallError("read", readErr)
	case n == 0:
		return 0, io.EOF
	}
	return n, m.write((*buf)[:n])
}

func (m *pump) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	m.writing.Store(true)
	n, err := m.dst.Write(b)
	m.count.Add(uint64(n))
	m.last.Store(monotonic())
	m.writing.Store(false)
	return err
}

// splice moves what has arrived, up to splicePiece bytes, inside the kernel, by
// net.TCPConn's use of splice(2). It never waits for more: what has moved is counted
// when it is told, also when the sender makes a pause.
func (m *pump) splice(raw syscall.RawConn) (n int64, err error) {
	waiting := 0
	if err := raw.Control(func(fd uintptr) { waiting, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); err != nil {
		return 0, err
	}
	if err != nil || waiting < bufferSize {
		return 0, os.NewSyscallError("SIOCINQ", err)
	}
	m.writing.Store(true)
	n, err = m.dst.ReadFrom(&io.LimitedReader{R: m.src, N: int64(min(waiting, splicePiece))})
	m.count.Add(uint64(n))
	m.last.Store(monotonic())
	m.writing.Store(false)
	return n, err
}

// The other side may have closed or reset already: then there is nothing to half-close.
func ignoreNotConnected(err error) error {
	if errors.Is(err, unix.ENOTCONN) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

var start = time.Now()

func monotonic() int64 { return int64(time.Since(start)) }
