package pop3

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/steer/upstream"
)

func TestLogin(t *testing.T) {
	fred := upstream.Credentials{User: "fred", Password: " x y "}
	master := upstream.Credentials{User: "fred", Password: "unused", MasterUser: "boss", MasterPassword: "m"}
	for _, tt := range []struct {
		name        string
		in          string // everything the backend says
		credentials upstream.Credentials
		out         string
		reply       string
		residual    string
		kind        prelogin.Kind // of the rejection
		raw         string        // not empty: rejected
		err         error
	}{
		{name: "USER and PASS", in: "+OK ready\r\n+OK\r\n+OK Logged in.\r\n", credentials: fred, out: "USER fred\r\nPASS  x y \r\n", reply: "+OK Logged in.\r\n"},
		{name: "authzid is the user", in: "+OK\n+OK\n+OK\n", credentials: upstream.Credentials{User: "fred", Authzid: "fred"}, out: "USER fred\r\nPASS \r\n", reply: "+OK\r\n"},
		{name: "master", in: "+OK ready\r\n+ \r\n+OK 3 messages\r\n", credentials: master, out: "AUTH PLAIN\r\nZnJlZABib3NzAG0=\r\n", reply: "+OK 3 messages\r\n"},
		{name: "for another", in: "+OK ready\r\n+\r\n+OK\r\n", credentials: upstream.Credentials{User: "boss", Password: "m", Authzid: "fred"}, out: "AUTH PLAIN\r\nZnJlZABib3NzAG0=\r\n", reply: "+OK\r\n"},
		{name: "more behind the reply", in: "+OK\r\n+OK\r\n+OK\r\n-ERR x\x00\n\n", credentials: fred, out: "USER fred\r\nPASS  x y \r\n", reply: "+OK\r\n", residual: "-ERR x\x00\n\n"},

		{name: "wrong password", in: "+OK\r\n+OK\r\n-ERR [AUTH] no\r\n", credentials: fred, raw: "-ERR [AUTH] no\r\n", kind: prelogin.AuthFailed},
		{name: "no code", in: "+OK\r\n+OK\r\n-ERR no\n", credentials: fred, raw: "-ERR no\r\n", kind: prelogin.AuthFailed},
		{name: "bare", in: "+OK\r\n-ERR\r\n", credentials: fred, raw: "-ERR\r\n", kind: prelogin.AuthFailed},
		{name: "temporary", in: "+OK\r\n-ERR [sys/temp] no\r\n", credentials: fred, raw: "-ERR [sys/temp] no\r\n", kind: prelogin.TempFail},
		{name: "permanent", in: "+OK\r\n+OK\r\n-ERR [SYS/PERM] no\r\n", credentials: fred, raw: "-ERR [SYS/PERM] no\r\n", kind: prelogin.PermFail},
		{name: "in use", in: "+OK\r\n+ \r\n-ERR [IN-USE] no\r\n", credentials: master, raw: "-ERR [IN-USE] no\r\n", kind: prelogin.InUse},
		{name: "too early", in: "+OK\r\n+OK\r\n-ERR [LOGIN-DELAY] no\r\n", credentials: fred, raw: "-ERR [LOGIN-DELAY] no\r\n", kind: prelogin.Unavailable},

		{name: "silence", credentials: fred, err: io.ErrUnexpectedEOF},
		{name: "refuses everybody", in: "-ERR [SYS/TEMP] full\r\n", credentials: fred, err: upstream.ErrGreeting},
		{name: "IMAP", in: "* OK hello\r\n", credentials: fred, err: upstream.ErrGreeting},
		{name: "garbage", in: "+OK\r\n+OKAY\r\n", credentials: fred, err: upstream.ErrReply},
		{name: "continuation not expected", in: "+OK\r\n+ \r\n", credentials: fred, err: upstream.ErrReply},
		{name: "no continuation", in: "+OK\r\n+OK\r\n", credentials: master, err: upstream.ErrReply},
		{name: "no PLAIN", in: "+OK\r\n-ERR what?\r\n", credentials: master, err: upstream.ErrMechanism},
		{name: "closed", in: "+OK\r\n+OK\r\n+OK", credentials: fred, err: io.ErrUnexpectedEOF},
		{name: "line too long", in: "+OK\r\n+OK " + strings.Repeat("x", 16<<10) + "\r\n", credentials: fred, err: prelogin.ErrLine},
		{name: "line end in the user", credentials: upstream.Credentials{User: "fred\r\nDELE 1"}, err: upstream.ErrCredentials},
		{name: "NUL in the password", credentials: upstream.Credentials{User: "fred", Password: "\x00"}, err: upstream.ErrCredentials},
		{name: "no user", credentials: upstream.Credentials{Password: "x"}, err: upstream.ErrCredentials},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for size := 1; size <= len(tt.in)+1; size += 1 + len(tt.in)/4 {
				conn := scriptconn.Bytewise(size, tt.in)
				result, err := Login(t.Context(), conn, tt.credentials, upstream.Limits{})
				var rejected *upstream.Rejected
				switch {
				case tt.raw != "":
					if !errors.As(err, &rejected) || string(rejected.Raw) != tt.raw || rejected.Kind != tt.kind {
						t.Errorf("got %v, want a rejection %v", err, tt.kind)
					}
				case tt.err != nil:
					if !errors.Is(err, tt.err) || errors.As(err, &rejected) {
						t.Errorf("got %v, want %v", err, tt.err)
					}
				case err != nil:
					t.Error(err)
				case conn.Written() != tt.out || string(result.Reply) != tt.reply || string(result.Residual)+conn.Unread() != tt.residual:
					t.Errorf("sent %q\nreply %q\nresidual %q + %q", conn.Written(), result.Reply, result.Residual, conn.Unread())
				}
				if t.Failed() {
					t.Fatalf("in segments of %d bytes, the dialogue:\n%s", size, conn.Dialogue())
				}
			}
		})
	}
}

func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() {
			_, _ = io.WriteString(theirs, "+OK\r\n")
			_, _ = io.Copy(io.Discard, theirs) // ends when the test closes
		}()
		begin := time.Now()
		_, err := Login(t.Context(), ours, upstream.Credentials{User: "fred"}, upstream.Limits{Time: 5 * time.Second})
		if !errors.Is(err, prelogin.ErrTime) || time.Since(begin) != 5*time.Second {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
	})
}

// However a backend's bytes arrive, the outcome is the same, and those behind the reply are left alone.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{"+OK\r\n+OK\r\n+OK x\r\nrest", "+OK\n+ \n-ERR [AUTH] x\n", "-ERR\r\n", "+OK\r\n+OK\r\n-ERR [", "+OK \x00\r\n+\r\n+OK\r\n"} {
		f.Add([]byte(seed), uint8(0), "")
		f.Add([]byte(seed), uint8(0), "other")
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint8, authzid string) {
		credentials := upstream.Credentials{User: "fred", Password: "x", Authzid: authzid}
		limits := upstream.Limits{Line: 128, Bytes: 512}
		conn := scriptconn.New(string(data))
		result, err := Login(t.Context(), conn, credentials, limits)
		parts := scriptconn.Bytewise(int(size)+1, string(data))
		again, errAgain := Login(t.Context(), parts, credentials, limits)
		if fmt.Sprint(err) != fmt.Sprint(errAgain) || string(result.Reply) != string(again.Reply) || conn.Written() != parts.Written() {
			t.Errorf("in one segment %q, %v; in segments of %d bytes %q, %v", result, err, size+1, again, errAgain)
		}
		if err != nil {
			return
		}
		rest := string(result.Residual) + conn.Unread()
		if rest != string(again.Residual)+parts.Unread() || !strings.HasSuffix(string(data), rest) {
			t.Errorf("rest %q, in segments %q", rest, string(again.Residual)+parts.Unread())
		}
		if reply := string(result.Reply); !strings.HasPrefix(reply, "+OK") || strings.Index(reply, "\n") != len(reply)-1 {
			t.Errorf("reply %q", reply)
		}
		if n := strings.Count(conn.Written(), "\r\n"); n != 2 {
			t.Errorf("sent %d lines: %q", n, conn.Written())
		}
	})
}
