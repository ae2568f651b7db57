package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"usher/steer/prelogin"
	"usher/steer/upstream"
	"usher/steer/upstream/imap"
	"usher/steer/upstream/pop3"
)

// Check is how deep a check looks.
type Check string

// The checks.
const (
	Connect  Check = "connect"
	Greeting Check = "greeting"
	Login    Check = "login"
)

// How a service is encrypted, in the words of the configuration. Anything else is not at all.
const (
	StartTLS    = "starttls" // by a command; only a check that logs in goes so far
	ImplicitTLS = "implicit" // before the first byte
)

// Service is something that a host has to offer.
type Service struct {
	Protocol string // imap, pop3, submission, lmtp, sieve; others are only connected to
	Port     uint16
	TLS      string
}

func (s Service) String() string { return fmt.Sprintf("%s on port %d", s.Protocol, s.Port) }

// Reason is the class of a failure: a word for logs and a metric label.
type Reason string

// The reasons.
const (
	Refused       Reason = "refused"        // the connection
	Unreachable   Reason = "unreachable"    // no way to the host
	Timeout       Reason = "timeout"        // at any step
	Closed        Reason = "closed"         // by the host, in the middle of the check
	TLSFailed     Reason = "tls-failed"     // not offered, or the certificate is not good
	WrongGreeting Reason = "wrong-greeting" // another protocol's, or one that says no
	LoginRejected Reason = "login-rejected" // the host said no
	LoginFailed   Reason = "login-failed"   // it could not even be asked
	Local         Reason = "local"          // our own fault: says nothing about the host
)

// Reasons lists every reason.
var Reasons = []Reason{Refused, Unreachable, Timeout, Closed, TLSFailed, WrongGreeting, LoginRejected, LoginFailed, Local}

// Failure is a check that was not good.
type Failure struct {
	Service Service
	Reason  Reason
	Err     error
}

func (f *Failure) Error() string { return fmt.Sprintf("%v: %s: %v", f.Service, f.Reason, f.Err) }

// Unwrap returns Err.
func (f *Failure) Unwrap() error { return f.Err }

// reason is empty for a check that was good.
func (f *Failure) reason() Reason {
	if f == nil {
		return ""
	}
	return f.Reason
}

// parting bounds the wait for the end of a check's connection, after the result is known.
const parting = time.Second

// Probe says how the hosts of a group are checked.
type Probe struct {
	Check          Check
	Services       []Service
	User, Password string // of Login
}

// Network is how a host is reached.
type Network struct {
	// Dial connects before the deadline of the context. Closing the connection is the end of it.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Encrypt does the TLS handshake on a connection of Dial, within its deadline; nil: there is no TLS.
	Encrypt func(conn net.Conn, host netip.Addr) (net.Conn, error)
}

// run checks one host until the deadline of ctx.
func (p *Probe) run(ctx context.Context, network Network, host netip.Addr) *Failure {
	for _, s := range p.Services {
		if reason, err := p.service(ctx, network, host, s); err != nil {
			return &Failure{Service: s, Reason: reason, Err: err}
		}
	}
	return nil
}

func (p *Probe) service(ctx context.Context, network Network, host netip.Addr, s Service) (Reason, error) {
	conn, err := network.Dial(ctx, netip.AddrPortFrom(host, s.Port))
	if err != nil {
		// What is not the network's answer came from this machine.
		return reason(err, Local), err
	}
	defer conn.Close()
	words, talks := protocols[s.Protocol]
	if p.Check == Connect || !talks {
		return "", nil
	}
	login := p.Check == Login && words.login != nil
	limits := upstream.DefaultLimits()
	limits.Time = time.Until(deadline(ctx))

	encrypt := func() (net.Conn, error) {
		if network.Encrypt == nil {
			return nil, errors.New("TLS with backends is not configured")
		}
		return network.Encrypt(conn, host)
	}
	talk := conn
	switch {
	case s.TLS == ImplicitTLS:
		err = prelogin.Within(ctx, conn, deadline(ctx), func() (err error) {
			talk, err = encrypt()
			return err
		})
	case s.TLS == StartTLS && login: // no password goes in plaintext where sessions would not send it
		talk, err = words.startTLS(ctx, conn, limits, encrypt)
	}
	if err != nil {
		return reason(err, TLSFailed), err
	}

	if login {
		// The session's own code, so that a check fails where sessions would.
		credentials := upstream.Credentials{User: p.User, Password: p.Password, Tag: "health"}
		if _, err := words.login(ctx, talk, credentials, limits); err != nil {
			return reason(err, LoginFailed), err
		}
	} else {
		greeting := prelogin.NewReader(talk, limits.Line, limits.Bytes)
		err := prelogin.Within(ctx, talk, deadline(ctx), func() error { return words.greeting(greeting) })
		if err != nil {
			return reason(err, WrongGreeting), fmt.Errorf("read the greeting: %w", err)
		}
	}
	part(ctx, talk, words.goodbye)
	return "", nil
}

// part leaves politely: closing with bytes unread would be a reset, and the host would log an error per
// check. The check was good, whatever comes of it.
func part(ctx context.Context, conn net.Conn, goodbye string) {
	_ = prelogin.Within(ctx, conn, time.Now().Add(parting), func() error {
		if _, err := io.WriteString(conn, goodbye+"\r\n"); err != nil {
			return err
		}
		_, err := io.CopyN(io.Discard, conn, 64<<10)
		return err
	})
}

func deadline(ctx context.Context) time.Time {
	if at, ok := ctx.Deadline(); ok {
		return at
	}
	return time.Now().Add(upstream.DefaultLimits().Time)
}

// reason classifies an error; other is for those that nothing is known about.
func reason(err error, other Reason) Reason {
	var rejected *upstream.Rejected
	var network net.Error
	is := func(targets ...error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
	switch {
	case errors.As(err, &rejected):
		return LoginRejected
	case is(upstream.ErrGreeting, upstream.ErrBye):
		return WrongGreeting
	case is(syscall.ECONNREFUSED):
		return Refused
	case is(syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN):
		return Unreachable
	case is(prelogin.ErrTime, context.DeadlineExceeded, os.ErrDeadlineExceeded, syscall.ETIMEDOUT),
		errors.As(err, &network) && network.Timeout():
		return Timeout
	case is(io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE):
		return Closed
	}
	return other
}

// words are what a check must know of a protocol.
type words struct {
	greeting func(*prelogin.Reader) error
	login    func(context.Context, net.Conn, upstream.Credentials, upstream.Limits) (upstream.Result, error) // nil: none
	startTLS func(context.Context, net.Conn, upstream.Limits, upstream.Handshake) (net.Conn, error)          // for login
	goodbye  string
}

// protocols has those in which the server speaks first. doveadm is none of them.
var protocols = map[string]words{
	"imap":       {greetIMAP, imap.Login, imap.StartTLS, "x LOGOUT"},
	"pop3":       {greetPOP3, pop3.Login, pop3.StartTLS, "QUIT"},
	"submission": {greetSMTP, nil, nil, "QUIT"},
	"lmtp":       {greetSMTP, nil, nil, "QUIT"},
	"sieve":      {greetSieve, nil, nil, "LOGOUT"},
}
