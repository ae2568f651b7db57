package pop3

import (
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
)

const greeting = "+OK Usher ready.\r\n"

// Each attempt is refused, so that the dialogue goes on to the end of the input.
func TestDialogue(t *testing.T) {
	const failed = "-ERR [AUTH] Authentication failed.\r\n"
	const capa = "+OK\r\nCAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nAUTH-RESP-CODE\r\n"
	const private = "-ERR Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\r\n"
	user := func(user, password string) prelogin.Login {
		return prelogin.Login{User: user, Password: password, Mechanism: "USER"}
	}
	plain := func(authzid, user, password string) prelogin.Login {
		return prelogin.Login{Authzid: authzid, User: user, Password: password, Mechanism: "PLAIN"}
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
		{name: "capabilities", in: "capa\r\n", out: capa + "USER\r\nSASL PLAIN\r\n.\r\n"},
		{name: "noop", in: "NOOP\r\nnoop \n", out: "+OK\r\n+OK\r\n"},
		{name: "quit", in: "QUIT\r\nNOOP\r\n", out: "+OK Logging out\r\n"},
		{name: "unknown", in: "STAT\r\n\r\n", out: "-ERR Unknown command.\r\n-ERR Unknown command.\r\n"},
		{name: "arguments where none belong", in: "NOOP x\r\n", out: "-ERR Unknown command.\r\n"},
		{name: "apop", in: "APOP fred 0123456789abcdef\r\n", out: "-ERR APOP not enabled.\r\n"},

		{name: "user and pass", in: "USER fred\r\nPASS  x y \r\n", out: "+OK\r\n" + failed, logins: []prelogin.Login{user("fred", " x y ")}},
		{name: "8 bits", in: "USER fr\xc3\xabd\r\nPASS \xff\r\n", out: "+OK\r\n" + failed, logins: []prelogin.Login{user("fr\xc3\xabd", "\xff")}},
		{name: "empty password", in: "USER fred\r\nPASS\r\n", out: "+OK\r\n" + failed, logins: []prelogin.Login{user("fred", "")}},
		{name: "user again", in: "USER fred\r\nUSER anna\r\nPASS x\r\n", out: "+OK\r\n+OK\r\n" + failed, logins: []prelogin.Login{user("anna", "x")}},
		{name: "pass again needs user again", in: "USER fred\r\nPASS x\r\nPASS y\r\n", out: "+OK\r\n" + failed + "-ERR No username given.\r\n", logins: []prelogin.Login{user("fred", "x")}},
		{name: "no user", in: "PASS x\r\nUSER\r\n", out: "-ERR No username given.\r\n-ERR No username given.\r\n"},
		{name: "NUL in the user", in: "USER fr\x00ed\r\nPASS x\r\n", out: "+OK\r\n" + failed},
		{name: "CR in the password", in: "USER fred\r\nPASS x\ry\r\n", out: "+OK\r\n" + failed},

		{name: "mechanisms", in: "AUTH\r\n", out: "+OK\r\nPLAIN\r\n.\r\n"},
		{name: "PLAIN with initial response", in: "AUTH plain AGZyZWQAeA==\r\n", out: failed, logins: []prelogin.Login{plain("", "fred", "x")}},
		{name: "PLAIN with continuation", in: "AUTH PLAIN\r\nZnJlZABib3NzAHg=\r\n", out: "+ \r\n" + failed, logins: []prelogin.Login{plain("fred", "boss", "x")}},
		{name: "PLAIN cancelled", in: "AUTH PLAIN\r\n*\r\nNOOP\r\n", out: "+ \r\n-ERR Authentication aborted by client.\r\n+OK\r\n"},
		{name: "PLAIN with empty initial response", in: "AUTH PLAIN =\r\n", out: "-ERR Invalid PLAIN message.\r\n"},
		{name: "PLAIN with empty response", in: "AUTH PLAIN\r\n\r\n", out: "+ \r\n-ERR Invalid PLAIN message.\r\n"},
		{name: "PLAIN with bad base64", in: "AUTH PLAIN AAAA AAAA\r\n", out: "-ERR Invalid base64 data.\r\n"},
		{name: "PLAIN with a control character", in: "AUTH PLAIN AGZyCmQAeA==\r\n", out: failed},
		{name: "other mechanism", in: "AUTH CRAM-MD5\r\n", out: "-ERR Unsupported authentication mechanism.\r\n"},

		{name: "no plaintext: capabilities", cfg: prelogin.Config{DisablePlaintext: true}, in: "CAPA\r\nAUTH\r\n", out: capa + ".\r\n+OK\r\n.\r\n"},
		{name: "no plaintext: user", cfg: prelogin.Config{DisablePlaintext: true}, in: "USER fred\r\nPASS x\r\n", out: private + private},
		{name: "no plaintext: PLAIN", cfg: prelogin.Config{DisablePlaintext: true}, in: "AUTH PLAIN\r\nNOOP\r\n", out: private + "+OK\r\n"},

		{name: "limit of a line", cfg: prelogin.Config{Limits: prelogin.Limits{Line: 16}}, in: "USER 123456789ab\r\n", out: "-ERR Input line too long.\r\n", err: prelogin.ErrLine},
		{name: "limit of commands", cfg: prelogin.Config{Limits: prelogin.Limits{Commands: 1}}, in: "NOOP\r\nNOOP\r\n", out: "+OK\r\n-ERR Too many commands before login.\r\n", err: prelogin.ErrCommands},
		{name: "limit of invalid commands", in: "a\r\nb\r\nc\r\nd\r\n", out: strings.Repeat("-ERR Unknown command.\r\n", 3) + "-ERR Too many invalid commands.\r\n", err: prelogin.ErrInvalid},
		{name: "limit of attempts", cfg: prelogin.Config{Limits: prelogin.Limits{Attempts: 1}}, in: "USER f\r\nPASS x\r\nQUIT\r\n", out: "+OK\r\n" + failed + "-ERR Too many login attempts.\r\n", logins: []prelogin.Login{user("f", "x")}, err: prelogin.ErrAttempts},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := scriptconn.New(tt.in)
			d := New(conn, tt.cfg)
			var logins []prelogin.Login
			var err error
			for {
				var login prelogin.Login
				if login, err = d.Next(t.Context()); err != nil {
					break
				}
				logins = append(logins, login)
				if err := d.Refuse(prelogin.Refusal{Kind: prelogin.AuthFailed}); err != nil {
					t.Fatal(err)
				}
			}
			want := tt.err
			if want == nil {
				want = io.EOF
			}
			if !errors.Is(err, want) || (tt.err != nil) != errors.Is(err, prelogin.ErrLimit) {
				t.Errorf("ended with %v, want %v", err, want)
			}
			if diff := cmp.Diff(greeting+tt.out, conn.Written()); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.logins, logins); diff != "" {
				t.Errorf("logins (-want +got):\n%s", diff)
			}
			if t.Failed() {
				t.Logf("the dialogue:\n%s", conn.Dialogue())
			}
		})
	}
}

func TestRefuse(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refusal prelogin.Refusal
		want    string
	}{
		{"temporary", prelogin.Refusal{}, "-ERR [SYS/TEMP] Temporary authentication failure.\r\n"},
		{"no backend", prelogin.Refusal{Kind: prelogin.Unavailable, Text: "Later."}, "-ERR [SYS/TEMP] Later.\r\n"},
		{"locked", prelogin.Refusal{Kind: prelogin.InUse}, "-ERR [IN-USE] Your mailbox is in use by another session.\r\n"},
		{"disabled", prelogin.Refusal{Kind: prelogin.PermFail}, "-ERR [AUTH] You may not log in here.\r\n"},
		{"the backend's words", prelogin.Refusal{Raw: []byte("-ERR y\r\n"), Text: "z"}, "-ERR y\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := scriptconn.New("USER fred\r\nPASS x\r\n")
			d := New(conn, prelogin.Config{Greeting: "Hello."})
			if _, err := d.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := d.Refuse(tt.refusal); err != nil {
				t.Fatal(err)
			}
			if want := "+OK Hello.\r\n+OK\r\n" + tt.want; conn.Written() != want {
				t.Errorf("got %q, want %q", conn.Written(), want)
			}
		})
	}
}

// Over real TCP, everything in one segment.
func TestResidualTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	const behind = "STAT\r\nRETR 1\r\nQUIT\r\n"
	if _, err := io.WriteString(client, "USER fred\r\nPASS x\r\n"+behind); err != nil {
		t.Fatal(err)
	}
	if err := client.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	d := New(server, prelogin.Config{})
	if _, err := d.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	residual := string(d.Residual())
	unread, err := io.ReadAll(server)
	if err != nil || residual+string(unread) != behind {
		t.Errorf("residual %q, then %q, %v; want %q", residual, unread, err, behind)
	}
}

func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		heard := make(chan string)
		go func() {
			all, _ := io.ReadAll(client) // ends when the server closes
			heard <- string(all)
		}()
		begin := time.Now()
		_, err := New(server, prelogin.Config{}).Next(t.Context())
		if !errors.Is(err, prelogin.ErrTime) || time.Since(begin) != prelogin.DefaultLimits().Idle {
			t.Errorf("ended with %v after %v", err, time.Since(begin))
		}
		_ = server.Close()
		if got := <-heard; got != greeting+"-ERR Disconnected for inactivity.\r\n" {
			t.Errorf("client heard %q", got)
		}
	})
}
