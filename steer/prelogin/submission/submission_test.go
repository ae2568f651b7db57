package submission

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/steer/prelogin/internal/dialoguetest"
	"usher/steer/sasl"
)

const greeting = "220 mx.test ESMTP Usher ready.\r\n"

func open(conn net.Conn, cfg prelogin.Config) prelogin.Dialogue {
	cfg.Name = "mx.test"
	return New(conn, cfg)
}

// Each attempt is refused, so that the dialogue goes on to the end of the input.
func TestDialogue(t *testing.T) {
	const failed = "535 5.7.8 Authentication failed.\r\n"
	const hello = "250-mx.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 AUTH PLAIN LOGIN\r\n"
	const private = "250-mx.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n"
	const plain = "AGZyZWQAeA==" // \0fred\0x
	login := func(mechanism string) []prelogin.Login {
		return []prelogin.Login{{User: "fred", Password: "x", Mechanism: mechanism, Hello: "me"}}
	}
	for _, tt := range []struct {
		name   string
		in     string
		out    string // behind the greeting
		logins []prelogin.Login
		cfg    prelogin.Config
		err    error // io.EOF when left out
	}{
		{name: "silence"},
		{name: "ehlo", in: "EHLO me\r\n", out: hello},
		{name: "helo", in: "HELO me\r\n", out: "250 mx.test\r\n"},
		{name: "learnt capabilities", in: "EHLO me\r\n", cfg: prelogin.Config{Capabilities: []string{"SIZE 100"}}, out: "250-mx.test\r\n250-SIZE 100\r\n250 AUTH PLAIN LOGIN\r\n"},
		{name: "no name", in: "EHLO\r\nEHLO a b\r\nEHLO \x01\r\n", out: strings.Repeat("501 5.5.4 Invalid name.\r\n", 3) + "421 4.7.0 Too many invalid commands.\r\n", err: prelogin.ErrInvalid},
		{name: "without login", in: "EHLO me\r\nMAIL FROM:<a@b>\r\nNOOP\r\nRSET\r\nFOO\r\nQUIT\r\nNOOP\r\n", out: hello + "530 5.7.0 Authentication required.\r\n250 2.0.0 OK\r\n250 2.0.0 OK\r\n500 5.5.1 Unknown command.\r\n221 2.0.0 Bye\r\n"},
		{name: "plain", in: "EHLO me\r\nAUTH PLAIN " + plain + "\r\n", out: hello + failed, logins: login("PLAIN")},
		{name: "plain, asked", in: "EHLO me\r\nauth plain\r\n" + plain + "\r\n", out: hello + "334 \r\n" + failed, logins: login("PLAIN")},
		{name: "login", in: "EHLO me\r\nAUTH LOGIN\r\nZnJlZA==\r\neA==\r\n", out: hello + "334 VXNlcm5hbWU6\r\n334 UGFzc3dvcmQ6\r\n" + failed, logins: login("LOGIN")},
		{name: "login, initial", in: "EHLO me\r\nAUTH LOGIN ZnJlZA==\r\neA==\r\n", out: hello + "334 UGFzc3dvcmQ6\r\n" + failed, logins: login("LOGIN")},
		{name: "aborted", in: "EHLO me\r\nAUTH PLAIN\r\n*\r\n", out: hello + "334 \r\n501 5.7.0 Authentication aborted by client.\r\n"},
		{name: "not base64", in: "EHLO me\r\nAUTH PLAIN !\r\nAUTH PLAIN\r\n!\r\n", out: hello + "501 5.5.2 Invalid base64 data.\r\n334 \r\n501 5.5.2 Invalid base64 data.\r\n"},
		{name: "not PLAIN", in: "EHLO me\r\nAUTH PLAIN eA==\r\n", out: hello + "501 5.5.2 Invalid PLAIN message.\r\n"},
		{name: "empty initial response", in: "EHLO me\r\nAUTH PLAIN =\r\n", out: hello + "501 5.5.2 Invalid PLAIN message.\r\n"},
		{name: "unknown mechanism", in: "EHLO me\r\nAUTH CRAM-MD5\r\n", out: hello + "504 5.5.4 Unsupported authentication mechanism.\r\n"},
		{name: "no EHLO before", in: "AUTH PLAIN " + plain + "\r\n", out: "503 5.5.1 EHLO first.\r\n"},
		{name: "not private", in: "EHLO me\r\nAUTH PLAIN " + plain + "\r\n", cfg: prelogin.Config{DisablePlaintext: true}, out: private + "538 5.7.11 Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\r\n"},
		{name: "no TLS", in: "STARTTLS\r\n", out: "502 5.5.1 TLS is not available.\r\n"},
		{name: "long line", in: strings.Repeat("x", 9000), out: "421 4.7.0 Input line too long.\r\n", err: prelogin.ErrLine},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := scriptconn.New(tt.in)
			o := dialoguetest.Play(t, open, conn, tt.cfg, 0)
			if tt.err == nil {
				tt.err = io.EOF
			}
			if diff := cmp.Diff(tt.logins, o.Logins); diff != "" || o.Err != tt.err.Error() || o.Written != greeting+tt.out {
				t.Errorf("%s %s\n%s", o.Err, diff, conn.Dialogue())
			}
		})
	}
}

// However the bytes arrive, the dialogue is the same, and nothing behind the login is lost or doubled.
func FuzzDialogue(f *testing.F) {
	for _, seed := range []string{
		"EHLO me\r\nAUTH PLAIN AGZyZWQAeA==\r\nMAIL FROM:<a@b>\r\n", "EHLO me\r\nAUTH PLAIN\r\nAGZyZWQAeA==\r\nrest",
		"EHLO me\r\nAUTH LOGIN\r\nZnJlZA==\r\neA==\r\n\x00", "HELO x\nQUIT\n", "AUTH\r\nEHLO [1.2.3.4]\r\nAUTH LOGIN =\r\n*\r\n",
		"EHLO me\r\nAUTH XOAUTH2 dXNlcj1mcmVkAWF1dGg9QmVhcmVyIHQBAQ==\r\n",
	} {
		f.Add([]byte(seed), uint8(1), uint8(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, size, accepted uint8) {
		cfg := prelogin.Config{Mechanisms: sasl.Mechanisms, Limits: prelogin.Limits{Line: 128, Bytes: 1024, Commands: 16}}
		dialoguetest.However(t, open, cfg, data, int(size)+1, int(accepted), func(l prelogin.Login) bool {
			return l.User != "" && l.Hello != "" && sasl.Allowed(l.User+l.Password+l.Authzid+l.Hello)
		})
	})
}
