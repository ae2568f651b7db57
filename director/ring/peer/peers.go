package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"usher/director/ring"

	"github.com/rs/zerolog"
)

const (
	readBuffer  = 64 << 10
	writeBuffer = 256 << 10 // of the kernel; what waits beyond it is seen as queued

	// A peer that we do not want any more still gets what was sent before, if it is quick.
	closeTimeout = time.Second
	// From accept or connect to the end of a TLS handshake.
	handshakeTimeout = 10 * time.Second
	maxHandshakes    = 64

	refusalInterval = 10 * time.Second // of log lines about strangers
)

// Config says where and how.
type Config struct {
	Listen netip.AddrPort // where other directors connect to
	Self   netip.Addr     // the source address of our connections: others know us by it

	TLS   *tls.Config  // from LoadTLS; nil: everything is plain
	Plain []netip.Addr // with TLS: those who do not speak it

	Log zerolog.Logger
}

// Peers are the connections to other directors.
type Peers struct {
	config   Config
	listener *net.TCPListener
	hear     func(ring.Event)
	allowed  func(netip.Addr) bool
	nextConn func() ring.Conn

	stop    context.CancelFunc
	running context.Context
	work    sync.WaitGroup

	mu         sync.Mutex
	links      map[ring.Conn]*link
	handshakes int // incoming ones that have not begun to be connections
	refused    time.Time
	refusals   int // since the last log line
}

// New listens; Run accepts. The functions belong to the Ring's owner and are called from many goroutines:
// hear with everything that happens, allowed with addresses that connect, nextConn for new connections. They
// may call Do.
func New(config Config, hear func(ring.Event), allowed func(netip.Addr) bool, nextConn func() ring.Conn) (*Peers, error) {
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(config.Listen))
	if err != nil {
		return nil, fmt.Errorf("ring: %w", err)
	}
	p := &Peers{
		config: config, listener: listener, hear: hear, allowed: allowed, nextConn: nextConn,
		links: make(map[ring.Conn]*link),
	}
	p.running, p.stop = context.WithCancel(context.Background())
	return p, nil
}

// Addr is where we listen.
func (p *Peers) Addr() netip.AddrPort { return p.listener.Addr().(*net.TCPAddr).AddrPort() }

// Run accepts connections until ctx is done. Then it closes all, and returns when they are: what a Close in Do
// has left to be written is written before. The error is that of a listener that broke.
func (p *Peers) Run(ctx context.Context) error {
	listening, end := context.WithCancel(ctx)
	p.work.Go(func() {
		<-listening.Done()
		p.listener.Close()
	})
	var err error
	for {
		conn, e := p.listener.AcceptTCP()
		if e == nil {
			p.accept(conn)
			continue
		}
		if ne := net.Error(nil); errors.As(e, &ne) && ne.Timeout() {
			continue
		}
		if ctx.Err() == nil {
			err = fmt.Errorf("ring: accept: %w", e)
		}
		break
	}
	end()
	p.stop() // attempts, handshakes
	p.mu.Lock()
	for _, l := range p.links {
		l.close()
	}
	p.mu.Unlock()
	p.work.Wait()
	return err
}

// Do carries out what the Ring wants. It never blocks, and calls neither of the functions given to New.
func (p *Peers) Do(actions []ring.Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case ring.Connect:
			p.connect(a)
		case ring.Send:
			if l := p.link(a.Conn); l != nil {
				l.send(a.Data)
			}
		case ring.Close:
			if l := p.link(a.Conn); l != nil {
				p.forget(l)
				l.close()
			}
		case ring.Log:
			p.log(a)
		}
	}
}

// log writes what the Ring has to say to people.
func (p *Peers) log(a ring.Log) {
	level := [...]zerolog.Level{ring.Info: zerolog.InfoLevel, ring.Warning: zerolog.WarnLevel, ring.Error: zerolog.ErrorLevel}[a.Level]
	e := p.config.Log.WithLevel(level)
	if a.Remote.IsValid() {
		e = e.Stringer("director", a.Remote)
	}
	e.Msg(a.Text)
}

func (p *Peers) link(id ring.Conn) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.links[id]
}

func (p *Peers) add(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.links[l.id] = l
	if p.running.Err() != nil {
		l.close() // too late to be closed with the others
	}
}

func (p *Peers) forget(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l.id)
}

// closed is for a connection that ends without the Ring's doing.
func (p *Peers) closed(l *link, err error) {
	p.forget(l)
	l.close()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	p.hear(ring.Closed{Conn: l.id, Err: err})
}

// connect tries in a goroutine of its own, which becomes the reader.
func (p *Peers) connect(a ring.Connect) {
	l := newLink(p.running, a.Conn)
	p.add(l)
	p.work.Go(func() {
		conn, err := p.dial(l, a.Remote)
		if err != nil {
			p.closed(l, err)
			return
		}
		l.begin(conn)
		p.hear(ring.Connected{Conn: l.id})
		p.serve(l)
	})
}

// dial ends early when the Ring closes the connection, or the daemon ends.
func (p *Peers) dial(l *link, remote netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(l.open, handshakeTimeout)
	defer cancel()
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.config.Self, 0))}
	conn, err := dialer.DialContext(ctx, "tcp", remote.String())
	if err != nil {
		return nil, err
	}
	tune(conn)
	if !p.secure(remote.Addr()) {
		return conn, nil
	}
	secured := tls.Client(conn, forPeer(p.config.TLS, remote.Addr()))
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return secured, nil
}

// secure: connections with this address are TLS.
func (p *Peers) secure(addr netip.Addr) bool {
	return p.config.TLS != nil && !slices.Contains(p.config.Plain, addr.Unmap())
}

// tune sets what all connections have. (They have no delay by default.)
func tune(conn net.Conn) {
	tcp := conn.(*net.TCPConn)
	_ = tcp.SetWriteBuffer(writeBuffer)
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 6})
}

// accept checks who it is before anything is read or written.
func (p *Peers) accept(conn *net.TCPConn) {
	remote := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	if !p.allowed(remote.Addr().Unmap()) {
		conn.Close()
		p.refuse(remote, "it is not a director of the ring")
		return
	}
	tune(conn)
	p.mu.Lock()
	full := p.handshakes >= maxHandshakes
	if !full {
		p.handshakes++
	}
	p.mu.Unlock()
	if full {
		conn.Close()
		p.refuse(remote, "there are too many handshakes already")
		return
	}
	p.work.Go(func() {
		secured, err := p.handshake(conn, remote.Addr())
		p.mu.Lock()
		p.handshakes--
		p.mu.Unlock()
		if err != nil {
			conn.Close()
			p.refuse(remote, err.Error())
			return
		}
		l := newLink(p.running, p.nextConn())
		l.begin(secured)
		p.add(l)
		p.hear(ring.Accepted{Conn: l.id, Remote: remote})
		p.serve(l)
	})
}

// handshake finds out whether an accepted connection is TLS, which begins with a byte that no line of the
// protocol begins with, and whether it may be what it is.
func (p *Peers) handshake(conn *net.TCPConn, remote netip.Addr) (net.Conn, error) {
	if p.config.TLS == nil {
		return conn, nil // plain; whether it may be is the Ring's business alone
	}
	ctx, cancel := context.WithTimeout(p.running, handshakeTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	// Whoever connects speaks first, in both cases.
	reader := bufio.NewReaderSize(conn, 16)
	first, err := reader.Peek(1)
	if err != nil {
		return nil, err
	}
	read := &ahead{Conn: conn, reader: reader}
	if first[0] != tlsHandshake {
		if p.secure(remote) {
			return nil, errors.New("it does not speak TLS, and is not listed as plain")
		}
		return read, nil
	}
	secured := tls.Server(read, forPeer(p.config.TLS, remote))
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return secured, nil
}

// refuse logs that somebody was not let in, but not each time: it may be many.
func (p *Peers) refuse(remote netip.AddrPort, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.refused) >= refusalInterval {
		p.config.Log.Warn().Stringer("remote", remote).Int("unlogged", p.refusals).Msg("ring connection refused: " + why)
		p.refused, p.refusals = now, 0
		return
	}
	p.refusals++
}

// serve reads until the end; the writer ends with it.
func (p *Peers) serve(l *link) {
	p.work.Go(func() { l.write(func(n int) { p.hear(ring.Written{Conn: l.id, Bytes: n}) }) })
	buffer := make([]byte, readBuffer)
	for {
		n, err := l.conn.Read(buffer)
		if n > 0 {
			p.hear(ring.Received{Conn: l.id, Data: buffer[:n]})
		}
		if err != nil {
			p.closed(l, l.why(err))
			return
		}
	}
}
