package imap_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"usher/steer/prelogin"
	"usher/steer/upstream"
	"usher/steer/upstream/imap"
	"usher/steer/upstream/internal/dovecottest"
)

// masked hides capabilities of a backend, by words of the same length: what is left is what the login has to do with.
type masked struct {
	net.Conn
	hidden []string
}

func (m masked) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	for _, word := range m.hidden {
		copy(p[:n], bytes.ReplaceAll(p[:n], []byte(word), bytes.Repeat([]byte{'X'}, len(word))))
	}
	return n, err
}

// The login must leave a session that works, with the client's tag in the reply and no byte lost behind it.
func TestLoginAtDovecot(t *testing.T) {
	dial := dovecottest.Start(t)
	const wrong = "wrong"
	for _, tt := range []struct {
		name        string
		credentials upstream.Credentials
		hidden      []string
		want        prelogin.Kind // of the rejection, with refused
		refused     bool
	}{
		{name: "PLAIN in one round trip", credentials: upstream.Credentials{Password: dovecottest.Password}},
		{name: "LOGIN", hidden: []string{"AUTH=PLAIN"}, credentials: upstream.Credentials{Password: dovecottest.Password}},
		{name: "LOGIN with literals to wait for", hidden: []string{"AUTH=PLAIN", "LITERAL+"}, credentials: upstream.Credentials{Password: dovecottest.Password}},
		{name: "authzid is the user", credentials: upstream.Credentials{Password: dovecottest.Password, Authzid: "same"}},
		{name: "greeting without capabilities", hidden: []string{"[CAPABILITY IMAP4rev1"}, credentials: upstream.Credentials{Password: dovecottest.Password}},
		{name: "master by PLAIN", credentials: upstream.Credentials{MasterUser: dovecottest.Master, MasterPassword: dovecottest.MasterPassword}},
		{name: "master by PLAIN in two round trips", hidden: []string{"SASL-IR"}, credentials: upstream.Credentials{MasterUser: dovecottest.Master, MasterPassword: dovecottest.MasterPassword}},
		{name: "master by LOGIN", hidden: []string{"AUTH=PLAIN"}, credentials: upstream.Credentials{MasterUser: dovecottest.Master, MasterPassword: dovecottest.MasterPassword, Separator: dovecottest.Separator}},
		{name: "wrong password by PLAIN", credentials: upstream.Credentials{Password: wrong}, refused: true, want: prelogin.AuthFailed},
		{name: "wrong password by LOGIN", hidden: []string{"AUTH=PLAIN"}, credentials: upstream.Credentials{Password: wrong}, refused: true, want: prelogin.AuthFailed},
		{name: "wrong master password", credentials: upstream.Credentials{MasterUser: dovecottest.Master, MasterPassword: wrong}, refused: true, want: prelogin.AuthFailed},
	} {
		for _, user := range dovecottest.Users {
			t.Run(tt.name+"/"+user, func(t *testing.T) {
				conn, err := dial(143)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				c := tt.credentials
				c.User, c.Tag = user, "A.1"
				if c.Authzid != "" {
					c.Authzid = user
				}
				result, err := imap.Login(t.Context(), masked{conn, tt.hidden}, c, upstream.Limits{})
				if tt.refused {
					var rejected *upstream.Rejected
					if !errors.As(err, &rejected) || rejected.Kind != tt.want || !strings.HasPrefix(string(rejected.Raw), "A.1 NO [AUTHENTICATIONFAILED]") {
						t.Fatalf("got %v, want a rejection of kind %v", err, tt.want)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				// Dovecot puts its list into the OK, or, for those who asked for it before, in front of it.
				inside := bytes.HasPrefix(result.Reply, []byte("A.1 OK [CAPABILITY "))
				before := bytes.HasPrefix(result.Reply, []byte("* CAPABILITY ")) && bytes.HasSuffix(result.Reply, []byte("\r\nA.1 OK Logged in\r\n"))
				if inside == before || len(result.Capabilities) < 10 {
					t.Errorf("reply %q with capabilities %q", result.Reply, result.Capabilities)
				}
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := io.WriteString(conn, "b STATUS INBOX (MESSAGES)\r\nc LOGOUT\r\n"); err != nil {
					t.Fatal(err)
				}
				rest, err := io.ReadAll(bufio.NewReader(io.MultiReader(bytes.NewReader(result.Residual), conn)))
				if err != nil || !strings.HasPrefix(string(rest), "* STATUS INBOX (MESSAGES 0)\r\nb OK ") {
					t.Errorf("the session behind the login said %q, %v", rest, err)
				}
			})
		}
	}
}
