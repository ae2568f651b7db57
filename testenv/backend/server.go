package backend

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"usher/loader/netns"
)

// AnyPort lets the kernel choose a port; see Options.
const AnyPort = -1

// historyLimit bounds what is remembered of ended sessions; the oldest are forgotten.
const historyLimit = 200_000

// Options are what does not change while a server runs. The zero value is an open house on the
// standard ports: every user with every password.
type Options struct {
	Name           string // said by X-WHO and in the greeting; default: the address
	IMAPPort       int    // 0 means 143, AnyPort any
	POP3Port       int    // 0 means 110, AnyPort any
	SubmissionPort int    // 0 means none, AnyPort any
	SievePort      int    // 0 means none, AnyPort any
	LMTPPort       int    // 0 means none, AnyPort any
	Password       string // the one that every user has; empty: any
	Master         string // master user: with it, authzid or "user*master" log in as somebody else
	MasterPassword string
	Capability     string // IMAP capabilities before login, without "IMAP4rev1"; default "SASL-IR LITERAL+ ID AUTH=PLAIN"
	Behaviour      Behaviour
	TLS            *tls.Config // offered by STARTTLS and STLS; nil: not
	Trusting       bool        // says that it believes a proxy about the client (XCLIENT)
	Implicit       bool        // TLS from the first byte on, and not by a command
}

// Behaviour is what may be changed at any time with Server.Behave; it holds for connections and logins that begin later.
type Behaviour struct {
	Hang  bool          // accept, and never say a word
	Bye   bool          // "* BYE" or "-ERR" instead of a greeting, then close
	Delay time.Duration // before the greeting, and before the answer to each login
	// Refuse decides about a login whose password was right. nil: Accept. Must not block.
	Refuse func(user string) Refusal
	// Deliver decides about an LMTP command: "MAIL" with the path, "RCPT" with the path, "DATA", "." for the mail as a
	// whole (HangUp or Accept) and "stored" with the path of each recipient behind it. nil: Accept. Must not block.
	Deliver func(command, path string) Refusal
}

// Refusal is the answer to a login.
type Refusal int

// The answers: logged in, wrong credentials, try later, and closing the connection without one.
const (
	Accept Refusal = iota
	Reject
	Unavailable
	HangUp
)

// Ending is how a session ended.
type Ending string

// The endings, seen from the server.
const (
	Live    Ending = ""        // it has not
	Logout  Ending = "LOGOUT"  // LOGOUT or QUIT
	FIN     Ending = "FIN"     // the peer closed its direction
	RST     Ending = "RST"     // the peer reset the connection
	Closed  Ending = "closed"  // this server did
	Garbled Ending = "garbled" // the peer spoke nonsense
)

// Session is the record of one login.
type Session struct {
	ID            uint64 // counts from 1 per server, also over connections that never log in
	Protocol      string // "imap", "pop3", "submission" or "sieve"
	User          string // whose mail it is
	Master        string // the master user that logged in for them, or empty
	ClientID      string // arguments of ID, XCLIENT or EHLO before login, as sent: the last of them
	Remote, Local netip.AddrPort
	Login, End    time.Time // End is zero while it lives
	Ending        Ending
	Tail          int64  // bytes received after X-FINISH
	TailSHA256    string // of those, hex
}

// Server is one mail backend. Its methods may be called from any goroutine.
type Server struct {
	opts       Options
	imap, pop3 net.Listener
	more       map[string]net.Listener // of the protocols that there are on demand
	behaviour  atomic.Pointer[Behaviour]
	running    sync.WaitGroup

	mu       sync.Mutex
	closing  bool
	lastID   uint64
	open     map[*session]struct{} // every connection
	live     map[string]int        // logged in, per user
	mails    []Mail
	history  []Session // ended ones that were logged in
	logins   uint64
	rejected uint64
}

// Start opens both listeners on an address inside a namespace (nil: the process's own) and serves until Close.
func Start(ns *netns.NS, addr netip.Addr, opts Options) (*Server, error) {
	if opts.Name == "" {
		opts.Name = addr.String()
	}
	if opts.Capability == "" {
		opts.Capability = "SASL-IR LITERAL+ ID AUTH=PLAIN"
	}
	s := &Server{opts: opts, open: map[*session]struct{}{}, live: map[string]int{}, more: map[string]net.Listener{}}
	s.Behave(opts.Behaviour)
	var err error
	if s.imap, err = listen(ns, addr, opts.IMAPPort, 143); err != nil {
		return nil, fmt.Errorf("start backend %s: imap: %w", opts.Name, err)
	}
	if s.pop3, err = listen(ns, addr, opts.POP3Port, 110); err != nil {
		s.imap.Close()
		return nil, fmt.Errorf("start backend %s: pop3: %w", opts.Name, err)
	}
	s.running.Go(func() { s.accept(s.imap, imapProtocol) })
	s.running.Go(func() { s.accept(s.pop3, pop3Protocol) })
	for _, p := range []struct {
		protocol protocol
		port     int
	}{{smtpProtocol, opts.SubmissionPort}, {sieveProtocol, opts.SievePort}, {lmtpProtocol, opts.LMTPPort}} {
		if p.port == 0 {
			continue
		}
		ln, err := listen(ns, addr, p.port, 0)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("start backend %s: %s: %w", opts.Name, p.protocol.name, err)
		}
		s.more[p.protocol.name] = ln
		s.running.Go(func() { s.accept(ln, p.protocol) })
	}
	return s, nil
}

func listen(ns *netns.NS, addr netip.Addr, port, standard int) (net.Listener, error) {
	switch port {
	case 0:
		port = standard
	case AnyPort:
		port = 0
	}
	return ns.Listen("tcp", netip.AddrPortFrom(addr, uint16(port)).String())
}

// IMAP returns the address of the IMAP listener.
func (s *Server) IMAP() netip.AddrPort { return s.imap.Addr().(*net.TCPAddr).AddrPort() }

// POP3 returns the address of the POP3 listener.
func (s *Server) POP3() netip.AddrPort { return s.pop3.Addr().(*net.TCPAddr).AddrPort() }

// Port returns the port of "submission", "sieve" or "lmtp".
func (s *Server) Port(protocol string) uint16 {
	return s.more[protocol].Addr().(*net.TCPAddr).AddrPort().Port()
}

// Name returns Options.Name.
func (s *Server) Name() string { return s.opts.Name }

// Mails returns what was delivered by LMTP, in the order of its end.
func (s *Server) Mails() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails)
}

// Behave changes the server's behaviour.
func (s *Server) Behave(b Behaviour) { s.behaviour.Store(&b) }

// Live returns the number of sessions per user that are logged in now.
func (s *Server) Live() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[string]int, len(s.live))
	for u, n := range s.live {
		m[u] = n
	}
	return m
}

// Sessions returns the records of all logins, ended ones first (in the order of their end).
func (s *Server) Sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Clone(s.history)
	for c := range s.open {
		if c.record.User != "" {
			all = append(all, c.record)
		}
	}
	return all
}

// Counts returns how many connections are open, how many sessions are logged in, and how many logins ever
// succeeded and failed.
func (s *Server) Counts() (connections, sessions int, logins, refused uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.live {
		sessions += n
	}
	return len(s.open), sessions, s.logins, s.rejected
}

// Notify sends an untagged line to all sessions of a user that are in IDLE, and says how many those were.
func (s *Server) Notify(user, text string) int {
	var theirs []*session
	s.mu.Lock()
	for c := range s.open {
		if c.record.User == user {
			theirs = append(theirs, c)
		}
	}
	s.mu.Unlock()
	n := 0
	for _, c := range theirs {
		if c.notify(text) {
			n++
		}
	}
	return n
}

// Close stops listening, closes every connection and waits until all of that has happened.
func (s *Server) Close() error {
	err := errors.Join(s.imap.Close(), s.pop3.Close())
	for _, ln := range s.more {
		err = errors.Join(err, ln.Close())
	}
	s.mu.Lock()
	s.closing = true
	for c := range s.open {
		c.conn.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
	return err
}

func (s *Server) accept(ln net.Listener, p protocol) {
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, most likely: those who have some will close them
			time.Sleep(10 * time.Millisecond)
			continue
		}
		_ = conn.(*net.TCPConn).SetKeepAlive(false) // an idle session is to be idle
		c := s.enter(conn.(*net.TCPConn), p)
		if c == nil {
			conn.Close()
			return
		}
		s.running.Go(func() {
			ending := c.serve()
			c.conn.Close()
			s.leave(c, ending)
		})
	}
}

// enter registers a connection; nil when the server is closing.
func (s *Server) enter(conn *net.TCPConn, p protocol) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil
	}
	s.lastID++
	c := newSession(s, conn, p, s.lastID)
	s.open[c] = struct{}{}
	return c
}

func (s *Server) leave(c *session, ending Ending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	user := c.record.User
	if user == "" {
		return
	}
	if s.live[user]--; s.live[user] == 0 {
		delete(s.live, user)
	}
	if s.closing {
		ending = Closed
	}
	c.record.End, c.record.Ending = time.Now(), ending
	if len(s.history) >= historyLimit {
		s.history = slices.Delete(s.history, 0, historyLimit/10)
	}
	s.history = append(s.history, c.record)
}
