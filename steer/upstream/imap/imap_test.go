package imap

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/steer/upstream"
)

const (
	modern = "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ AUTH=PLAIN] ready\r\n"
	simple = "* OK [capability imap4rev1] ready\r\n"
	ok     = "a OK [CAPABILITY IMAP4rev1 IDLE] Logged in\r\n"
)

func TestLogin(t *testing.T) {
	fred := upstream.Credentials{User: "fred", Password: "x", Tag: "a"}
	odd := upstream.Credentials{User: `fr"ed\`, Password: "p\xc3\xab", Tag: "a"}
	master := upstream.Credentials{User: "fred", Tag: "a", MasterUser: "boss", MasterPassword: "m", Separator: "*"}
	for _, tt := range []struct {
		name        string
		in          string // everything the backend says
		credentials upstream.Credentials
		out         string
		reply       string
		residual    string
		caps        []string
		kind        prelogin.Kind // of the rejection
		raw         string        // not empty: rejected
		err         error
	}{
		{name: "PLAIN", in: modern + ok, credentials: fred, out: "a AUTHENTICATE PLAIN AGZyZWQAeA==\r\n", reply: ok, caps: []string{"IMAP4REV1", "IDLE"}},
		{name: "PLAIN for another", in: modern + ok, credentials: upstream.Credentials{User: "boss", Authzid: "fred", Password: "m", Tag: "a"}, out: "a AUTHENTICATE PLAIN ZnJlZABib3NzAG0=\r\n", reply: ok, caps: []string{"IMAP4REV1", "IDLE"}},
		{name: "PLAIN with a master", in: modern + ok, credentials: master, out: "a AUTHENTICATE PLAIN ZnJlZABib3NzAG0=\r\n", reply: ok, caps: []string{"IMAP4REV1", "IDLE"}},
		{name: "PLAIN with a master in two round trips", in: "* OK [CAPABILITY AUTH=PLAIN] x\r\n+ \r\na OK y\r\n", credentials: master, out: "a AUTHENTICATE PLAIN\r\nZnJlZABib3NzAG0=\r\n", reply: "a OK y\r\n"},
		{name: "LOGIN", in: simple + "a OK\r\n", credentials: fred, out: "a LOGIN \"fred\" \"x\"\r\n", reply: "a OK\r\n"},
		{name: "LOGIN although PLAIN would take longer", in: "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] x\r\na OK y\r\n", credentials: fred, out: "a LOGIN \"fred\" \"x\"\r\n", reply: "a OK y\r\n"},
		{name: "PLAIN where LOGIN is off", in: "* OK [CAPABILITY AUTH=PLAIN LOGINDISABLED] x\r\n+\r\na OK y\r\n", credentials: fred, out: "a AUTHENTICATE PLAIN\r\nAGZyZWQAeA==\r\n", reply: "a OK y\r\n"},
		{name: "LOGIN with quotes and a literal to wait for", in: simple + "+ go on\r\na OK y\r\n", credentials: odd, out: "a LOGIN \"fr\\\"ed\\\\\" {3}\r\np\xc3\xab\r\n", reply: "a OK y\r\n"},
		{name: "LOGIN with LITERAL-", in: "* OK [CAPABILITY LITERAL-] x\r\na OK y\r\n", credentials: odd, out: "a LOGIN \"fr\\\"ed\\\\\" {3+}\r\np\xc3\xab\r\n", reply: "a OK y\r\n"},
		{name: "LOGIN with a master", in: simple + "a OK y\r\n", credentials: master, out: "a LOGIN \"fred*boss\" \"m\"\r\n", reply: "a OK y\r\n"},
		{name: "capabilities asked for", in: "* OK x\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR\r\nusher OK\r\na OK y\r\n", credentials: fred, out: "usher CAPABILITY\r\na AUTHENTICATE PLAIN AGZyZWQAeA==\r\n", reply: "a OK y\r\n"},
		{name: "greeting while the auth process is slow", in: "* OK Waiting for authentication process to respond..\r\n" + modern + "* CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR\r\nusher OK\r\na OK y\r\n", credentials: fred, out: "usher CAPABILITY\r\na AUTHENTICATE PLAIN AGZyZWQAeA==\r\n", reply: "a OK y\r\n"},
		{name: "untagged lines in the reply", in: modern + "* CAPABILITY IMAP4rev1 X\r\n* OK [ALERT] news\na OK y\n", credentials: fred, out: "a AUTHENTICATE PLAIN AGZyZWQAeA==\r\n", reply: "* CAPABILITY IMAP4rev1 X\r\n* OK [ALERT] news\r\na OK y\r\n", caps: []string{"IMAP4REV1", "X"}},
		{name: "more behind the reply", in: modern + ok + "* BYE Internal\x00error\n", credentials: fred, out: "a AUTHENTICATE PLAIN AGZyZWQAeA==\r\n", reply: ok, caps: []string{"IMAP4REV1", "IDLE"}, residual: "* BYE Internal\x00error\n"},

		{name: "wrong password", in: modern + "a NO [AUTHENTICATIONFAILED] no\r\n", credentials: fred, raw: "a NO [AUTHENTICATIONFAILED] no\r\n", kind: prelogin.AuthFailed},
		{name: "no code", in: modern + "* OK x\r\na no sorry\n", credentials: fred, raw: "a no sorry\r\n", kind: prelogin.AuthFailed},
		{name: "unavailable", in: modern + "a NO [unavailable] no\r\n", credentials: fred, raw: "a NO [unavailable] no\r\n", kind: prelogin.Unavailable},
		{name: "in use", in: modern + "a NO [INUSE] no\r\n", credentials: fred, raw: "a NO [INUSE] no\r\n", kind: prelogin.InUse},
		{name: "too many connections", in: modern + "a NO [LIMIT] no\r\n", credentials: fred, raw: "a NO [LIMIT] no\r\n", kind: prelogin.Unavailable},
		{name: "bug", in: modern + "a NO [SERVERBUG] no\r\n", credentials: fred, raw: "a NO [SERVERBUG] no\r\n", kind: prelogin.TempFail},
		{name: "may not", in: modern + "a NO [AUTHORIZATIONFAILED] no\r\n", credentials: fred, raw: "a NO [AUTHORIZATIONFAILED] no\r\n", kind: prelogin.PermFail},
		{name: "no to a literal", in: simple + "a NO [EXPIRED x] no\r\n", credentials: odd, raw: "a NO [EXPIRED x] no\r\n", kind: prelogin.PermFail},

		{name: "silence", err: io.ErrUnexpectedEOF, credentials: fred},
		{name: "preauth", in: "* PREAUTH hello\r\n", credentials: fred, err: upstream.ErrGreeting},
		{name: "goodbye", in: "* BYE full\r\n", credentials: fred, err: upstream.ErrBye},
		{name: "POP3", in: "+OK hello\r\n", credentials: fred, err: upstream.ErrGreeting},
		{name: "goodbye later", in: modern + "* BYE full\r\n", credentials: fred, err: upstream.ErrBye},
		{name: "garbage", in: modern + "\x00\xff\r\n", credentials: fred, err: upstream.ErrReply},
		{name: "empty line", in: modern + "\r\n", credentials: fred, err: upstream.ErrReply},
		{name: "another tag", in: modern + "b OK x\r\n", credentials: fred, err: upstream.ErrReply},
		{name: "BAD", in: modern + "a BAD x\r\n", credentials: fred, err: upstream.ErrReply},
		{name: "continuation not expected", in: modern + "+ \r\n", credentials: fred, err: upstream.ErrReply},
		{name: "closed", in: modern + "a OK", credentials: fred, err: io.ErrUnexpectedEOF},
		{name: "line too long", in: modern + "a OK " + strings.Repeat("x", 16<<10) + "\r\n", credentials: fred, err: prelogin.ErrLine},
		{name: "reply too long", in: modern + strings.Repeat("* OK "+strings.Repeat("x", 1<<10)+"\r\n", 64) + ok, credentials: fred, err: prelogin.ErrBytes},
		{name: "wants TLS", in: "* OK [CAPABILITY STARTTLS LOGINDISABLED] x\r\n", credentials: fred, err: upstream.ErrMechanism},
		{name: "master without a way", in: simple, credentials: upstream.Credentials{User: "fred", Tag: "a", MasterUser: "boss"}, err: upstream.ErrMechanism},
		{name: "authzid without a way", in: simple, credentials: upstream.Credentials{User: "boss", Authzid: "fred", Tag: "a", Separator: "*"}, err: upstream.ErrMechanism},

		{name: "no tag", credentials: upstream.Credentials{User: "fred"}, err: upstream.ErrCredentials},
		{name: "space in the tag", credentials: upstream.Credentials{User: "fred", Tag: "a b"}, err: upstream.ErrCredentials},
		{name: "line end in the password", credentials: upstream.Credentials{User: "fred", Password: "\r\n", Tag: "a"}, err: upstream.ErrCredentials},
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
				default:
					if conn.Written() != tt.out || string(result.Reply) != tt.reply || string(result.Residual)+conn.Unread() != tt.residual {
						t.Errorf("sent %q\nreply %q\nresidual %q + %q", conn.Written(), result.Reply, result.Residual, conn.Unread())
					}
					if diff := cmp.Diff(tt.caps, result.Capabilities); diff != "" {
						t.Errorf("capabilities (-want +got):\n%s", diff)
					}
				}
				if t.Failed() {
					t.Fatalf("in segments of %d bytes, the dialogue:\n%s", size, conn.Dialogue())
				}
			}
		})
	}
}

func TestTime(t *testing.T) {
	for name, said := range map[string]string{"hangs before the greeting": "", "hangs in the greeting": "* OK", "hangs in the login": modern} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				defer theirs.Close()
				go func() {
					_, _ = io.WriteString(theirs, said)
					_, _ = io.Copy(io.Discard, theirs) // ends when the test closes
				}()
				begin := time.Now()
				credentials := upstream.Credentials{User: "fred", Password: "x", Tag: "a"}
				_, err := Login(t.Context(), ours, credentials, upstream.Limits{Time: 5 * time.Second})
				if !errors.Is(err, prelogin.ErrTime) || time.Since(begin) != 5*time.Second {
					t.Errorf("got %v after %v", err, time.Since(begin))
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := Login(ctx, ours, credentials, upstream.Limits{}); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}
