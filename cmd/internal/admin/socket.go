package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// ErrRunning means that another daemon answers on the socket.
var ErrRunning = errors.New("another usher is running")

const (
	socketMode    = 0o600
	directoryMode = 0o755
)

// listenUnix listens on path with mode 0600. The directory is made when it is missing; a socket
// that nobody answers on is replaced; anything else in the way is an error.
//
// The socket is made in a private directory and moved to its place, so that it never stands
// there with a wider mode, and never without a listener.
func listenUnix(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, directoryMode); err != nil {
		return nil, err
	}
	if err := checkStale(path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(dir, ".u")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	born := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: born, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it would unlink the name it was born with
	if err := errors.Join(os.Chmod(born, socketMode), os.Rename(born, path)); err != nil {
		l.Close()
		return nil, err
	}
	return &unixListener{UnixListener: l, path: path}, nil
}

// checkStale returns nil when path is free or a dead socket, which may be replaced.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way: it is not a socket", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%w and answers on %s", ErrRunning, path)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// For example a full backlog: somebody is there.
	return fmt.Errorf("%w, it seems: %w", ErrRunning, err)
}

type unixListener struct {
	*net.UnixListener
	path string
	once sync.Once
}

// Close removes the name before it closes the socket: once it is closed, a new daemon may have
// put its own one there.
func (l *unixListener) Close() error {
	var err error
	l.once.Do(func() { err = errors.Join(os.Remove(l.path), l.UnixListener.Close()) })
	return err
}

// limitListener accepts no more than cap(slots) connections at a time; more wait in the backlog.
type limitListener struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

func limit(l net.Listener, n int) net.Listener {
	return &limitListener{Listener: l, slots: make(chan struct{}, n), done: make(chan struct{})}
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: conn, slots: l.slots}, nil
}

func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { <-c.slots })
	return c.Conn.Close()
}
