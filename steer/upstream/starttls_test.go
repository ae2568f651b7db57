package upstream_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/steer/upstream"
	"usher/steer/upstream/imap"
	"usher/steer/upstream/pop3"
)

// Nothing that a backend said in plaintext is believed under TLS, and without TLS nothing is sent.
func TestStartTLS(t *testing.T) {
	type starter = func(context.Context, net.Conn, upstream.Limits, upstream.Handshake) (net.Conn, error)
	type login = func(context.Context, net.Conn, upstream.Credentials, upstream.Limits) (upstream.Result, error)
	for _, tt := range []struct {
		name   string
		start  starter
		login  login
		plain  string
		secret string // what the backend says under TLS; empty: it must not come so far
		sent   string // in plaintext
		said   string // under TLS
		err    error
	}{
		{
			name: "imap", start: imap.StartTLS, login: imap.Login,
			plain: "* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED AUTH=PLAIN SASL-IR] hi\r\n* CAPABILITY EVIL\r\nusher OK go\r\n", sent: "usher STARTTLS\r\n",
			secret: "* CAPABILITY IMAP4rev1\r\nusher OK\r\na OK in\r\n", said: "usher CAPABILITY\r\na LOGIN \"fred\" \"x\"\r\n",
		},
		{name: "imap PREAUTH", start: imap.StartTLS, plain: "* PREAUTH hi\r\nusher OK go\r\n", err: upstream.ErrGreeting},
		{name: "imap BYE", start: imap.StartTLS, plain: "* BYE no\r\n", err: upstream.ErrBye},
		{name: "imap refuses", start: imap.StartTLS, plain: "* OK hi\r\nusher BAD what\r\n", sent: "usher STARTTLS\r\n", err: upstream.ErrNoTLS},
		{name: "imap with more behind", start: imap.StartTLS, plain: "* OK hi\r\nusher OK go\r\n* OK [CAPABILITY X]\r\n", sent: "usher STARTTLS\r\n", err: prelogin.ErrPlaintext},
		{name: "imap ends", start: imap.StartTLS, plain: "* OK hi\r\n", sent: "usher STARTTLS\r\n", err: io.ErrUnexpectedEOF},
		{
			name: "pop3", start: pop3.StartTLS, login: pop3.Login, plain: "+OK hi\r\n+OK go\r\n", sent: "STLS\r\n",
			secret: "+OK\r\n+OK in\r\n", said: "USER fred\r\nPASS x\r\n",
		},
		{name: "pop3 refuses", start: pop3.StartTLS, plain: "+OK hi\r\n-ERR what\r\n", sent: "STLS\r\n", err: upstream.ErrNoTLS},
		{name: "pop3 with more behind", start: pop3.StartTLS, plain: "+OK hi\r\n+OK go\r\n+OK in\r\n", sent: "STLS\r\n", err: prelogin.ErrPlaintext},
		{name: "pop3 is full", start: pop3.StartTLS, plain: "-ERR full\r\n", err: upstream.ErrGreeting},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plain, secret := scriptconn.New(tt.plain), scriptconn.New(tt.secret)
			shaken := false
			conn, err := tt.start(t.Context(), plain, upstream.Limits{}, func() (net.Conn, error) {
				shaken = true
				return secret, nil
			})
			if !errors.Is(err, tt.err) || shaken != (tt.err == nil) || plain.Written() != tt.sent {
				t.Fatalf("got %v, handshake %v\n%s", err, shaken, plain.Dialogue())
			}
			if err != nil {
				return
			}
			result, err := tt.login(t.Context(), conn, upstream.Credentials{User: "fred", Password: "x", Tag: "a"}, upstream.Limits{})
			if err != nil || secret.Written() != tt.said || !strings.HasSuffix(string(result.Reply), "OK in\r\n") {
				t.Errorf("got %q, %v\n%s", result.Reply, err, secret.Dialogue())
			}
		})
	}
	broken := errors.New("broken")
	_, err := imap.StartTLS(t.Context(), scriptconn.New("* OK\r\nusher OK\r\n"), upstream.Limits{}, func() (net.Conn, error) { return nil, broken })
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// Tokens go through as they are, and the backend's reason comes back with the refusal.
func TestTokens(t *testing.T) {
	credentials := upstream.Credentials{User: "fred", Password: "t", Tag: "a", Mechanism: "XOAUTH2", Message: "user=fred\x01auth=Bearer t\x01\x01"}
	const b64 = "dXNlcj1mcmVkAWF1dGg9QmVhcmVyIHQBAQ=="
	const challenge = `{"status":"401"}`
	for _, tt := range []struct {
		name, in, out string
		login         func(context.Context, net.Conn, upstream.Credentials, upstream.Limits) (upstream.Result, error)
		refused       bool
		err           error
	}{
		{name: "imap", login: imap.Login, in: "* OK [CAPABILITY AUTH=XOAUTH2 SASL-IR] x\r\na OK in\r\n", out: "a AUTHENTICATE XOAUTH2 " + b64 + "\r\n"},
		{name: "imap in two steps", login: imap.Login, in: "* OK [CAPABILITY AUTH=XOAUTH2] x\r\n+ \r\na OK in\r\n", out: "a AUTHENTICATE XOAUTH2\r\n" + b64 + "\r\n"},
		{name: "imap refused", login: imap.Login, in: "* OK [CAPABILITY AUTH=XOAUTH2 SASL-IR] x\r\n+ eyJzdGF0dXMiOiI0MDEifQ==\r\na NO no\r\n", out: "a AUTHENTICATE XOAUTH2 " + b64 + "\r\n\r\n", refused: true},
		{name: "imap without", login: imap.Login, in: "* OK [CAPABILITY AUTH=PLAIN SASL-IR] x\r\n", err: upstream.ErrMechanism},
		{name: "pop3", login: pop3.Login, in: "+OK\r\n+ \r\n+OK in\r\n", out: "AUTH XOAUTH2\r\n" + b64 + "\r\n"},
		{name: "pop3 refused", login: pop3.Login, in: "+OK\r\n+ \r\n+ eyJzdGF0dXMiOiI0MDEifQ==\r\n-ERR no\r\n", out: "AUTH XOAUTH2\r\n" + b64 + "\r\n\r\n", refused: true},
		{name: "pop3 without", login: pop3.Login, in: "+OK\r\n-ERR what\r\n", out: "AUTH XOAUTH2\r\n", err: upstream.ErrMechanism},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := scriptconn.New(tt.in)
			_, err := tt.login(t.Context(), conn, credentials, upstream.Limits{})
			if conn.Written() != tt.out {
				t.Errorf("sent:\n%s", conn.Dialogue())
			}
			var rejected *upstream.Rejected
			if tt.refused {
				if !errors.As(err, &rejected) || string(rejected.Challenge) != challenge {
					t.Errorf("got %v", err)
				}
			} else if !errors.Is(err, tt.err) {
				t.Errorf("got %v", err)
			}
		})
	}
}
