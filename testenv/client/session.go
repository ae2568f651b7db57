package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"usher/loader/netns"
)

// Protocol is what a session speaks.
type Protocol string

// The protocols.
const (
	IMAP       Protocol = "imap"
	POP3       Protocol = "pop3"
	Submission Protocol = "submission"
	Sieve      Protocol = "sieve"
)

// Method is how a session logs in.
type Method int

// The methods: LOGIN with quoted strings (POP3: USER and PASS; submission: SASL LOGIN), LOGIN with synchronizing literals
// (POP3: as Login; submission: SASL LOGIN with an initial response; ManageSieve: PLAIN in a literal), and SASL PLAIN
// without and with an initial response.
const (
	Login Method = iota
	LoginLiteral
	Plain
	PlainInitial
)

// Methods are all of them, for tables.
var Methods = []Method{Login, LoginLiteral, Plain, PlainInitial}

func (m Method) String() string {
	return [...]string{"login", "literal", "plain", "plain-initial"}[m]
}

// DefaultTimeout bounds one operation of a session when Config says nothing.
const DefaultTimeout = 30 * time.Second

// Config says who connects where, and how.
type Config struct {
	NS       *netns.NS  // nil: the process's own namespace
	Local    netip.Addr // source address; invalid: the kernel's choice
	Server   netip.AddrPort
	Protocol Protocol // default IMAP
	Method   Method
	User     string
	Password string        // default "secret"
	Timeout  time.Duration // per operation; default DefaultTimeout

	// Pipeline sends an X-ECHO in the same segment as the end of the login, which a proxy must not lose. Not with
	// Real.
	Pipeline bool
	// TLS is used from the first byte on or, with StartTLS, by the command for it; nil: no TLS.
	TLS      *tls.Config
	StartTLS bool
	// Real says that the server is a real one, without the extensions of package backend.
	Real bool
}

// Kind classifies what can go wrong.
type Kind string

// The kinds.
const (
	Connect  Kind = "connect"  // no connection
	Refused  Kind = "refused"  // NO, BAD or -ERR
	Bye      Kind = "bye"      // the server said goodbye instead
	EOF      Kind = "eof"      // closed in the middle
	Reset    Kind = "reset"    // RST
	Timeout  Kind = "timeout"  // no answer in time
	Corrupt  Kind = "corrupt"  // bytes that are wrong
	Nonsense Kind = "nonsense" // an answer that does not fit the question
)

// Error is the error of every operation.
type Error struct {
	Kind Kind
	User string
	Op   string // the command with its arguments, or "connect", "greeting"
	Err  error
}

func (e *Error) Error() string {
	return fmt.Sprintf("user %s: %s: %s: %v", e.User, e.Op, e.Kind, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the Kind of an error of this package, or "" for any other.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return ""
}

// failure is an error whose kind is known where it arises.
type failure struct {
	kind Kind
	text string
}

func (f failure) Error() string { return f.text }

func fail(k Kind, format string, args ...any) error { return failure{k, fmt.Sprintf(format, args...)} }

func classify(err error) Kind {
	var f failure
	switch {
	case errors.As(err, &f):
		return f.kind
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return Timeout
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return EOF
	default:
		return Corrupt // only the checks of contents have errors of their own
	}
}

// Session is one logged-in connection.
type Session struct {
	cfg      Config
	tcp      *net.TCPConn
	conn     duplex // tcp, or TLS over it
	wire     wire   // the same, counted
	r        *bufio.Reader
	tag      string // of the command in progress, IMAP
	op       string
	sequence int
	ops      atomic.Uint64
	exists   uint64 // messages in the selected mailbox
}

// duplex is a connection of which one direction can be closed.
type duplex interface {
	net.Conn
	CloseWrite() error
}

// wire counts the bytes of a connection. The connection is not embedded: its ReadFrom and WriteTo would go past the
// counters.
type wire struct {
	conn           duplex
	sent, received atomic.Uint64
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.conn.Read(p)
	w.received.Add(uint64(n))
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.conn.Write(p)
	w.sent.Add(uint64(n))
	return n, err
}

// Dial connects and logs in. ctx ends only the connecting.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	s, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := s.Login(); err != nil {
		s.conn.Close()
		return nil, err
	}
	return s, nil
}

// Open connects, and does not even wait for the greeting: Login does. It is for those who want to leave early.
func Open(ctx context.Context, cfg Config) (*Session, error) {
	if cfg.Protocol == "" {
		cfg.Protocol = IMAP
	}
	if cfg.Password == "" {
		cfg.Password = "secret"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	d := cfg.NS.Dialer()
	d.Timeout = cfg.Timeout
	d.KeepAlive = -1 // an idle session is to be idle: package net's default is a packet every 15 s
	if cfg.Local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(cfg.Local, 0))
	}
	conn, err := d.DialContext(ctx, "tcp", cfg.Server.String())
	if err != nil {
		return nil, &Error{Connect, cfg.User, "connect", err}
	}
	s := &Session{cfg: cfg, tcp: conn.(*net.TCPConn)}
	s.use(s.tcp)
	if cfg.TLS != nil && !cfg.StartTLS {
		s.use(tls.Client(s.tcp, cfg.TLS))
	}
	return s, nil
}

// use makes conn what everything goes over.
func (s *Session) use(conn duplex) {
	s.conn, s.wire.conn = conn, conn
	s.r = bufio.NewReaderSize(&s.wire, 4096)
}

// Conn returns the TCP connection, for what has no operation here (closing one direction, say).
func (s *Session) Conn() *net.TCPConn { return s.tcp }

// TLS returns the state of TLS, and whether there is TLS.
func (s *Session) TLS() (tls.ConnectionState, bool) {
	if c, ok := s.conn.(*tls.Conn); ok {
		return c.ConnectionState(), true
	}
	return tls.ConnectionState{}, false
}

// User returns the name that the session logs in with.
func (s *Session) User() string { return s.cfg.User }

// Stats returns how many commands were completed and how many bytes went each way. Any goroutine may ask.
func (s *Session) Stats() (ops, sent, received uint64) {
	return s.ops.Load(), s.wire.sent.Load(), s.wire.received.Load()
}

// Close closes the connection without a word (FIN, or RST when unread data waits).
func (s *Session) Close() error { return s.conn.Close() }

// Abort resets the connection.
func (s *Session) Abort() error {
	s.tcp.SetLinger(0)
	return s.tcp.Close()
}

// do runs one operation: deadline, then the error with everything that is known about it.
func (s *Session) do(op string, f func() error) error {
	s.op = op
	s.conn.SetDeadline(time.Now().Add(s.cfg.Timeout))
	if err := f(); err != nil {
		return &Error{classify(err), s.cfg.User, op, err}
	}
	s.ops.Add(1)
	return nil
}

// send writes a command line, in IMAP with a new tag before it, and what follows directly.
func (s *Session) send(command string, body ...byte) error {
	line := command + "\r\n"
	if s.cfg.Protocol == IMAP {
		s.sequence++
		s.tag = fmt.Sprintf("c%d", s.sequence)
		line = s.tag + " " + line
	}
	_, err := s.wire.Write(append([]byte(line), body...))
	return err
}

func (s *Session) line() (string, error) {
	b, err := s.r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			err = fail(Nonsense, "line of more than %d bytes: %.60q", len(b), b)
		} else if len(b) > 0 {
			err = fmt.Errorf("in the middle of line %q: %w", b, err)
		}
		return "", err
	}
	if len(b) < 2 || b[len(b)-2] != '\r' {
		return "", fail(Corrupt, "line without CRLF: %q", b)
	}
	return string(b[:len(b)-2]), nil
}

// final reads up to the last line of an answer and returns its text; each is called with every other line.
func (s *Session) final(each func(line string) error) (string, error) {
	for {
		l, err := s.line()
		if err != nil {
			return "", err
		}
		switch s.cfg.Protocol {
		case POP3:
			return popStatus(l)
		case Submission, Sieve:
			text, last, err := textStatus(l, s.cfg.Protocol)
			if err != nil || last {
				return text, err
			}
			if each != nil {
				if err := each(l); err != nil {
					return "", err
				}
			}
			continue
		}
		status, tagged := strings.CutPrefix(l, s.tag+" ")
		switch {
		case !tagged && strings.HasPrefix(l, "* BYE"):
			return "", fail(Bye, "%s", l)
		case !tagged && !strings.HasPrefix(l, "* "):
			return "", fail(Nonsense, "waiting for %s, got %q", s.tag, l)
		case !tagged && each != nil:
			if err := each(l); err != nil {
				return "", err
			}
		case tagged:
			text, ok := strings.CutPrefix(status, "OK ")
			if !ok {
				return "", fail(Refused, "%s", status)
			}
			return text, nil
		}
	}
}

func popStatus(l string) (string, error) {
	text, ok := strings.CutPrefix(l, "+OK")
	if ok {
		return strings.TrimPrefix(text, " "), nil
	}
	if strings.HasPrefix(l, "-ERR") {
		return "", fail(Refused, "%s", l)
	}
	return "", fail(Nonsense, "waiting for +OK, got %q", l)
}

// goOn waits for the server's "+".
func (s *Session) goOn() error {
	for {
		l, err := s.line()
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(l, "+ "), l == "+", strings.HasPrefix(l, "334 "), l == `""`:
			return nil
		case strings.HasPrefix(l, "* BYE"):
			return fail(Bye, "%s", l)
		case !strings.HasPrefix(l, "* "):
			return fail(Refused, "%s", l)
		}
	}
}

// Login reads the greeting and logs in.
func (s *Session) Login() error {
	err := s.do("greeting", func() error {
		if s.cfg.Protocol == Submission || s.cfg.Protocol == Sieve {
			_, err := s.final(nil)
			return err
		}
		l, err := s.line()
		if err == nil && !strings.HasPrefix(l, "* OK") && !strings.HasPrefix(l, "+OK") {
			err = fail(Bye, "%s", l)
		}
		return err
	})
	if err == nil && s.cfg.Protocol == Submission {
		err = s.simple("EHLO client.example", nil)
	}
	if err == nil && s.cfg.StartTLS {
		err = s.do("starttls", s.startTLS)
	}
	if err != nil {
		return err
	}
	return s.do("login", s.login)
}

func (s *Session) startTLS() error {
	command := "STARTTLS"
	if s.cfg.Protocol == POP3 {
		command = "STLS"
	}
	if err := s.send(command); err != nil {
		return err
	}
	if _, err := s.final(nil); err != nil {
		return err
	}
	if n := s.r.Buffered(); n > 0 {
		return fail(Nonsense, "%d bytes behind the go-ahead for TLS", n)
	}
	s.use(tls.Client(s.tcp, s.cfg.TLS))
	switch s.cfg.Protocol {
	case Sieve: // the server begins
		_, err := s.final(nil)
		return err
	case Submission:
		if err := s.send("EHLO client.example"); err != nil {
			return err
		}
		_, err := s.final(nil)
		return err
	}
	return nil
}

func (s *Session) login() error {
	user, password := s.cfg.User, s.cfg.Password
	initial := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
	var err error
	// steps are sent one by one, each after the answer to the one before; the last one is answered by the result.
	var steps []string
	switch {
	case s.cfg.Protocol == Submission || s.cfg.Protocol == Sieve:
		steps = textLogin(s.cfg, initial)
	case s.cfg.Protocol == POP3 && s.cfg.Method == Plain:
		steps = []string{"AUTH PLAIN", initial}
	case s.cfg.Protocol == POP3 && s.cfg.Method == PlainInitial:
		steps = []string{"AUTH PLAIN " + initial}
	case s.cfg.Protocol == POP3:
		steps = []string{"USER " + user, "PASS " + password}
	case s.cfg.Method == Plain:
		steps = []string{"AUTHENTICATE PLAIN", initial}
	case s.cfg.Method == PlainInitial:
		steps = []string{"AUTHENTICATE PLAIN " + initial}
	case s.cfg.Method == LoginLiteral:
		steps = []string{fmt.Sprintf("LOGIN {%d}", len(user)), fmt.Sprintf("%s {%d}", user, len(password)), password}
	default:
		steps = []string{fmt.Sprintf("LOGIN %s %s", quote(user), quote(password))}
	}
	var behind *behind
	for i, step := range steps {
		data := step + "\r\n"
		if i == 0 && s.cfg.Protocol == IMAP {
			s.sequence++
			s.tag = fmt.Sprintf("c%d", s.sequence)
			data = s.tag + " " + data
		}
		if i == len(steps)-1 && s.cfg.Pipeline {
			behind = s.behind()
			data += behind.data
		}
		if _, err := io.WriteString(&s.wire, data); err != nil {
			return err
		}
		if i == len(steps)-1 {
			break
		}
		if strings.HasPrefix(step, "USER ") {
			_, err = s.final(nil)
		} else {
			err = s.goOn()
		}
		if err != nil {
			return err
		}
	}
	if _, err := s.final(nil); err != nil {
		return err
	}
	if behind != nil {
		return behind.read()
	}
	return nil
}

// quote makes an IMAP quoted string.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
