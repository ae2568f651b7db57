package dovecot

import (
	"net"
	"os"
	"path/filepath"
	"sync"

	"usher/steer/unixsocket"
)

// The sockets in base_dir: ours, and those of auth behind them.
const (
	loginSocket  = "login/director"
	notifyFIFO   = "login/proxy-notify"
	userdbSocket = "director-userdb"
	authLogin    = "auth-login"
	authUserdb   = "auth-userdb"
)

// Modes: login processes run as a user without rights, in a directory that is closed to all others. What asks
// auth about users is root.
const (
	loginMode  = 0o666
	userdbMode = 0o600
)

// place is our sockets in base_dir.
type place struct {
	base          string
	login, userdb net.Listener
	fifo          *os.File
	files         [2]os.FileInfo // of the sockets, as they were made
	once          sync.Once
}

func (p *place) open() (err error) {
	if p.fifo, err = openFIFO(filepath.Join(p.base, notifyFIFO)); err != nil {
		return err
	}
	if p.userdb, err = unixsocket.Listen(filepath.Join(p.base, userdbSocket), userdbMode); err != nil {
		return err
	}
	// The last: once it is there the login processes are let in.
	if p.login, err = unixsocket.Listen(filepath.Join(p.base, loginSocket), loginMode); err != nil {
		return err
	}
	for i, name := range []string{loginSocket, userdbSocket} {
		if p.files[i], err = os.Lstat(filepath.Join(p.base, name)); err != nil {
			return err
		}
	}
	return nil
}

// there reports whether the sockets are still ours.
func (p *place) there() bool {
	for i, name := range []string{loginSocket, userdbSocket} {
		info, err := os.Lstat(filepath.Join(p.base, name))
		if err != nil || !os.SameFile(info, p.files[i]) {
			return false
		}
	}
	return true
}

// close leaves the FIFO: it is in nobody's way, and processes may have it open.
func (p *place) close() {
	p.once.Do(func() {
		if p.login != nil {
			p.login.Close()
		}
		if p.userdb != nil {
			p.userdb.Close()
		}
		if p.fifo != nil {
			p.fifo.Close()
		}
	})
}
