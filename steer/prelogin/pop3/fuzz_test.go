package pop3

import (
	"fmt"
	"strings"
	"testing"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/steer/sasl"
)

// outcome is everything that a dialogue did, for comparing.
type outcome struct {
	logins  []prelogin.Login
	written string
	rest    string // residual and unread bytes behind the last attempt
	err     string
}

// play runs a dialogue in which the attempt number `accepted` succeeds; 0: none does.
func play(t *testing.T, conn *scriptconn.Conn, cfg prelogin.Config, accepted int) outcome {
	t.Helper()
	var o outcome
	d := New(conn, cfg)
	for {
		login, err := d.Next(t.Context())
		if err != nil {
			o.err = err.Error()
			break
		}
		o.logins = append(o.logins, login)
		if len(o.logins) == accepted {
			o.rest = string(d.Residual()) + conn.Unread()
			break
		}
		if err := d.Refuse(prelogin.Refusal{Kind: prelogin.AuthFailed}); err != nil {
			t.Fatal(err)
		}
	}
	o.written = conn.Written()
	return o
}

// However the bytes arrive, the dialogue is the same, and nothing behind the login is lost or doubled.
func FuzzDialogue(f *testing.F) {
	for _, seed := range []string{
		"CAPA\r\nUSER fred\r\nPASS a b \r\nSTAT\r\n",
		"user fred\r\npass x\nQUIT\r\n",
		"AUTH\r\nAUTH PLAIN\r\nAGZyZWQAeA==\r\nSTAT\r\n",
		"AUTH PLAIN AGZyZWQAeA==\r\nSTAT\r\n",
		"AUTH PLAIN =\r\nAUTH PLAIN\r\n*\r\nAUTH PLAIN\r\n\r\n",
		"PASS x\r\nAPOP a b\r\nNOOP\r\nUSER a\x00\r\nPASS b\r\n",
	} {
		f.Add([]byte(seed), uint8(1), uint8(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, size, accepted uint8) {
		cfg := prelogin.Config{Mechanisms: sasl.Mechanisms, Limits: prelogin.Limits{Line: 128, Bytes: 1024, Commands: 16}}
		whole := play(t, scriptconn.New(string(data)), cfg, int(accepted))
		if parts := play(t, scriptconn.Bytewise(int(size)+1, string(data)), cfg, int(accepted)); fmt.Sprint(whole) != fmt.Sprint(parts) {
			t.Errorf("in one segment:\n%+v\nin segments of %d:\n%+v", whole, size+1, parts)
		}
		if !strings.HasSuffix(string(data), whole.rest) {
			t.Errorf("rest %q is not the end of the input", whole.rest)
		}
		for _, l := range whole.logins {
			if l.User == "" || !sasl.Allowed(l.User+l.Password+l.Authzid) {
				t.Errorf("login %+v", l)
			}
		}
		if !strings.HasSuffix(whole.written, "\r\n") || strings.ContainsAny(strings.ReplaceAll(whole.written, "\r\n", ""), "\r\n\x00") {
			t.Errorf("answers %q are not lines", whole.written)
		}
	})
}
