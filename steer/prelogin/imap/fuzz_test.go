package imap

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/steer/prelogin/internal/dialoguetest"
	"usher/steer/sasl"
)

// However the bytes arrive, the dialogue is the same, and nothing behind the login is lost or doubled.
func FuzzDialogue(f *testing.F) {
	for _, seed := range []string{
		"a CAPABILITY\r\nb ID NIL\r\nc LOGIN fred \"x \\\"y\\\\\"\r\nd SELECT INBOX\r\n",
		"a ID (\"name\" \"x\" {3}\r\nabc NIL)\r\n* LOGIN\r\n",
		"a LOGIN {4}\r\nfred {3+}\r\na\r\n\r\nb NOOP\r\nc LOGOUT\r\n",
		"a AUTHENTICATE PLAIN AGZyZWQAeA==\r\nb IDLE\r\n",
		"a AUTHENTICATE PLAIN\r\nAGZyZWQAeA==\r\nb IDLE\r\n",
		"a AUTHENTICATE PLAIN =\r\nb AUTHENTICATE PLAIN\r\n*\r\nc FOO {2+}\r\nxx\n",
		"a LOGIN \x00 {99999999999999999999}\r\n\r\n",
		"a LOGIN {1+}\r\n\x00 x\r\n",
	} {
		f.Add([]byte(seed), uint8(1), uint8(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, size, accepted uint8) {
		cfg := prelogin.Config{Mechanisms: sasl.Mechanisms, Limits: prelogin.Limits{Line: 128, Literal: 64, Bytes: 1024, Commands: 16}}
		dialoguetest.However(t, New, cfg, data, int(size)+1, int(accepted), func(l prelogin.Login) bool {
			return l.User != "" && l.Tag != "" && sasl.Allowed(l.User+l.Password+l.Authzid+l.Tag)
		})
	})
}

// Every way of writing a string gives the string back.
func FuzzStrings(f *testing.F) {
	f.Add("fred", `p "a" \ss`)
	f.Add("fr\u00ebd*master", "")
	f.Add("a\r\nb", "{3}")
	f.Add("%", "a\x00")
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	f.Fuzz(func(t *testing.T, user, password string) {
		cfg := prelogin.Config{Limits: prelogin.Limits{Line: 1 << 20, Literal: 1 << 20, Bytes: 1 << 22}}
		ways := map[string]string{
			"literals": fmt.Sprintf("t LOGIN {%d}\r\n%s {%d}\r\n%s\r\n", len(user), user, len(password), password),
			"LITERAL+": fmt.Sprintf("t LOGIN {%d+}\r\n%s {%d+}\r\n%s\r\n", len(user), user, len(password), password),
			"PLAIN":    "t AUTHENTICATE PLAIN " + sasl.Encode([]byte("\x00"+user+"\x00"+password)) + "\r\n",
		}
		if !strings.ContainsAny(user+password, "\r\n") {
			ways["quoted"] = `t LOGIN "` + escape.Replace(user) + `" "` + escape.Replace(password) + "\"\r\n"
		}
		good := user != "" && sasl.Allowed(user) && sasl.Allowed(password)
		for name, command := range ways {
			conn := scriptconn.New(command + "rest")
			d := New(conn, cfg)
			login, err := d.Next(t.Context())
			if !good {
				if err != io.EOF {
					t.Errorf("%s: got %+v, %v for strings that nobody may have", name, login, err)
				}
				continue
			}
			if err != nil || login.User != user || login.Password != password || string(d.Residual()) != "rest" {
				t.Errorf("%s: got %+v, %v\n%s", name, login, err, conn.Dialogue())
			}
		}
	})
}
