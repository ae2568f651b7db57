package auth

import (
	"context"
	"errors"
	"net/netip"

	"usher/steer/prelogin"
	"usher/steer/upstream"
)

// Request is one attempt and where it came from.
type Request struct {
	Protocol      string // "imap" or "pop3"
	Login         prelogin.Login
	Client, Local netip.AddrPort
}

// Answer is a login that may go on.
type Answer struct {
	User     string               // whom the director routes, and whom status, kick and move know
	Verified bool                 // false: the backend is the one who verifies
	Tag      string               // director tag; empty: the untagged hosts
	Host     netip.Addr           // valid: this backend, without asking the director
	Port     uint16               // backend port; 0: the listener's
	Upstream upstream.Credentials // what the backend is told
}

// Driver is a way to authenticate. It may block as long as the context lives; many goroutines use it at once.
type Driver interface {
	// Authenticate returns an error with ErrCredentials, ErrDisabled or ErrTemporary in its chain when the login may not
	// go on.
	Authenticate(ctx context.Context, r Request) (Answer, error)
}

// How a login fails.
var (
	ErrCredentials = errors.New("wrong user or password")
	ErrDisabled    = errors.New("user is disabled")
	ErrTemporary   = errors.New("temporary authentication failure")
)

// Kind is what a driver's error means to a client. Only a password that was really wrong is called so.
func Kind(err error) prelogin.Kind {
	switch {
	case errors.Is(err, ErrCredentials):
		return prelogin.AuthFailed
	case errors.Is(err, ErrDisabled):
		return prelogin.PermFail
	default:
		return prelogin.TempFail
	}
}

// Master is the user by whose password the proxy logs in for everybody; a zero Master is none.
type Master struct {
	User, Password string
	Separator      string // auth_master_user_separator
}
