// Package pop3 logs a user in at a POP3 backend: with USER and PASS (RFC 1939), or with AUTH PLAIN (RFC 5034) when one
// logs in for another. Both take two round trips, so that nothing is gained by asking for capabilities first.
package pop3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"usher/steer/prelogin"
	"usher/steer/sasl"
	"usher/steer/upstream"
)

// Login reads the greeting and logs in over conn, which is new. The errors are *upstream.Rejected when the backend said
// -ERR, upstream.ErrCredentials when nothing was sent, and temporary ones otherwise (see package upstream). The
// connection has no deadline afterwards; with an error it is only good for closing.
func Login(ctx context.Context, conn net.Conn, credentials upstream.Credentials, limits upstream.Limits) (upstream.Result, error) {
	if err := credentials.Check(); err != nil {
		return upstream.Result{}, err
	}
	limits = limits.OrDefault()
	b := &backend{Reader: prelogin.NewReader(conn, limits.Line, limits.Bytes), conn: conn, Credentials: credentials}
	var final []byte
	err := prelogin.Within(ctx, conn, time.Now().Add(limits.Time), func() (err error) {
		final, err = b.login()
		return err
	})
	if err != nil {
		return upstream.Result{}, err
	}
	return upstream.Result{Reply: final, Residual: b.Residual()}, nil
}

// backend is one login in progress.
type backend struct {
	*prelogin.Reader
	upstream.Credentials
	conn io.Writer
}

// login returns the final line with CRLF.
func (b *backend) login() ([]byte, error) {
	line, err := b.Line()
	if err != nil {
		return nil, upstream.Failed("read the greeting", err)
	}
	if classify(line) != positive {
		return nil, fmt.Errorf("%w: %s", upstream.ErrGreeting, upstream.Excerpt(line))
	}
	if b.Delegated() {
		line, err = b.authenticate()
	} else {
		line, err = b.userPass()
	}
	return line, upstream.Failed("log in", err)
}

func (b *backend) userPass() ([]byte, error) {
	if _, err := b.exchange("USER "+b.User, positive); err != nil {
		return nil, err
	}
	return b.exchange("PASS "+b.Password, positive)
}

func (b *backend) authenticate() ([]byte, error) {
	message, err := b.Plain().Encode()
	if err != nil {
		return nil, err
	}
	// Not as an initial response: with it the line could exceed 255 bytes (RFC 5034 section 4).
	if _, err := b.exchange("AUTH PLAIN", proceed); err != nil {
		var refused *upstream.Rejected
		if errors.As(err, &refused) { // it is the mechanism that was refused, not the user
			return nil, fmt.Errorf("%w: %s", upstream.ErrMechanism, upstream.Excerpt(refused.Raw))
		}
		return nil, err
	}
	return b.exchange(sasl.Encode(message), positive)
}

// exchange sends a command and reads its answer, which must be of the given sort.
func (b *backend) exchange(command string, want sort) ([]byte, error) {
	if _, err := io.WriteString(b.conn, command+"\r\n"); err != nil {
		return nil, err
	}
	line, err := b.Line()
	if err != nil {
		return nil, err
	}
	line = append(slices.Clone(line), "\r\n"...)
	switch classify(line) {
	case want:
		return line, nil
	case negative:
		return nil, &upstream.Rejected{Raw: line, Kind: kind(line)}
	default:
		return nil, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(line))
	}
}

// sort is what a backend's line means (RFC 1939 section 3, RFC 5034 section 4).
type sort uint8

const (
	garbage  sort = iota
	positive      // +OK
	negative      // -ERR
	proceed       // + and a challenge
)

func classify(line []byte) sort {
	word, _, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte{' '})
	switch string(word) {
	case "+OK":
		return positive
	case "-ERR":
		return negative
	case "+":
		return proceed
	default:
		return garbage
	}
}

// kind tells by the response code what a -ERR means (RFC 2449 section 8.1, RFC 3206). Without one it was the password.
func kind(line []byte) prelogin.Kind {
	_, text, _ := strings.Cut(string(line), " ")
	inner, coded := strings.CutPrefix(text, "[")
	code, _, closed := strings.Cut(inner, "]")
	if !coded || !closed {
		return prelogin.AuthFailed
	}
	switch strings.ToUpper(code) {
	case "SYS/TEMP":
		return prelogin.TempFail
	case "SYS/PERM":
		return prelogin.PermFail
	case "IN-USE":
		return prelogin.InUse
	case "LOGIN-DELAY":
		return prelogin.Unavailable
	default:
		return prelogin.AuthFailed
	}
}
