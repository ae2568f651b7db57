package auth

import "context"

// Mechanism is a SASL mechanism that a driver takes part in, with what a client's side has to know of it.
type Mechanism struct {
	Name      string // in upper case, as "SCRAM-SHA-256"
	Plaintext bool   // shows the password to who reads along: only with TLS or where that is allowed
	Private   bool   // not to be announced: for those who know
	Anonymous bool
}

// Relayer is a Driver that takes part in SASL exchanges of several steps, so that mechanisms work that the proxy itself
// does not know.
type Relayer interface {
	Driver
	// Mechanisms returns those that there are now; ErrTemporary when the driver does not know, because it has no
	// connection. The slice must not be changed.
	Mechanisms(ctx context.Context) ([]Mechanism, error)
	// Begin starts an exchange for a client that named a mechanism. Of r.Login only the Tag is looked at. Nothing is sent
	// before the first Next. ErrCredentials when there is no such mechanism.
	Begin(ctx context.Context, r Request, mechanism string) (Exchange, error)
}

// Exchange is one SASL exchange of one client. It is used by one goroutine.
type Exchange interface {
	// Next takes the client's next message, without its base64, and returns the server's challenge; an Answer, which is
	// not nil, ends the exchange. At first, nil means that the client sent no initial response, and an empty message
	// that it sent an empty one (RFC 4422 section 5). A mechanism that ends with data of the server gives them as a
	// challenge, which the client acknowledges by an empty message: that works with every protocol. The errors are those
	// of Driver.Authenticate and end the exchange too.
	Next(ctx context.Context, message []byte) (challenge []byte, answer *Answer, err error)
	// Cancel ends an exchange that the client aborted or left. It does nothing before the first Next and after the end.
	Cancel()
}
