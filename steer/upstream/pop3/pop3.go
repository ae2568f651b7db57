// Package pop3 logs a user in at a POP3 backend: with USER and PASS (RFC 1939), or with AUTH PLAIN (RFC 5034) when one
// logs in for another. Both take two round trips, so that nothing is gained by asking for capabilities first.
package pop3

import (
	"bytes"
	"context"
	"encoding/base64"
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

// StartTLS changes a new connection to TLS, for Login.
func StartTLS(ctx context.Context, conn net.Conn, limits upstream.Limits, handshake upstream.Handshake) (net.Conn, error) {
	return upstream.StartTLS(ctx, conn, limits, handshake, "+OK after STLS\r\n", func(r *prelogin.Reader) error {
		b := &backend{Reader: r, conn: conn}
		if _, err := b.greeting(); err != nil {
			return err
		}
		_, err := b.exchange("STLS", positive)
		var refused *upstream.Rejected
		if errors.As(err, &refused) {
			return fmt.Errorf("%w: %s", upstream.ErrNoTLS, upstream.Excerpt(refused.Raw))
		}
		return err
	})
}

// backend is one login in progress.
type backend struct {
	*prelogin.Reader
	upstream.Credentials
	conn  io.Writer
	first string // a command of ours that goes along with the next one
}

// login returns the final line with CRLF.
func (b *backend) login() ([]byte, error) {
	line, err := b.greeting()
	if err != nil {
		return nil, upstream.Failed("read the greeting", err)
	}
	// Dovecot tells those whom it trusts so, to spare them a CAPA.
	if b.Forward != nil && bytes.HasPrefix(line, []byte("+OK [XCLIENT]")) {
		b.first = "XCLIENT " + b.Forward.XCLIENT(func(string) bool { return true }) + "\r\n"
	}
	switch {
	case b.Token():
		line, err = b.token()
	case b.Delegated():
		line, err = b.authenticate()
	default:
		line, err = b.userPass()
	}
	return line, upstream.Failed("log in", err)
}

func (b *backend) greeting() ([]byte, error) {
	line, err := b.Line()
	if err == nil && classify(line) != positive {
		err = fmt.Errorf("%w: %s", upstream.ErrGreeting, upstream.Excerpt(line))
	}
	return line, err
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
	if err := b.choose("PLAIN"); err != nil {
		return nil, err
	}
	return b.exchange(sasl.Encode(message), positive)
}

// choose names the mechanism. The message does not come along as an initial response: with it the line could exceed 255
// bytes (RFC 5034 section 4).
func (b *backend) choose(mechanism string) error {
	_, err := b.exchange("AUTH "+mechanism, proceed)
	var refused *upstream.Rejected
	if errors.As(err, &refused) { // it is the mechanism that was refused, not the user
		return fmt.Errorf("%w: %s", upstream.ErrMechanism, upstream.Excerpt(refused.Raw))
	}
	return err
}

// token sends the client's own message. A backend that does not take it says why in a challenge before its -ERR.
func (b *backend) token() ([]byte, error) {
	if err := b.choose(b.Mechanism); err != nil {
		return nil, err
	}
	line, err := b.exchange(sasl.Encode([]byte(b.Message)), positive)
	if !errors.Is(err, errProceed) {
		return line, err
	}
	_, text, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte{' '})
	challenge, err := sasl.Decode(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(line))
	}
	line, err = b.exchange(base64.StdEncoding.EncodeToString(sasl.Abandon(b.Mechanism)), positive)
	var refused *upstream.Rejected
	if errors.As(err, &refused) {
		refused.Challenge = challenge
	}
	return line, err
}

// errProceed is a challenge where a final answer was awaited; the line comes with it.
var errProceed = fmt.Errorf("%w: challenge", upstream.ErrReply)

// exchange sends a command and reads its answer, which must be of the given sort.
func (b *backend) exchange(command string, want sort) ([]byte, error) {
	first := b.first
	b.first = ""
	if _, err := io.WriteString(b.conn, first+command+"\r\n"); err != nil {
		return nil, err
	}
	if first != "" {
		if _, err := b.Line(); err != nil { // whatever it is, the client hears nothing of it
			return nil, err
		}
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
	case proceed:
		return line, errProceed
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
