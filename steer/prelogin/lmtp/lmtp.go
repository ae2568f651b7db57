package lmtp

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"usher/steer/prelogin"
	"usher/steer/upstream"
	uplmtp "usher/steer/upstream/lmtp"
)

// Recipient is one of a mail.
type Recipient struct {
	Address string // as the client wrote it, without < and >
	User    string // whose mail that is: the address without detail
	Hello   string // the client's name in LHLO
	From    string // the whole MAIL command
	To      string // the whole RCPT command
}

// Target is where a recipient's mail goes.
type Target struct {
	Backend string // recipients with the same one share a connection
	Address string // what the backend shall deliver to; empty: the recipient's own address
	Dial    func(context.Context) (net.Conn, error)
	Forward *upstream.Forward // nil: the backend is told nothing of the client
}

// Refusal is an error of Find that has a reply of its own, as "550 5.1.1 Unknown user".
type Refusal struct {
	Reply string // without CRLF
	Err   error  // for the log; may be nil
}

func (r *Refusal) Error() string {
	if r.Err != nil {
		return r.Err.Error()
	}
	return r.Reply
}

// Unwrap returns Err.
func (r *Refusal) Unwrap() error { return r.Err }

// Config is what a conversation needs.
type Config struct {
	Name       string                                           // of this host; empty: "usher"
	StartTLS   func() (net.Conn, error)                         // as in prelogin.Config
	Line       int                                              // longest command; 0: 4 KiB
	Idle       time.Duration                                    // for a command, or the next piece of a mail; 0: 5 min (RFC 5321 section 4.5.3.2.7)
	Recipients int                                              // in one mail; 0: 1000
	Size       int64                                            // of a mail, in bytes; 0: the backends decide
	Delimiter  string                                           // between a user's name and the detail; empty: names are not cut
	Invalid    int                                              // commands that were not understood; 0: 10
	Find       func(context.Context, Recipient) (Target, error) // any other error than Refusal is temporary
	Log        zerolog.Logger
}

// chunk is how much of a mail is read at a time.
const chunk = 32 << 10

// Serve speaks with a client until it leaves (nil), or until something is wrong. It does not close conn.
func Serve(ctx context.Context, conn net.Conn, cfg Config) error {
	def := func(n *int, value int) {
		if *n <= 0 {
			*n = value
		}
	}
	def(&cfg.Line, 4<<10)
	def(&cfg.Recipients, 1000)
	def(&cfg.Invalid, 10)
	if cfg.Idle <= 0 {
		cfg.Idle = 5 * time.Minute
	}
	if cfg.Name == "" {
		cfg.Name = "usher"
	}
	s := &server{Reader: prelogin.NewReader(conn, cfg.Line, math.MaxInt), conn: conn, cfg: cfg, backends: map[string]*backend{}}
	defer s.leave()
	s.say("220 " + cfg.Name + " LMTP Usher ready.")
	err := s.run(ctx)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// server is one conversation.
type server struct {
	*prelogin.Reader
	conn net.Conn
	cfg  Config
	out  []byte // replies that wait for each other, because the client does not wait for them

	hello    string
	invalid  int
	mail     *mail
	backends map[string]*backend // connected, with and without a transaction
}

// mail is the transaction.
type mail struct {
	command    string
	path       string
	parameters []string
	recipients []*recipient
	failed     map[string]error // backends that could not be told of it: nobody waits for them twice
}

// recipient is one that its backend has accepted.
type recipient struct {
	path    string
	backend *backend
	reply   string // known before the backend has said it; with CRLF
}

// backend is the connection to one, and its part in the transaction.
type backend struct {
	*uplmtp.Conn
	name    string
	busy    bool   // in a transaction
	refused string // MAIL was, with this reply
	sent    bool   // it has got the mail, or at least the beginning
	used    bool   // for a transaction before this one
}

func (s *server) run(ctx context.Context) error {
	for {
		line, err := s.command(ctx)
		if err == nil {
			err = s.answer(ctx, line)
		}
		if err == nil && s.invalid >= s.cfg.Invalid {
			err = prelogin.ErrInvalid
		}
		if err != nil {
			return s.part(ctx, err)
		}
	}
}

// part tells the client why the conversation ends.
func (s *server) part(ctx context.Context, reason error) error {
	switch {
	case ctx.Err() != nil:
		s.say("421 4.3.2 Server is shutting down.")
	case errors.Is(reason, prelogin.ErrTime):
		s.say("421 4.4.2 Disconnected for inactivity.")
	case errors.Is(reason, prelogin.ErrLimit):
		s.say("421 4.7.0 Too long a line, or too many errors.")
	case errors.Is(reason, prelogin.ErrPlaintext):
		s.say("421 4.7.0 Plaintext behind STARTTLS.")
	case !errors.Is(reason, errQuit):
		return reason
	}
	_ = prelogin.Within(context.Background(), s.conn, time.Now().Add(time.Second), s.flush)
	if errors.Is(reason, errQuit) {
		return nil
	}
	return reason
}

// errQuit is the client's goodbye.
var errQuit = errors.New("QUIT")

func (s *server) say(reply string) { s.out = append(append(s.out, reply...), "\r\n"...) }

func (s *server) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	_, err := s.conn.Write(s.out)
	s.out = s.out[:0]
	return err
}

// command reads the next one. Replies are sent before, unless it is here already: those of pipelined commands share packets.
func (s *server) command(ctx context.Context) (line string, err error) {
	err = prelogin.Within(ctx, s.conn, time.Now().Add(s.cfg.Idle), func() error {
		if !s.HasLine() || len(s.out) > chunk {
			if err := s.flush(); err != nil {
				return err
			}
		}
		b, err := s.Line()
		line = string(b)
		return err
	})
	return line, err
}

func (s *server) answer(ctx context.Context, line string) error {
	verb, argument, _ := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "LHLO":
		return s.lhlo(ctx, argument)
	case "STARTTLS":
		return s.startTLS(ctx)
	case "MAIL":
		s.from(line, argument)
	case "RCPT":
		s.to(ctx, line, argument)
	case "DATA":
		return s.data(ctx)
	case "RSET":
		s.reset(ctx)
		s.say("250 2.0.0 OK")
	case "NOOP":
		s.say("250 2.0.0 OK")
	case "VRFY":
		s.say("252 2.3.3 Try RCPT instead.")
	case "QUIT":
		s.say("221 2.0.0 Bye")
		return errQuit
	default:
		s.wrong("500 5.5.1 Unknown command.")
	}
	return nil
}

// wrong answers what was not understood.
func (s *server) wrong(reply string) {
	s.invalid++
	s.say(reply)
}
