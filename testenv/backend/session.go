package backend

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// protocol is what a listener speaks.
type protocol struct {
	name  string
	serve func(*session) (Ending, error)
}

var (
	imapProtocol  = protocol{"imap", (*session).imap}
	pop3Protocol  = protocol{"pop3", (*session).pop3}
	smtpProtocol  = protocol{"submission", (*session).submission}
	sieveProtocol = protocol{"sieve", (*session).sieve}
	lmtpProtocol  = protocol{"lmtp", (*session).lmtp}
)

// bufferSize is also the longest line that a client may send. Small, because there are thousands.
const bufferSize = 4096

// errGarbled ends a session whose peer sends what no client of ours would.
var errGarbled = errors.New("peer speaks nonsense")

// duplex is a connection of which one direction can be closed.
type duplex interface {
	net.Conn
	CloseWrite() error
}

type session struct {
	server *Server
	proto  protocol
	tcp    *net.TCPConn
	conn   duplex // tcp, or TLS over it
	r      *bufio.Reader
	record Session // written under server.mu

	idling atomic.Bool
	wmu    sync.Mutex // Notify writes too, while the session is in IDLE
	w      *bufio.Writer
}

func newSession(s *Server, conn *net.TCPConn, p protocol, id uint64) *session {
	c := &session{server: s, proto: p, tcp: conn, conn: conn}
	if s.opts.Implicit {
		c.conn = tls.Server(conn, s.opts.TLS)
	}
	c.r = bufio.NewReaderSize(c.conn, bufferSize)
	c.w = bufio.NewWriterSize(c.conn, bufferSize)
	c.record = Session{
		ID: id, Protocol: p.name,
		Remote: conn.RemoteAddr().(*net.TCPAddr).AddrPort(),
		Local:  conn.LocalAddr().(*net.TCPAddr).AddrPort(),
	}
	return c
}

// serve speaks with the peer until the end.
func (c *session) serve() Ending {
	b := c.server.behaviour.Load()
	if b.Hang {
		_, err := io.Copy(io.Discard, c.conn)
		return ending(err)
	}
	time.Sleep(b.Delay)
	if b.Bye {
		c.printf("%s", map[string]string{
			"imap": "* BYE Too many guests.\r\n", "pop3": "-ERR [SYS/TEMP] Too many guests.\r\n",
			"submission": "421 4.3.2 Too many guests.\r\n", "lmtp": "421 4.3.2 Too many guests.\r\n", "sieve": "BYE \"Too many guests.\"\r\n",
		}[c.proto.name])
		c.flush()
		return Closed
	}
	how, err := c.proto.serve(c)
	if err != nil {
		return ending(err)
	}
	c.flush()
	return how
}

// offersTLS reports whether STARTTLS is possible now.
func (c *session) offersTLS() bool { return c.server.opts.TLS != nil && c.conn == duplex(c.tcp) }

// startTLS changes to TLS, the go-ahead was printed. Nothing may have come behind the command.
func (c *session) startTLS() error {
	if c.r.Buffered() > 0 {
		return errGarbled
	}
	if err := c.flush(); err != nil {
		return err
	}
	c.conn = tls.Server(c.tcp, c.server.opts.TLS)
	c.r.Reset(c.conn)
	c.w.Reset(c.conn)
	return nil
}

// ending translates the error that ended a session.
func ending(err error) Ending {
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return FIN
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ETIMEDOUT):
		return RST
	case errors.Is(err, net.ErrClosed):
		return Closed
	default:
		return Garbled
	}
}

// line reads a line without its CRLF, after everything written has been sent.
func (c *session) line() (string, error) {
	if err := c.turn(); err != nil {
		return "", err
	}
	b, err := c.r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			err = errGarbled
		}
		return "", err
	}
	return strings.TrimSuffix(string(b[:len(b)-1]), "\r"), nil
}

// turn flushes when the peer has nothing more to say at the moment, so that pipelined commands share packets.
func (c *session) turn() error {
	if c.r.Buffered() > 0 {
		return nil
	}
	return c.flush()
}

func (c *session) printf(format string, args ...any) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	fmt.Fprintf(c.w, format, args...)
}

// Write implements io.Writer for large bodies.
func (c *session) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.w.Write(p)
}

func (c *session) flush() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.w.Flush()
}

// notify sends a line if the session is in IDLE.
func (c *session) notify(text string) bool {
	if !c.idling.Load() { // asked first: whoever is busy may hold the lock for as long as the peer does not read
		return false
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	fmt.Fprintf(c.w, "* %s\r\n", text)
	return c.w.Flush() == nil
}

// login judges credentials and, when they are good, makes this a session of the user.
func (c *session) login(authcid, authzid, password string) Refusal {
	s := c.server
	b := s.behaviour.Load()
	time.Sleep(b.Delay)
	verdict, user, master := s.judge(authcid, authzid, password)
	if verdict == Accept && b.Refuse != nil {
		verdict = b.Refuse(user)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if verdict != Accept {
		s.rejected++
		return verdict
	}
	s.logins++
	s.live[user]++
	c.record.User, c.record.Master, c.record.Login = user, master, time.Now()
	return Accept
}

func (s *Server) judge(authcid, authzid, password string) (verdict Refusal, user, master string) {
	o := &s.opts
	if u, m, ok := strings.Cut(authcid, "*"); ok && o.Master != "" {
		authzid, authcid = u, m
	}
	if authcid == "" {
		return Reject, "", ""
	}
	if authzid != "" && authzid != authcid {
		if o.Master == "" || authcid != o.Master || password != o.MasterPassword {
			return Reject, "", ""
		}
		return Accept, authzid, authcid
	}
	if o.Password != "" && password != o.Password {
		return Reject, "", ""
	}
	return Accept, authcid, ""
}

// plain takes a SASL PLAIN message apart (RFC 4616): base64 of authzid NUL authcid NUL password.
func plain(b64 string) (authcid, authzid, password string, ok bool) {
	raw, err := base64.StdEncoding.DecodeString(b64)
	if err != nil {
		return "", "", "", false
	}
	p := strings.Split(string(raw), "\x00")
	if len(p) != 3 {
		return "", "", "", false
	}
	return p[1], p[0], p[2], true
}
