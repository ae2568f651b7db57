package secure

import (
	"crypto/tls"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conn is a TCP connection with TLS. Until Relay takes it, it is used like any net.Conn.
type Conn struct {
	*tls.Conn
	wire *wire
}

// Server does the handshake with a client, within the connection's deadline. With an error the connection is only good for
// closing.
func Server(tcp *net.TCPConn, cfg *tls.Config) (*Conn, error) {
	c, err := newConn(tcp)
	if err != nil {
		return nil, err
	}
	c.Conn = tls.Server(c.wire, cfg)
	if err := c.Handshake(); err != nil {
		return nil, &HandshakeError{"", err}
	}
	return c, nil
}

func newConn(tcp *net.TCPConn) (*Conn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Conn{wire: &wire{TCPConn: tcp, raw: raw, fd: -1}}, nil
}

// wire is what TLS reads from and writes to.
type wire struct {
	*net.TCPConn
	raw syscall.RawConn
	fd  int  // not -1: read at once or not at all (see end.read)
	fin bool // the stream has ended, without TLS having a say in it
}

func (w *wire) Read(p []byte) (n int, err error) {
	if w.fd < 0 {
		n, err = w.TCPConn.Read(p)
	} else {
		n, err = readNow(w.fd, p)
	}
	if err == io.EOF {
		w.fin = true
	}
	return n, err
}

// errWait: nothing can be read now. It is a temporary net.Error, which a tls.Conn survives in the middle of a record.
var errWait net.Error = wait{}

type wait struct{}

func (wait) Error() string   { return "nothing to read" }
func (wait) Timeout() bool   { return false }
func (wait) Temporary() bool { return true }

func readNow(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, errWait
		case err != nil:
			return 0, &net.OpError{Op: "read", Net: "tcp", Err: err}
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}
