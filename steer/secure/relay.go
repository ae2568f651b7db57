package secure

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"usher/steer/handover"
)

// bufferSize is what one TLS record carries.
const bufferSize = 16 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// end is one side of a relayed session.
type end struct {
	tcp  *net.TCPConn
	raw  syscall.RawConn
	tls  *tls.Conn // nil: not encrypted
	wire *wire     // below tls
	lent *[]byte   // what tls reads into
}

// endOf takes a *net.TCPConn or a *Conn.
func endOf(c net.Conn) (*end, error) {
	switch c := c.(type) {
	case *Conn:
		return &end{tcp: c.wire.TCPConn, raw: c.wire.raw, tls: c.Conn, wire: c.wire}, nil
	case *net.TCPConn:
		raw, err := c.SyscallConn()
		return &end{tcp: c, raw: raw}, err
	}
	return nil, fmt.Errorf("relay: %T is neither TCP nor TLS", c)
}

// pump moves one direction.
type pump struct {
	src, dst *end
	count    *atomic.Uint64
	done     chan<- error
}

// Relay moves the bytes of a session, and what was read ahead on it, between its two connections until both directions have
// ended. Each connection is a *net.TCPConn or a *Conn. It closes both in any case; when ctx ends or one direction fails,
// by a reset, so that nobody takes it for an end. It is nil after an orderly end.
func Relay(ctx context.Context, p *handover.Pair, client, backend net.Conn) error {
	defer p.Client.Close()
	defer p.Backend.Close()
	c, err := endOf(client)
	if err != nil {
		return err
	}
	b, err := endOf(backend)
	if err != nil {
		return err
	}
	cut := func() {
		for _, e := range []*end{c, b} {
			_ = e.tcp.SetLinger(0)
			e.tcp.Close()
		}
	}
	defer context.AfterFunc(ctx, cut)()
	keepalive(c.tcp)
	keepalive(b.tcp)
	toBackend, toClient := p.ClientReadAhead, p.BackendReadAhead
	p.ClientReadAhead, p.BackendReadAhead = nil, nil
	done := make(chan error, 2)
	for _, m := range []struct {
		pump
		ahead []byte
	}{
		{pump{c, b, &p.ToBackend, done}, toBackend},
		{pump{b, c, &p.ToClient, done}, toClient},
	} {
		go m.run(m.ahead)
	}
	err = <-done
	if err != nil {
		cut()
	}
	if second := <-done; err == nil && second != nil {
		cut()
		return second
	}
	return err
}

// keepalive finds dead peers as for sessions that are not encrypted (handover).
func keepalive(c *net.TCPConn) {
	_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 5 * time.Minute, Interval: time.Minute, Count: 5})
}

func (m pump) run(ahead []byte) {
	err := m.write(ahead)
	for err == nil {
		err = m.step()
	}
	if err == io.EOF {
		err = m.dst.closeWrite(m.src.clean())
	}
	m.done <- err
}

// step waits for bytes, without a buffer, and moves them.
func (m pump) step() error {
	var buf *[]byte
	var n int
	var err error
	waited := m.src.raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[]byte)
		if n, err = m.src.read(int(fd), *buf); n > 0 || err != errWait {
			return true
		}
		buffers.Put(buf)
		buf = nil
		return false
	})
	if buf != nil {
		defer buffers.Put(buf)
	}
	if waited != nil {
		return waited
	}
	if failed := m.write((*buf)[:n]); failed != nil {
		return failed
	}
	if err == errWait {
		return nil
	}
	return err
}

func (m pump) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	n, err := m.dst.write(b)
	m.count.Add(uint64(n))
	return err
}

// read reads what is there; nothing is errWait. Bytes may come together with an error.
func (e *end) read(fd int, p []byte) (int, error) {
	if e.tls == nil {
		return readNow(fd, p)
	}
	if e.lent == nil {
		e.lent = lend(e.tls)
	}
	e.wire.fd = fd
	n, err := e.tls.Read(p)
	e.wire.fd = -1
	if err != nil && errors.Is(err, errWait) {
		err = errWait
		if takeBack(e.tls, e.lent) {
			e.lent = nil
		}
	}
	return n, err
}

func (e *end) write(p []byte) (int, error) {
	if e.tls != nil {
		return e.tls.Write(p)
	}
	return e.tcp.Write(p)
}

// clean reports, after io.EOF, whether the peer has said that this is the end. Only TLS can tell.
func (e *end) clean() bool { return e.wire == nil || !e.wire.fin }

// closeWrite ends our direction: with close_notify when the end is a clean one, and with a FIN.
func (e *end) closeWrite(clean bool) error {
	if e.tls != nil && clean {
		if err := e.tls.CloseWrite(); err != nil {
			return gone(err)
		}
	}
	return gone(e.tcp.CloseWrite())
}

// The other side may have closed or reset already: then there is nothing to half-close.
func gone(err error) error {
	if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.EPIPE) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
