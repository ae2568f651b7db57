// Package lmtp speaks LMTP (RFC 2033) with a backend: one connection, transactions one after the other.
package lmtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"time"

	"usher/steer/prelogin"
	"usher/steer/upstream"
	"usher/steer/upstream/smtp"
)

// StartTLS changes a new connection to TLS, for Open.
func StartTLS(ctx context.Context, conn net.Conn, limits upstream.Limits, handshake upstream.Handshake) (net.Conn, error) {
	return smtp.StartTLS(ctx, conn, limits, handshake, "LHLO")
}

// delivery is how long a backend may take to store a mail (RFC 5321 section 4.5.3.2.6).
const delivery = 10 * time.Minute

// Conn is a connection to a backend. After an error, which is always one of the connection and never a reply, it is only
// good for closing. It is used by one goroutine.
type Conn struct {
	smtp.Conn
	conn   net.Conn
	limits upstream.Limits
}

// Open reads the greeting over conn, which is new, and says hello in the client's name. With an error it has not closed it.
func Open(ctx context.Context, conn net.Conn, hello string, forward *upstream.Forward, limits upstream.Limits) (*Conn, error) {
	limits = limits.OrDefault()
	c := &Conn{conn: conn, limits: limits}
	// Transactions may go on for ever: there is no limit for all of their replies together.
	c.Conn = smtp.Conn{Reader: prelogin.NewReader(conn, limits.Line, math.MaxInt), W: conn, Hello: "LHLO " + hello}
	err := smtp.Within(ctx, conn, limits, func() error {
		if err := c.Greet(); err != nil {
			return err
		}
		return c.Introduce(forward)
	})
	if err != nil {
		return nil, upstream.Failed("read the greeting", err)
	}
	return c, nil
}

func (c *Conn) command(ctx context.Context, line string) (reply smtp.Reply, err error) {
	err = smtp.Within(ctx, c.conn, c.limits, func() (err error) {
		reply, err = c.Command(line)
		return err
	})
	verb, _, _ := strings.Cut(line, " ")
	return reply, upstream.Failed(verb, bye(reply, err))
}

// bye makes an error of a reply with which the backend closes the connection.
func bye(reply smtp.Reply, err error) error {
	if err == nil && reply.Code == 421 {
		return fmt.Errorf("%w: %s", upstream.ErrBye, upstream.Excerpt(reply.Raw))
	}
	return err
}

// Mail begins a transaction. Of the parameters, those go along that the backend has announced.
func (c *Conn) Mail(ctx context.Context, path string, parameters []string) (smtp.Reply, error) {
	line := "MAIL FROM:" + path
	for _, p := range parameters {
		keyword, _, _ := strings.Cut(p, "=")
		if keyword == "BODY" {
			keyword = "8BITMIME"
		}
		if _, ok := c.Keyword(keyword); ok {
			line += " " + p
		}
	}
	return c.command(ctx, line)
}

// Rcpt names a recipient.
func (c *Conn) Rcpt(ctx context.Context, path string) (smtp.Reply, error) {
	return c.command(ctx, "RCPT TO:"+path)
}

// Data asks to send the mail: 354 is yes.
func (c *Conn) Data(ctx context.Context) (smtp.Reply, error) { return c.command(ctx, "DATA") }

// Write sends a piece of the mail, dots doubled as the client sent them, or the line with a dot that ends it.
func (c *Conn) Write(ctx context.Context, p []byte) error {
	return upstream.Failed("send the mail", smtp.Within(ctx, c.conn, c.limits, func() error {
		_, err := c.conn.Write(p)
		return err
	}))
}

// Stored reads the reply for one recipient, in the order of Rcpt.
func (c *Conn) Stored(ctx context.Context) (reply smtp.Reply, err error) {
	err = prelogin.Within(ctx, c.conn, time.Now().Add(delivery), func() (err error) {
		reply, err = smtp.ReadReply(c.Reader)
		return err
	})
	return reply, upstream.Failed("wait for the reply", bye(reply, err))
}

// Reset ends a transaction without a mail.
func (c *Conn) Reset(ctx context.Context) error {
	reply, err := c.command(ctx, "RSET")
	if err == nil && reply.Class() != 2 {
		err = fmt.Errorf("RSET: %w: %s", upstream.ErrReply, upstream.Excerpt(reply.Raw))
	}
	return err
}

// Quit says goodbye, without waiting for an answer, and closes.
func (c *Conn) Quit() error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, err := io.WriteString(c.conn, "QUIT\r\n")
	return errors.Join(err, c.Close())
}

// Close closes the connection.
func (c *Conn) Close() error { return c.conn.Close() }
