package prelogin_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/steer/prelogin/imap"
	"usher/steer/prelogin/pop3"
	"usher/steer/prelogin/sieve"
	"usher/steer/prelogin/submission"
)

// STARTTLS is announced and possible once, passwords behind it; and what stands behind the command in plaintext ends
// everything.
func TestStartTLS(t *testing.T) {
	type dialogue = func(net.Conn, prelogin.Config) prelogin.Dialogue
	const name, secret = "fred", "x"
	for _, tt := range []struct {
		name          string
		new           dialogue
		plain, secret string
		out, over     string // answers in plaintext behind the greeting, and under TLS
		err           error
		logins        bool
		greeting      int // lines; 0: 1
	}{
		{
			name: "imap", new: imap.New, logins: true,
			plain:  "a CAPABILITY\r\nb LOGIN fred x\r\nc STARTTLS\r\n",
			out:    "* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID STARTTLS LOGINDISABLED\r\na OK Capability completed.\r\nb NO [PRIVACYREQUIRED] Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\r\nc OK Begin TLS negotiation now.\r\n",
			secret: "d CAPABILITY\r\ne STARTTLS\r\nf LOGIN fred x\r\n",
			over:   "* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN AUTH=LOGIN\r\nd OK Capability completed.\r\ne BAD Unknown command before login.\r\n",
		},
		{name: "imap with more behind", new: imap.New, plain: "a STARTTLS\r\nb LOGIN eve x\r\n", out: "* BYE Plaintext behind STARTTLS.\r\n", err: prelogin.ErrPlaintext},
		{name: "imap with an argument", new: imap.New, plain: "a STARTTLS now\r\n", out: "a BAD Invalid arguments.\r\n", err: io.EOF},
		{
			name: "pop3", new: pop3.New, logins: true,
			plain:  "CAPA\r\nUSER eve\r\nSTLS\r\n",
			out:    "+OK\r\nCAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nAUTH-RESP-CODE\r\nSTLS\r\n.\r\n-ERR Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\r\n+OK Begin TLS negotiation now.\r\n",
			secret: "CAPA\r\nSTLS\r\nUSER fred\r\nPASS x\r\n",
			over:   "+OK\r\nCAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nAUTH-RESP-CODE\r\nUSER\r\nSASL PLAIN LOGIN\r\n.\r\n-ERR Unknown command.\r\n+OK\r\n",
		},
		{
			name: "submission", new: submission.New, logins: true,
			plain:  "EHLO me\r\nAUTH PLAIN AGZyZWQAeA==\r\nSTARTTLS\r\n",
			out:    "250-usher\r\n250-SIZE 5\r\n250 STARTTLS\r\n538 5.7.11 Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\r\n220 2.0.0 Begin TLS negotiation now.\r\n",
			secret: "AUTH PLAIN AGZyZWQAeA==\r\nEHLO me\r\nAUTH PLAIN AGZyZWQAeA==\r\n",
			over:   "503 5.5.1 EHLO first.\r\n250-usher\r\n250-SIZE 5\r\n250 AUTH PLAIN LOGIN\r\n",
		},
		{name: "submission with more behind", new: submission.New, plain: "STARTTLS\r\nEHLO eve\r\n", out: "421 4.7.0 Plaintext behind STARTTLS.\r\n", err: prelogin.ErrPlaintext},
		{
			name: "sieve", new: sieve.New, logins: true, greeting: 4,
			plain:  "STARTTLS\r\n",
			out:    "OK \"Begin TLS negotiation now.\"\r\n",
			secret: "AUTHENTICATE \"PLAIN\" \"AGZyZWQAeA==\"\r\n",
			over:   "SIZE 5\r\n\"SASL\" \"PLAIN LOGIN\"\r\nOK \"TLS negotiation successful.\"\r\n",
		},
		{name: "sieve with more behind", new: sieve.New, greeting: 4, plain: "STARTTLS\r\nNOOP\r\n", out: "BYE \"Plaintext behind STARTTLS.\"\r\n", err: prelogin.ErrPlaintext},
		{name: "pop3 with more behind", new: pop3.New, plain: "STLS\r\nUSER eve\r\n", out: "-ERR Plaintext behind STARTTLS.\r\n", err: prelogin.ErrPlaintext},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plain, over := scriptconn.New(tt.plain), scriptconn.New(tt.secret)
			d := tt.new(plain, prelogin.Config{
				Capabilities: []string{"SIZE 5"}, DisablePlaintext: true, Mechanisms: []string{"PLAIN", "LOGIN"},
				StartTLS: func() (net.Conn, error) { return over, nil },
			})
			login, err := d.Next(t.Context())
			if !errors.Is(err, tt.err) || tt.logins != (login.User == name && login.Password == secret) {
				t.Errorf("got %+v, %v", login, err)
			}
			out := plain.Written()
			for range max(tt.greeting, 1) {
				_, out, _ = strings.Cut(out, "\r\n")
			}
			if out != tt.out || over.Written() != tt.over {
				t.Errorf("in plaintext:\n%s\nunder TLS:\n%s", plain.Dialogue(), over.Dialogue())
			}
		})
	}
	conn, broken := scriptconn.New("a STARTTLS\r\n"), errors.New("broken")
	d := imap.New(conn, prelogin.Config{StartTLS: func() (net.Conn, error) { return nil, broken }})
	if _, err := d.Next(t.Context()); !errors.Is(err, broken) || !strings.HasSuffix(conn.Written(), "a OK Begin TLS negotiation now.\r\n") {
		t.Errorf("got %v\n%s", err, conn.Dialogue())
	}
}
