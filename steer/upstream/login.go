package upstream

import (
	"errors"
	"fmt"
	"io"
	"time"

	"usher/steer/prelogin"
	"usher/steer/sasl"
)

// Credentials are what the backend is told. With a master user the proxy has verified the user itself and Password is not used.
type Credentials struct {
	User     string // whose password it is; with a master user: whose mailbox it is
	Password string
	Authzid  string // RFC 4616 section 2; not together with a master user; empty: User
	Tag      string // IMAP: the tag of the client's command
	Hello    string // submission: the client's name in EHLO; empty: our own address

	// Mechanism and Message are how the client said it, for a token (sasl.IsToken), which the backend gets as it is. With
	// other mechanisms they are not looked at.
	Mechanism, Message string

	Forward *Forward // nil: the backend is told nothing about the client

	MasterUser     string // empty: log in with the user's own password
	MasterPassword string
	Separator      string // auth_master_user_separator, for IMAP backends that have LOGIN only: User + Separator + MasterUser
}

// ErrCredentials is returned before anything is sent, for credentials that the protocol cannot express.
var ErrCredentials = errors.New("credentials cannot be sent")

// Check refuses control characters: a CR LF in a name is a second command. The dialogues with clients let none pass, but
// credentials come from files as well.
func (c Credentials) Check() error {
	for _, field := range []struct{ name, value string }{
		{"user", c.User}, {"password", c.Password}, {"authzid", c.Authzid}, {"tag", c.Tag}, {"hello", c.Hello},
		{"master user", c.MasterUser}, {"master password", c.MasterPassword}, {"separator", c.Separator},
	} {
		if !sasl.Allowed(field.value) {
			return fmt.Errorf("%w: control character in the %s", ErrCredentials, field.name)
		}
	}
	if c.User == "" {
		return fmt.Errorf("%w: no user", ErrCredentials)
	}
	return nil
}

// Delegated reports whether one logs in as another, which takes SASL or a separator.
func (c Credentials) Delegated() bool {
	return c.MasterUser != "" || c.Authzid != "" && c.Authzid != c.User
}

// Token reports whether the backend gets the client's own SASL message.
func (c Credentials) Token() bool {
	return c.MasterUser == "" && c.Message != "" && sasl.IsToken(c.Mechanism)
}

// Plain is the SASL message.
func (c Credentials) Plain() sasl.Plain {
	switch {
	case c.MasterUser != "":
		return sasl.Plain{Authzid: c.User, Authcid: c.MasterUser, Password: c.MasterPassword}
	case c.Delegated():
		return sasl.Plain{Authzid: c.Authzid, Authcid: c.User, Password: c.Password}
	default:
		return sasl.Plain{Authcid: c.User, Password: c.Password}
	}
}

// Limits bounds what a backend may cost until the user is logged in. A zero field means its value in DefaultLimits.
type Limits struct {
	Line  int           // longest line in bytes; capability lists of real servers have up to 1 KiB
	Bytes int           // everything up to the final line
	Time  time.Duration // for the whole login; Dovecot's failed logins take 2 to 15 s on purpose
}

// DefaultLimits are generous: the backend is ours, and only a broken one meets them.
func DefaultLimits() Limits {
	return Limits{Line: 16 << 10, Bytes: 64 << 10, Time: 30 * time.Second}
}

// OrDefault fills the fields that were left out.
func (l Limits) OrDefault() Limits {
	d := DefaultLimits()
	if l.Line <= 0 {
		l.Line = d.Line
	}
	if l.Bytes <= 0 {
		l.Bytes = d.Bytes
	}
	if l.Time <= 0 {
		l.Time = d.Time
	}
	return l
}

// Result is a login that the backend accepted.
type Result struct {
	Reply    []byte // for the client: untagged lines and the final one, with its tag and CRLF
	Residual []byte // what the backend sent behind it, exactly; nil when nothing was read
	// Capabilities are, with IMAP, those of the reply, in upper case; nil when it named none. With submission and sieve
	// they are those of before the login, which clients of this proxy have to know then: see prelogin.Config.
	Capabilities []string
}

// Rejected is the error of a login that the backend refused.
type Rejected struct {
	Raw  []byte // its own final line, with the client's tag and CRLF
	Kind prelogin.Kind
	// Challenge is what a token's mechanism said about the error before, decoded; empty: nothing.
	Challenge []byte
}

func (r *Rejected) Error() string {
	return fmt.Sprintf("backend refused the login (%s): %s", r.Kind, Excerpt(r.Raw))
}

// All other errors of a login are temporary: the backend is not what it should be. They wrap one of these, a limit of
// package prelogin (prelogin.ErrTime among them), the end of the context or the connection's error.
var (
	ErrGreeting  = errors.New("unexpected greeting")
	ErrBye       = errors.New("backend said goodbye")
	ErrReply     = errors.New("unexpected reply")
	ErrMechanism = errors.New("backend offers no usable way to log in")
	ErrNoTLS     = errors.New("backend does not offer TLS")
)

// Excerpt quotes the beginning of a line of the backend for an error or a log.
func Excerpt(line []byte) string {
	const longest = 200
	if len(line) > longest {
		return fmt.Sprintf("%q...", line[:longest])
	}
	return fmt.Sprintf("%q", line)
}

// Failed adds the step to an error, nil stays nil. A backend that closes in the middle is io.ErrUnexpectedEOF: io.EOF is
// kept for clients that leave.
func Failed(step string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%s: %w", step, err)
}
