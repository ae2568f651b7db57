package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/steer/upstream"
	"usher/steer/upstream/imap"
	"usher/steer/upstream/pop3"
	"usher/steer/upstream/sieve"
	"usher/steer/upstream/submission"
)

type loginFunc = func(context.Context, net.Conn, upstream.Credentials, upstream.Limits) (upstream.Result, error)

const plain = "AGZyZWQAeA==" // \0fred\0x

// What is said to submission and ManageSieve backends, and what becomes of their answers.
func TestTextLogins(t *testing.T) {
	const hello = "250-mx\r\n250-PIPELINING\r\n250 AUTH LOGIN PLAIN XOAUTH2\r\n"
	const sieves = "\"IMPLEMENTATION\" \"x\"\r\n\"SASL\" \"PLAIN\"\r\n\"SIEVE\" \"a b\"\r\nOK \"hi\"\r\n"
	const ehlo = "EHLO me\r\n"
	token := upstream.Credentials{User: "fred", Password: "t", Hello: "me", Mechanism: "XOAUTH2", Message: "m"}
	for _, tt := range []struct {
		name        string
		login       loginFunc
		credentials upstream.Credentials // zero: fred with his own password
		in, out     string
		reply       string
		rest        string
		capable     string
		refused     string // the backend's words
		kind        prelogin.Kind
		err         error
	}{
		{name: "submission", login: submission.Login, in: "220-mx\r\n220 hi\r\n" + hello + "235-in\r\n235 2.7.0 in\r\nrest", out: ehlo + "AUTH PLAIN " + plain + "\r\n", reply: "235-in\r\n235 2.7.0 in\r\n", rest: "rest", capable: "PIPELINING"},
		{name: "submission, long", login: submission.Login, credentials: upstream.Credentials{User: "fred", Password: strings.Repeat("x", 400), Hello: "me"}, in: "220 hi\r\n" + hello + "334 \r\n235 in\r\n", out: ehlo + "AUTH PLAIN\r\nAGZyZWQA" + strings.Repeat("eHh4", 133) + "eA==\r\n", reply: "235 in\r\n", capable: "PIPELINING"},
		{name: "submission, wrong", login: submission.Login, in: "220 hi\r\n" + hello + "535 5.7.8 no\r\n", out: ehlo + "AUTH PLAIN " + plain + "\r\n", refused: "535 5.7.8 no\r\n", kind: prelogin.AuthFailed},
		{name: "submission, later", login: submission.Login, in: "220 hi\r\n" + hello + "454 4.7.0 no\r\n", out: ehlo + "AUTH PLAIN " + plain + "\r\n", refused: "454 4.7.0 no\r\n", kind: prelogin.TempFail},
		{name: "submission, forbidden", login: submission.Login, in: "220 hi\r\n" + hello + "550 no\r\n", out: ehlo + "AUTH PLAIN " + plain + "\r\n", refused: "550 no\r\n", kind: prelogin.PermFail},
		{name: "submission, full", login: submission.Login, in: "421 full\r\n", err: upstream.ErrBye},
		{name: "submission, full at AUTH", login: submission.Login, in: "220 hi\r\n" + hello + "421 full\r\n", out: ehlo + "AUTH PLAIN " + plain + "\r\n", err: upstream.ErrBye},
		{name: "submission, no AUTH", login: submission.Login, in: "220 hi\r\n250 mx\r\n", out: ehlo, err: upstream.ErrMechanism},
		{name: "submission, not SMTP", login: submission.Login, in: "* OK hi\r\n", err: upstream.ErrReply},
		{name: "submission, mixed codes", login: submission.Login, in: "220-hi\r\n250 hi\r\n", err: upstream.ErrReply},
		{name: "submission, token", login: submission.Login, credentials: token, in: "220 hi\r\n" + hello + "334 eA==\r\n535 no\r\n", out: ehlo + "AUTH XOAUTH2 bQ==\r\n\r\n", refused: "535 no\r\n", kind: prelogin.AuthFailed},
		{name: "submission, bad name", login: submission.Login, credentials: upstream.Credentials{User: "fred", Hello: "a b"}, in: "220 hi\r\n", err: upstream.ErrCredentials},

		{name: "sieve", login: sieve.Login, in: sieves + "OK (WARNINGS) \"in\"\r\nrest", out: "AUTHENTICATE \"PLAIN\" \"" + plain + "\"\r\n", reply: "OK (WARNINGS) \"in\"\r\n", rest: "rest", capable: `"IMPLEMENTATION" "x"|"SIEVE" "a b"`},
		{name: "sieve, literal", login: sieve.Login, in: sieves + "OK {5}\r\nab\r\nc\r\nrest", out: "AUTHENTICATE \"PLAIN\" \"" + plain + "\"\r\n", reply: "OK {5}\r\nab\r\nc\r\n", rest: "rest", capable: `"IMPLEMENTATION" "x"|"SIEVE" "a b"`},
		{name: "sieve, wrong", login: sieve.Login, in: sieves + "NO \"no\"\r\n", out: "AUTHENTICATE \"PLAIN\" \"" + plain + "\"\r\n", refused: "NO \"no\"\r\n", kind: prelogin.AuthFailed},
		{name: "sieve, later", login: sieve.Login, in: sieves + "NO (TRYLATER) \"no\"\r\n", out: "AUTHENTICATE \"PLAIN\" \"" + plain + "\"\r\n", refused: "NO (TRYLATER) \"no\"\r\n", kind: prelogin.TempFail},
		{name: "sieve, bye", login: sieve.Login, in: "BYE \"full\"\r\n", err: upstream.ErrBye},
		{name: "sieve, no PLAIN", login: sieve.Login, in: "\"SASL\" \"\"\r\n\"STARTTLS\"\r\nOK\r\n", err: upstream.ErrMechanism},
		{name: "sieve, empty line", login: sieve.Login, in: "\r\n", err: upstream.ErrReply},
		{name: "sieve, giant literal", login: sieve.Login, in: "OK {99999999}\r\n", err: prelogin.ErrLiteral},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.credentials
			if c.User == "" {
				c = upstream.Credentials{User: "fred", Password: "x", Hello: "me"}
			}
			conn := scriptconn.New(tt.in)
			result, err := tt.login(t.Context(), conn, c, upstream.Limits{})
			var rejected *upstream.Rejected
			switch {
			case tt.refused != "":
				if !errors.As(err, &rejected) || string(rejected.Raw) != tt.refused || rejected.Kind != tt.kind {
					t.Errorf("got %v", err)
				}
			case !errors.Is(err, tt.err):
				t.Errorf("got %v, want %v", err, tt.err)
			}
			got := string(result.Residual) + conn.Unread()
			if conn.Written() != tt.out || string(result.Reply) != tt.reply || tt.reply != "" && (got != tt.rest || strings.Join(result.Capabilities, "|") != tt.capable) {
				t.Errorf("result %q, rest %q\n%s", result, got, conn.Dialogue())
			}
		})
	}
}

// What backends are told of the client, where they want to know.
func TestForward(t *testing.T) {
	forward := &upstream.Forward{
		Client: netip.MustParseAddrPort("[2001:db8::1]:1000"), Local: netip.MustParseAddrPort("192.0.2.1:143"),
		Session: "s+1", Fields: map[string]string{"b": `x"y`, "a": "1"},
	}
	const id = `usher ID ("x-originating-ip" "2001:db8::1" "x-originating-port" "1000" "x-connected-ip" "192.0.2.1" "x-connected-port" "143" "x-session-id" "s+1" "x-forward-a" "1" "x-forward-b" "x\"y")` + "\r\n"
	for _, tt := range []struct {
		name    string
		login   loginFunc
		in, out string
		reply   string
	}{
		{"imap", imap.Login, "* OK [CAPABILITY ID SASL-IR AUTH=PLAIN] x\r\n* ID NIL\r\nusher OK\r\na OK in\r\n", id + "a AUTHENTICATE PLAIN " + plain + "\r\n", "a OK in\r\n"},
		{"imap, not liked", imap.Login, "* OK [CAPABILITY ID] x\r\nusher BAD\r\na OK in\r\n", id + "a LOGIN \"fred\" \"x\"\r\n", "a OK in\r\n"},
		{"imap, not wanted", imap.Login, "* OK [CAPABILITY IMAP4rev1] x\r\na OK in\r\n", "a LOGIN \"fred\" \"x\"\r\n", "a OK in\r\n"},
		{"pop3", pop3.Login, "+OK [XCLIENT] hi\r\n+OK\r\n+OK\r\n+OK in\r\n", "XCLIENT ADDR=2001:db8::1 PORT=1000 SESSION=s+2B1\r\nUSER fred\r\nPASS x\r\n", "+OK in\r\n"},
		{"pop3, not wanted", pop3.Login, "+OK hi\r\n+OK\r\n+OK in\r\n", "USER fred\r\nPASS x\r\n", "+OK in\r\n"},
		{"submission", submission.Login, "220 hi\r\n250-mx\r\n250 XCLIENT ADDR PORT LOGIN\r\n220 hi\r\n250-mx\r\n250 AUTH PLAIN\r\n235 in\r\n", "EHLO me\r\nXCLIENT ADDR=IPV6:2001:db8::1 PORT=1000\r\nEHLO me\r\nAUTH PLAIN " + plain + "\r\n", "235 in\r\n"},
		{"sieve", sieve.Login, "\"SASL\" \"PLAIN\"\r\n\"XCLIENT\"\r\nOK\r\nOK\r\nOK \"in\"\r\n", "XCLIENT ADDR=2001:db8::1 PORT=1000 SESSION=s+2B1\r\nAUTHENTICATE \"PLAIN\" \"" + plain + "\"\r\n", "OK \"in\"\r\n"},
		{"submission, refused", submission.Login, "220 hi\r\n250-mx\r\n250-AUTH PLAIN\r\n250 XCLIENT ADDR\r\n550 no\r\n235 in\r\n", "EHLO me\r\nXCLIENT ADDR=IPV6:2001:db8::1\r\nAUTH PLAIN " + plain + "\r\n", "235 in\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := scriptconn.New(tt.in)
			c := upstream.Credentials{User: "fred", Password: "x", Tag: "a", Hello: "me", Forward: forward}
			result, err := tt.login(t.Context(), conn, c, upstream.Limits{})
			if err != nil || conn.Written() != tt.out || string(result.Reply) != tt.reply {
				t.Errorf("%q, %v\n%s", result.Reply, err, conn.Dialogue())
			}
		})
	}
}

// However a backend's bytes arrive, the outcome is the same, and those behind the reply are left alone.
func FuzzTextReplies(f *testing.F) {
	f.Add([]byte("220 hi\r\n250-mx\r\n250 AUTH PLAIN\r\n235 in\r\nrest"), uint8(0), false)
	f.Add([]byte("220 hi\r\n250-mx\r\n250-XCLIENT ADDR\r\n250 AUTH PLAIN\r\n220\r\n250 x\r\n"), uint8(3), false)
	f.Add([]byte("\"SASL\" \"PLAIN\"\r\nOK {3}\r\na\r\n\r\nNO {2}\r\nab (x)\r\n"), uint8(0), true)
	f.Add([]byte("{4}\r\nSASL \"PLAIN\"\nOK\nOK \"\\\"\"\n"), uint8(1), true)
	f.Fuzz(func(t *testing.T, data []byte, size uint8, isSieve bool) {
		login := submission.Login
		if isSieve {
			login = sieve.Login
		}
		c := upstream.Credentials{User: "fred", Password: "x", Hello: "me", Forward: &upstream.Forward{Client: netip.MustParseAddrPort("192.0.2.1:1")}}
		limits := upstream.Limits{Line: 128, Bytes: 512}
		conn := scriptconn.New(string(data))
		result, err := login(t.Context(), conn, c, limits)
		parts := scriptconn.Bytewise(int(size)+1, string(data))
		again, errAgain := login(t.Context(), parts, c, limits)
		if fmt.Sprint(err) != fmt.Sprint(errAgain) || string(result.Reply) != string(again.Reply) || conn.Written() != parts.Written() {
			t.Errorf("in one segment %q, %v; in segments of %d bytes %q, %v", result, err, size+1, again, errAgain)
		}
		if err != nil {
			return
		}
		rest := string(result.Residual) + conn.Unread()
		if rest != string(again.Residual)+parts.Unread() || !strings.HasSuffix(string(data), rest) || !strings.HasSuffix(string(result.Reply), "\r\n") {
			t.Errorf("reply %q, rest %q, in segments %q", result.Reply, rest, string(again.Residual)+parts.Unread())
		}
	})
}
