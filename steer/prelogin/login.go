package prelogin

import (
	"context"
	"net"
)

// Login is one complete attempt of a client, decoded but not verified. The strings are bytes as the client sent them,
// 8-bit ones included, without control characters.
type Login struct {
	User      string // the name whose password was given (SASL authcid)
	Password  string
	Authzid   string // whom the client wants to be, when that is not User itself (RFC 4616 section 2); mostly empty
	Mechanism string // how it was said: "LOGIN" (IMAP), "USER" (POP3), or a SASL mechanism such as "PLAIN", in upper case
	Message   string // the SASL message itself, for mechanisms whose Password is a token (sasl.IsToken)
	Tag       string // the IMAP command's tag; empty with other protocols
	Hello     string // submission: the name in EHLO
	Relayed   bool   // an Exchange of the Config is over: whoever began it knows the user and the outcome
}

// Kind is the class of a failed login. It decides the response code for the client (RFC 5530 section 3, RFC 3206) and
// is the label in logs and metrics. The zero value is the careful one: temporary.
type Kind uint8

const (
	TempFail    Kind = iota // something of ours or of the backend's is broken: the client may try again later
	Unavailable             // no backend can take the user now
	InUse                   // the mailbox is locked by another session
	AuthFailed              // wrong user or password
	PermFail                // the credentials may be right, but this user may not log in
)

var kindNames = [...]string{"temp_fail", "unavailable", "in_use", "auth_failed", "perm_fail"}

// String is the name used in logs and metrics.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

// Text is what people read when nobody has better words. It tells no inside details.
func (k Kind) Text() string {
	switch k {
	case Unavailable:
		return "No mail server is available for you now. Try again later."
	case InUse:
		return "Your mailbox is in use by another session."
	case AuthFailed:
		return "Authentication failed."
	case PermFail:
		return "You may not log in here."
	default:
		return "Temporary authentication failure."
	}
}

// Refusal answers an attempt that did not succeed.
type Refusal struct {
	Kind Kind
	Raw  []byte // the backend's own final line with the client's tag and CRLF; used instead of everything else when set
	Text string // one line for people; empty: the text of the kind
	Code string // submission: the reply code, with or without an enhanced one ("535 5.7.8"); empty: that of the kind

	// Challenge is the error that a token's mechanism has as a challenge before the refusal (RFC 7628 section 3.2.2).
	Challenge []byte
}

// Message is the text for people.
func (r Refusal) Message() string {
	if r.Text != "" {
		return r.Text
	}
	return r.Kind.Text()
}

// Dialogue speaks one protocol with a client until it is logged in. It is used by one goroutine.
type Dialogue interface {
	// Next greets at first, answers what it can and returns at each complete attempt. The errors: io.EOF when the
	// client said goodbye or closed; one with ErrLimit in its chain when a limit was exceeded; the context's cause when
	// it ended; otherwise the connection's own. Whatever could be said to the client was said, and the caller closes.
	// The connection has no deadline after a Login came back.
	Next(ctx context.Context) (Login, error)
	// Refuse answers the attempt that Next returned; the caller then calls Next again.
	Refuse(r Refusal) error
	// Residual returns the bytes that were read behind the successful attempt, exactly, and releases the buffer. It is
	// called once and ends the Dialogue; nil when there are none.
	Residual() []byte
}

// Relay is a SASL mechanism that somebody else understands, and that the dialogue passes on.
type Relay struct {
	Name      string // in upper case, as "SCRAM-SHA-256"
	Plaintext bool   // not without TLS
	Begin     func() (Exchange, error)
}

// Exchange is one exchange of a Relay.
type Exchange interface {
	// Next takes the client's message; at first, nil means that there was no initial response. It returns the challenge,
	// or nil when the exchange is over, well or not: that is then an attempt.
	Next(message []byte) (challenge []byte)
	// Cancel ends an exchange that the client left or aborted.
	Cancel()
}

// Config is what the protocols have in common.
type Config struct {
	Limits           Limits
	Name             string // of this host, for protocols whose greeting has one; empty: "usher"
	Greeting         string // text of the greeting; empty: "Usher ready."
	DisablePlaintext bool   // this connection is not private enough for passwords: they are refused before they are sent

	// StartTLS does the handshake and returns the connection for everything that follows; nil: TLS is not offered, or it
	// is there already. Passwords are allowed behind it.
	StartTLS func() (net.Conn, error)
	// Mechanisms are the SASL mechanisms offered, in upper case; nil: DefaultMechanisms, or those of the protocol.
	Mechanisms []string
	// Relays are further ones.
	Relays []Relay
	// Certified is whom the client's certificate names, for EXTERNAL, which is offered where it is not empty; may be nil.
	Certified func() string
	// Capabilities are what a protocol announces for its backends, because clients do not ask them: submission's
	// keywords of EHLO, ManageSieve's lines; nil: what the protocol's package takes for safe.
	Capabilities []string
}

// DefaultMechanisms are those that every backend has: LOGIN is turned into PLAIN.
var DefaultMechanisms = []string{"PLAIN"}

// Welcome is the text of the greeting.
func (c Config) Welcome() string {
	if c.Greeting == "" {
		return "Usher ready."
	}
	return c.Greeting
}
