package prelogin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"usher/steer/sasl"
)

// farewell bounds the wait for a client to take our last words.
const farewell = time.Second

// Protocol is what a mail protocol adds to a Talk.
type Protocol struct {
	Greeting func() string                          // all of it, with CRLF
	Bye      func(text string) string               // a farewell, with CRLF
	Secured  func() string                          // what the server says at once under TLS, after STARTTLS; nil: nothing
	Command  func() (*Login, error)                 // reads and answers one command; a Login when it was a complete attempt, io.EOF after a goodbye
	Ask      func(challenge []byte) ([]byte, error) // one step of a SASL exchange: sends a challenge, returns the decoded answer
	Refusal  func(r Refusal) []byte                 // the answer to the last attempt, with CRLF; not asked when Refusal.Raw is set
}

// Talk is the Dialogue of every protocol: it greets, counts, keeps the time, and tells the client why it ends.
type Talk struct {
	*Reader
	conn     net.Conn
	cfg      Config
	limits   Limits
	protocol Protocol
	mute     bool // nothing can be said in the middle of a handshake

	end                         time.Time // of the whole dialogue; zero until greeted
	commands, invalid, attempts int
}

// NewTalk makes the Dialogue. The protocol's functions may use the Talk as soon as Next is called.
func NewTalk(conn net.Conn, cfg Config, protocol Protocol) *Talk {
	limits := cfg.Limits.orDefault()
	return &Talk{Reader: NewReader(conn, limits.Line, limits.Bytes), conn: conn, cfg: cfg, limits: limits, protocol: protocol}
}

// Next implements Dialogue.
func (t *Talk) Next(ctx context.Context) (Login, error) {
	login, err := t.next(ctx)
	if err != nil {
		t.part(ctx, err)
		return Login{}, err
	}
	return login, nil
}

func (t *Talk) next(ctx context.Context) (Login, error) {
	if t.end.IsZero() {
		t.end = time.Now().Add(t.limits.Whole)
		if err := t.within(ctx, func() error { return t.Say(t.protocol.Greeting()) }); err != nil {
			return Login{}, err
		}
	}
	for {
		if err := t.allowed(); err != nil {
			return Login{}, err
		}
		t.commands++
		var login *Login
		err := t.within(ctx, func() (err error) {
			login, err = t.protocol.Command()
			return err
		})
		if err != nil {
			return Login{}, err
		}
		if login == nil {
			continue
		}
		t.attempts++
		if login.Relayed || login.User != "" && sasl.Allowed(login.User) && sasl.Allowed(login.Password) && sasl.Allowed(login.Authzid) {
			return *login, nil
		}
		// Such names would end up in logs and in commands to backends, and no passdb has them.
		if err := t.Refuse(Refusal{Kind: AuthFailed}); err != nil {
			return Login{}, err
		}
	}
}

// Refuse implements Dialogue.
func (t *Talk) Refuse(r Refusal) error {
	answer := r.Raw
	if answer == nil {
		answer = t.protocol.Refusal(r)
	}
	return Within(context.Background(), t.conn, time.Now().Add(t.limits.Idle), func() error {
		if len(r.Challenge) > 0 && t.protocol.Ask != nil {
			// What the client answers does not matter: the exchange is over (RFC 7628 section 3.2.3).
			_, _ = t.protocol.Ask(r.Challenge)
		}
		return t.Say(string(answer))
	})
}

// Say writes an answer. Only for the protocol's functions, which run within a deadline.
func (t *Talk) Say(answer string) error {
	_, err := io.WriteString(t.conn, answer)
	return err
}

// Invalid answers a command that was not understood, and counts it.
func (t *Talk) Invalid(answer string) error {
	t.invalid++
	return t.Say(answer)
}

// StartsTLS reports whether STARTTLS is offered.
func (t *Talk) StartsTLS() bool { return t.cfg.StartTLS != nil }

// Plaintext reports whether passwords may be sent now.
func (t *Talk) Plaintext() bool { return !t.cfg.DisablePlaintext }

// StartTLS answers the command with the go-ahead and changes to TLS. Bytes behind the command end the dialogue.
func (t *Talk) StartTLS(goAhead string) error {
	if t.Buffered() > 0 {
		return ErrPlaintext
	}
	if err := t.Say(goAhead); err != nil {
		return err
	}
	t.mute = true
	conn, err := t.cfg.StartTLS()
	if err != nil {
		return err
	}
	t.mute = false
	t.conn, t.src = conn, conn
	t.cfg.StartTLS, t.cfg.DisablePlaintext = nil, false
	if t.protocol.Secured != nil {
		return t.Say(t.protocol.Secured())
	}
	return nil
}

// Literal returns the largest literal that is allowed, in bytes.
func (t *Talk) Literal() int { return t.limits.Literal }

// within gives one command its time.
func (t *Talk) within(ctx context.Context, f func() error) error {
	deadline := time.Now().Add(t.limits.Idle)
	if t.end.Before(deadline) {
		deadline = t.end
	}
	return Within(ctx, t.conn, deadline, f)
}

// allowed says whether one more command is.
func (t *Talk) allowed() error {
	switch {
	case t.attempts >= t.limits.Attempts:
		return ErrAttempts
	case t.invalid >= t.limits.Invalid:
		return ErrInvalid
	case t.commands >= t.limits.Commands:
		return ErrCommands
	}
	return nil
}

// part tells the client why the dialogue ends, if it is still there to hear it.
func (t *Talk) part(ctx context.Context, reason error) {
	if t.mute {
		return
	}
	var text string
	switch {
	case ctx.Err() != nil:
		text = "Server is shutting down."
	case errors.Is(reason, ErrPlaintext):
		text = "Plaintext behind STARTTLS."
	case errors.Is(reason, ErrTime):
		text = "Disconnected for inactivity."
	case errors.Is(reason, ErrLine):
		text = "Input line too long."
	case errors.Is(reason, ErrLiteral):
		text = "Literal too long."
	case errors.Is(reason, ErrInvalid):
		text = "Too many invalid commands."
	case errors.Is(reason, ErrAttempts):
		text = "Too many login attempts."
	case errors.Is(reason, ErrLimit):
		text = "Too many commands before login."
	default:
		return // it said goodbye, or the connection is broken
	}
	// Nobody is left to be told that this failed.
	_ = Within(context.Background(), t.conn, time.Now().Add(farewell), func() error {
		return t.Say(t.protocol.Bye(text))
	})
}

// Within runs f, which reads and writes conn, until the deadline (ErrTime) or until ctx ends (its cause), whichever is
// first. It leaves conn without a deadline, whatever happened.
func Within(ctx context.Context, conn net.Conn, deadline time.Time, f func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = conn.SetDeadline(time.Unix(1, 0)) // a connection that refuses is closed already
	})
	err := f()
	if !stop() {
		<-interrupted // so that it cannot set its deadline behind our back
		err = context.Cause(ctx)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrTime, err)
	}
	if clear := conn.SetDeadline(time.Time{}); err == nil {
		err = clear
	}
	return err
}
