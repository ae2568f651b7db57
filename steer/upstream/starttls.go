package upstream

import (
	"context"
	"fmt"
	"net"
	"time"

	"usher/steer/prelogin"
)

// Handshake does the TLS handshake with the backend on its connection, within the deadline that it has, and verifies it.
type Handshake func() (net.Conn, error)

// StartTLS changes a new connection to TLS. Say reads the greeting, asks for TLS and reads the go-ahead; greeting is what
// the protocol's Login shall read in place of what was said before: nothing that came in plaintext is believed, so that
// it carries no capabilities, and bytes behind the go-ahead are an error (prelogin.ErrPlaintext). The connection has no
// deadline afterwards; with an error it is only good for closing.
func StartTLS(ctx context.Context, conn net.Conn, limits Limits, handshake Handshake, greeting string, say func(*prelogin.Reader) error) (net.Conn, error) {
	limits = limits.OrDefault()
	var secret net.Conn
	err := prelogin.Within(ctx, conn, time.Now().Add(limits.Time), func() (err error) {
		r := prelogin.NewReader(conn, limits.Line, limits.Bytes)
		if err := say(r); err != nil {
			return Failed("ask for TLS", err)
		}
		if r.Buffered() > 0 {
			return fmt.Errorf("ask for TLS: %w", prelogin.ErrPlaintext)
		}
		secret, err = handshake()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &greeted{Conn: secret, greeting: greeting}, nil
}

// greeted is a connection that begins with a greeting.
type greeted struct {
	net.Conn
	greeting string
}

func (g *greeted) Read(p []byte) (int, error) {
	if g.greeting == "" {
		return g.Conn.Read(p)
	}
	n := copy(p, g.greeting)
	g.greeting = g.greeting[n:]
	return n, nil
}
