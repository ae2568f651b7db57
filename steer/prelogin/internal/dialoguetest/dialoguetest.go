// Package dialoguetest plays the dialogues before the login against scripts, for the tests of the protocols: what
// must hold is the same for all of them.
package dialoguetest

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
)

// Open makes a dialogue: the New of a protocol.
type Open func(net.Conn, prelogin.Config) prelogin.Dialogue

// Outcome is everything that a dialogue did, for comparing.
type Outcome struct {
	Logins  []prelogin.Login
	Written string
	Rest    string // residual and unread bytes behind the last attempt
	Err     string
}

// Play runs a dialogue in which the attempt number accepted succeeds; 0: none does.
func Play(t *testing.T, open Open, conn *scriptconn.Conn, cfg prelogin.Config, accepted int) Outcome {
	t.Helper()
	var o Outcome
	d := open(conn, cfg)
	for {
		login, err := d.Next(t.Context())
		if err != nil {
			o.Err = err.Error()
			break
		}
		o.Logins = append(o.Logins, login)
		if len(o.Logins) == accepted {
			o.Rest = string(d.Residual()) + conn.Unread()
			break
		}
		if err := d.Refuse(prelogin.Refusal{Kind: prelogin.AuthFailed}); err != nil {
			t.Fatal(err)
		}
	}
	o.Written = conn.Written()
	return o
}

// However plays data whole and in segments of size bytes: the dialogue is the same, nothing behind the login is lost or
// doubled, each login is valid, and all that is answered are lines.
func However(t *testing.T, open Open, cfg prelogin.Config, data []byte, size, accepted int, valid func(prelogin.Login) bool) {
	t.Helper()
	whole := Play(t, open, scriptconn.New(string(data)), cfg, accepted)
	if parts := Play(t, open, scriptconn.Bytewise(size, string(data)), cfg, accepted); fmt.Sprint(whole) != fmt.Sprint(parts) {
		t.Errorf("in one segment:\n%+v\nin segments of %d:\n%+v", whole, size, parts)
	}
	if !strings.HasSuffix(string(data), whole.Rest) {
		t.Errorf("rest %q is not the end of the input", whole.Rest)
	}
	for _, l := range whole.Logins {
		if !valid(l) {
			t.Errorf("login %+v", l)
		}
	}
	if !strings.HasSuffix(whole.Written, "\r\n") || strings.ContainsAny(strings.ReplaceAll(whole.Written, "\r\n", ""), "\r\n\x00") {
		t.Errorf("answers %q are not lines", whole.Written)
	}
}
