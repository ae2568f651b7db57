// Package unixsocket listens on unix sockets with a mode that they have from their first moment on, and
// replaces dead ones only.
package unixsocket

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

// ErrInUse means that somebody answers on the socket.
var ErrInUse = errors.New("another process answers")

const directoryMode = 0o755

// Listen listens on path with this mode. The directory is made when it is missing; a socket
// that nobody answers on is replaced; anything else in the way is an error: ErrInUse, or one of the
// operating system. Closing the listener removes the socket.
//
// The socket is made in a private directory and moved to its place, so that it never stands
// there with a wider mode, and never without a listener.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
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
	if err := errors.Join(os.Chmod(born, mode), os.Rename(born, path)); err != nil {
		l.Close()
		return nil, err
	}
	return &listener{UnixListener: l, path: path}, nil
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
		return fmt.Errorf("%w on %s", ErrInUse, path)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// For example a full backlog: somebody is there.
	return fmt.Errorf("%w, it seems: %w", ErrInUse, err)
}

type listener struct {
	*net.UnixListener
	path string
	once sync.Once
}

// Close removes the name before it closes the socket: once it is closed, a new daemon may have
// put its own one there.
func (l *listener) Close() error {
	var err error
	l.once.Do(func() { err = errors.Join(os.Remove(l.path), l.UnixListener.Close()) })
	return err
}
