package prelogin

import (
	"errors"
	"fmt"
	"time"
)

// Limits bounds what one client may cost before it is logged in. A zero field means its value in DefaultLimits.
type Limits struct {
	Line     int // longest line in bytes, its line end included; also the longest SASL response
	Literal  int // longest IMAP literal, bytes
	Bytes    int // all bytes consumed before login; those pipelined behind the login command do not count
	Commands int // commands before login, failed attempts included
	Invalid  int // commands that were not understood
	Attempts int // login attempts

	Idle  time.Duration // for one command to arrive completely, and for its answer to be taken
	Whole time.Duration // from the greeting to the last attempt
}

// DefaultLimits are Dovecot's own where it has one (8 KiB lines, three invalid commands, three minutes), otherwise
// several times what real clients need: the longest honest dialogue is CAPABILITY, ID, NOOP and a few wrong passwords.
func DefaultLimits() Limits {
	return Limits{
		Line:     8 << 10,
		Literal:  4 << 10,
		Bytes:    64 << 10,
		Commands: 64,
		Invalid:  3,
		Attempts: 10,
		Idle:     time.Minute,
		Whole:    3 * time.Minute,
	}
}

// orDefault fills the fields that were left out.
func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	fill(&l.Line, d.Line)
	fill(&l.Literal, d.Literal)
	fill(&l.Bytes, d.Bytes)
	fill(&l.Commands, d.Commands)
	fill(&l.Invalid, d.Invalid)
	fill(&l.Attempts, d.Attempts)
	fill(&l.Idle, d.Idle)
	fill(&l.Whole, d.Whole)
	return l
}

// Patience is the time for one thing that has to arrive completely: Idle, or its default.
func (l Limits) Patience() time.Duration { return l.orDefault().Idle }

func fill[T int | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// ErrLimit is in the chain of every error of a limit that was exceeded; the more exact ones below say which.
var (
	ErrLimit    = errors.New("limit exceeded")
	ErrLine     = fmt.Errorf("%w: line too long", ErrLimit)
	ErrLiteral  = fmt.Errorf("%w: literal too long", ErrLimit)
	ErrBytes    = fmt.Errorf("%w: too many bytes before login", ErrLimit)
	ErrCommands = fmt.Errorf("%w: too many commands before login", ErrLimit)
	ErrInvalid  = fmt.Errorf("%w: too many invalid commands", ErrLimit)
	ErrAttempts = fmt.Errorf("%w: too many login attempts", ErrLimit)
	ErrTime     = fmt.Errorf("%w: time", ErrLimit)
)

// ErrPlaintext is what came in plaintext behind a STARTTLS: somebody in between may have put it there, to have it taken for
// what was said under TLS.
var ErrPlaintext = errors.New("plaintext behind the switch to TLS")
