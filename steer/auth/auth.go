package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"time"

	"usher/steer/prelogin"
	"usher/steer/upstream"
)

// Request is one attempt and where it came from.
type Request struct {
	Protocol      string // "imap", "pop3", "submission", "sieve", "lmtp" or "doveadm"
	Login         prelogin.Login
	Client, Local netip.AddrPort // behind a trusted proxy: the ones that it named

	// What follows may be left out. It is for drivers that ask somebody else.
	RealClient, RealLocal netip.AddrPort       // of the TCP connection, where a trusted proxy named others
	Session               string               // identifies the session in the logs of all who take part
	Attempt               int                  // number of the attempt in this session; 0 counts as 1
	ClientHost            string               // the client's name by reverse look-up, which anybody may have written
	TLS                   *tls.ConnectionState // nil: the client's connection is not encrypted
	Mail                  Mail                 // for Find
}

// Mail is what a message in transit has in place of a password: for Find.
type Mail struct {
	Helo string // the argument of HELO, EHLO or LHLO
	From string // the whole command, as "MAIL FROM:<a@example.org>"
	To   string // the whole command, as "RCPT TO:<b@example.org>"
}

// Answer is a login that may go on. Its maps may be those of other logins of the user: they are only read.
type Answer struct {
	User     string               // whom the director routes, and whom status, kick and move know
	Verified bool                 // false: the backend is the one who verifies
	Tag      string               // director tag; empty: the untagged hosts
	Host     netip.Addr           // valid: this backend, without asking the director
	Port     uint16               // backend port; 0: the listener's
	Upstream upstream.Credentials // what the backend is told

	HostName   string            // the name in the certificate of Host; empty: its address
	TLS        BackendTLS        // towards the backend; zero: as the listener says
	Timeout    time.Duration     // for connection and login at the backend; 0: the usual one
	NotTrusted bool              // the backend must not be told about the client (addresses, Forward)
	Alt        map[string]string // user_* fields without "user_": other names of the user, for kicks
	Forward    map[string]string // forward_* fields without "forward_", for a backend that trusts the proxy
}

// BackendTLS overrides how the connection to the backend is encrypted.
type BackendTLS struct {
	Mode    string // "implicit" or "starttls"; empty: as the listener says
	AnyCert bool   // the backend's certificate is not verified
}

// Driver is a way to authenticate. It may block as long as the context lives; many goroutines use it at once.
type Driver interface {
	// Authenticate returns an error with ErrCredentials, ErrDisabled or ErrTemporary in its chain when the login may not
	// go on, perhaps a *Refused.
	Authenticate(ctx context.Context, r Request) (Answer, error)
}

// Finder is a Driver that can look up a user without a password: LMTP's recipients, doveadm's users.
type Finder interface {
	Driver
	// Find answers for r.Login.User; the password in the Upstream of its Answer is empty. ErrUnknown when there is no
	// such user, otherwise as Authenticate.
	Find(ctx context.Context, r Request) (Answer, error)
}

// How a login fails.
var (
	ErrCredentials = errors.New("wrong user or password")
	ErrDisabled    = errors.New("user is disabled")
	ErrTemporary   = errors.New("temporary authentication failure")
	ErrUnknown     = errors.New("unknown user") // of Find only: a client that logs in is never told
)

// Refused is the error of a driver that says more than the kind of a failure.
type Refused struct {
	Err   error         // with one of the errors above in its chain
	Text  string        // for the client, see Line; empty: the usual words
	Code  string        // for SMTP: "535" or "535 5.7.8"; empty: the usual one
	Wait  time.Duration // from the attempt to the refusal at least; 0: as after any failed login
	Close bool          // the client gets no further attempt

	// Challenge is the error that a token's mechanism sends as a challenge before the refusal (RFC 7628 section 3.2.2).
	Challenge []byte
}

func (r *Refused) Error() string { return r.Err.Error() }

// Unwrap makes errors.Is see the kind.
func (r *Refused) Unwrap() error { return r.Err }

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

// maxText is the longest text for a client that comes from outside; lines of most protocols have at least 512 bytes.
const maxText = 200

// Line makes a text from outside fit for the end of a reply: one short line of printable ASCII (RFC 3501 section 9, text;
// RFC 5321 section 4.2, textstring). What cannot be shown becomes "?".
func Line(text string) string {
	line := make([]byte, 0, min(len(text), maxText))
	for i := 0; i < len(text) && i < maxText; i++ {
		c := text[i]
		if c < ' ' || c > '~' {
			c = '?'
		}
		line = append(line, c)
	}
	return string(line)
}
