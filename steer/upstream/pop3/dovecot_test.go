package pop3_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"usher/steer/prelogin"
	"usher/steer/upstream"
	"usher/steer/upstream/internal/dovecottest"
	"usher/steer/upstream/pop3"
)

// The login must leave a session that works, with no byte lost behind its reply.
func TestLoginAtDovecot(t *testing.T) {
	dial := dovecottest.Start(t)
	for _, tt := range []struct {
		name        string
		credentials upstream.Credentials
		refused     bool
	}{
		{name: "USER and PASS", credentials: upstream.Credentials{Password: dovecottest.Password}},
		{name: "master by PLAIN", credentials: upstream.Credentials{MasterUser: dovecottest.Master, MasterPassword: dovecottest.MasterPassword}},
		{name: "wrong password", credentials: upstream.Credentials{Password: "wrong"}, refused: true},
		{name: "wrong master password", credentials: upstream.Credentials{MasterUser: dovecottest.Master, MasterPassword: "wrong"}, refused: true},
		{name: "master who is none", credentials: upstream.Credentials{Authzid: "somebody", Password: dovecottest.Password}, refused: true},
	} {
		for _, user := range dovecottest.Users {
			t.Run(tt.name+"/"+user, func(t *testing.T) {
				conn, err := dial(110)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				c := tt.credentials
				c.User = user
				result, err := pop3.Login(t.Context(), conn, c, upstream.Limits{})
				if tt.refused {
					var rejected *upstream.Rejected
					if !errors.As(err, &rejected) || rejected.Kind != prelogin.AuthFailed || !strings.HasPrefix(string(rejected.Raw), "-ERR [AUTH]") {
						t.Fatalf("got %v, want a rejection", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if string(result.Reply) != "+OK Logged in.\r\n" {
					t.Errorf("reply %q", result.Reply)
				}
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := io.WriteString(conn, "STAT\r\nQUIT\r\n"); err != nil {
					t.Fatal(err)
				}
				rest, err := io.ReadAll(io.MultiReader(bytes.NewReader(result.Residual), conn))
				if err != nil || !strings.HasPrefix(string(rest), "+OK 0 0\r\n+OK ") {
					t.Errorf("the session behind the login said %q, %v", rest, err)
				}
			})
		}
	}
}
