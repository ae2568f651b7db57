// Package smtp is what submission and LMTP backends have in common: the replies of RFC 5321 and the greeting with EHLO or
// LHLO.
package smtp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"usher/steer/prelogin"
	"usher/steer/upstream"
)

// maxLines bounds a reply. Real EHLO replies have up to 20.
const maxLines = 100

// Reply is one reply, of one or more lines.
type Reply struct {
	Code  int      // 200 to 599
	Lines []string // the text of each
	Raw   []byte   // as it came, with CRLF
}

// Class is the first digit of the code.
func (r Reply) Class() int { return r.Code / 100 }

// ReadReply reads one. What is none is upstream.ErrReply.
func ReadReply(r *prelogin.Reader) (Reply, error) {
	var reply Reply
	for len(reply.Lines) < maxLines {
		line, err := r.Line()
		if err != nil {
			return Reply{}, err
		}
		code, more, ok := parse(line)
		if !ok || reply.Lines != nil && code != reply.Code {
			return Reply{}, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(line))
		}
		reply.Code = code
		reply.Lines = append(reply.Lines, string(line[min(4, len(line)):]))
		reply.Raw = append(append(reply.Raw, line...), "\r\n"...)
		if !more {
			return reply, nil
		}
	}
	return Reply{}, fmt.Errorf("%w: more than %d lines", upstream.ErrReply, maxLines)
}

// parse reads "250-text", "250 text" or "250".
func parse(line []byte) (code int, more, ok bool) {
	if len(line) < 3 || len(line) > 3 && line[3] != ' ' && line[3] != '-' || bytes.IndexByte(line, 0) >= 0 || bytes.IndexByte(line, '\r') >= 0 {
		return 0, false, false
	}
	for _, c := range line[:3] {
		if c < '0' || c > '9' {
			return 0, false, false
		}
		code = 10*code + int(c-'0')
	}
	return code, len(line) > 3 && line[3] == '-', code >= 200 && code <= 599
}

// Conn is a conversation with a backend. Its methods work within the deadline that its connection has.
type Conn struct {
	*prelogin.Reader
	W        io.Writer
	Hello    string   // the command and its argument, as "EHLO client.example"
	keywords []string // of the answer to it, in upper case
}

// Command sends a line and reads its reply.
func (c *Conn) Command(line string) (Reply, error) {
	if _, err := io.WriteString(c.W, line+"\r\n"); err != nil {
		return Reply{}, err
	}
	return ReadReply(c.Reader)
}

// Greet reads the greeting and says hello.
func (c *Conn) Greet() error {
	reply, err := ReadReply(c.Reader)
	if err != nil {
		return err
	}
	if reply.Code != 220 {
		if reply.Code == 421 {
			return fmt.Errorf("%w: %s", upstream.ErrBye, upstream.Excerpt(reply.Raw))
		}
		return fmt.Errorf("%w: %s", upstream.ErrGreeting, upstream.Excerpt(reply.Raw))
	}
	return c.hello()
}

func (c *Conn) hello() error {
	reply, err := c.Command(c.Hello)
	if err != nil {
		return err
	}
	if reply.Code != 250 {
		return fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(reply.Raw))
	}
	c.keywords = nil
	for _, line := range reply.Lines[1:] {
		c.keywords = append(c.keywords, strings.ToUpper(line))
	}
	return nil
}

// Keyword returns the parameters of an EHLO keyword.
func (c *Conn) Keyword(name string) (parameters []string, ok bool) {
	for _, k := range c.keywords {
		if fields := strings.Fields(k); len(fields) > 0 && fields[0] == name {
			return fields[1:], true
		}
	}
	return nil, false
}

// Keywords returns the lines of all keywords but some.
func (c *Conn) Keywords(except ...string) []string {
	return slices.DeleteFunc(slices.Clone(c.keywords), func(k string) bool {
		name, _, _ := strings.Cut(k, " ")
		return name == "" || slices.Contains(except, name)
	})
}

// Introduce tells the backend who the client is, if it wants to know. The session begins anew then.
func (c *Conn) Introduce(f *upstream.Forward) error {
	wanted, ok := c.Keyword("XCLIENT")
	if f == nil || !ok {
		return nil
	}
	attributes := f.MailXCLIENT(func(a string) bool { return slices.Contains(wanted, a) })
	if attributes == "" {
		return nil
	}
	reply, err := c.Command("XCLIENT " + attributes)
	if err != nil {
		return err
	}
	if reply.Class() != 2 {
		return nil // it does not want it from us
	}
	return c.hello()
}

// StartTLS changes a new connection to TLS; hello is the command that asks for keywords, "EHLO" or "LHLO".
func StartTLS(ctx context.Context, conn net.Conn, limits upstream.Limits, handshake upstream.Handshake, hello string) (net.Conn, error) {
	return upstream.StartTLS(ctx, conn, limits, handshake, "220 after STARTTLS\r\n", func(r *prelogin.Reader) error {
		c := &Conn{Reader: r, W: conn, Hello: hello + " " + Literal(conn.LocalAddr())}
		if err := c.Greet(); err != nil {
			return err
		}
		reply, err := c.Command("STARTTLS")
		if err == nil && reply.Code != 220 {
			err = fmt.Errorf("%w: %s", upstream.ErrNoTLS, upstream.Excerpt(reply.Raw))
		}
		return err
	})
}

// Literal is an address as a name in EHLO (RFC 5321 section 4.1.3).
func Literal(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return "[127.0.0.1]"
	}
	addr := tcp.AddrPort().Addr().Unmap()
	if addr.Is4() {
		return "[" + addr.String() + "]"
	}
	return "[IPv6:" + addr.WithZone("").String() + "]"
}

// Within gives f the time of limits.
func Within(ctx context.Context, conn net.Conn, limits upstream.Limits, f func() error) error {
	return prelogin.Within(ctx, conn, time.Now().Add(limits.Time), f)
}
