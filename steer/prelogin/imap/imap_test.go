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
)

const (
	greeting = "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN] Usher ready.\r\n"
	private  = "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID LOGINDISABLED] Usher ready.\r\n"
	failed   = " NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"
)

// Each attempt is refused, so that the dialogue goes on to the end of the input.
func TestDialogue(t *testing.T) {
	login := func(tag, user, password string) prelogin.Login {
		return prelogin.Login{Tag: tag, User: user, Password: password, Mechanism: "LOGIN"}
	}
	plain := func(tag, authzid, user, password string) prelogin.Login {
		return prelogin.Login{Tag: tag, Authzid: authzid, User: user, Password: password, Mechanism: "PLAIN"}
	}
	const id = "* ID (\"name\" \"Usher\")\r\n"
	const aborted = " BAD Authentication aborted by client.\r\n"
	const refused = " NO [PRIVACYREQUIRED] Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\r\n"
	for _, tt := range []struct {
		name   string
		in     string
		out    string // behind the greeting
		logins []prelogin.Login
		cfg    prelogin.Config
		err    error // io.EOF when left out
	}{
		{name: "silence"},
		{name: "capability", in: "a CAPABILITY\r\n", out: "* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN\r\na OK Capability completed.\r\n"},
		{name: "case", in: "A1 nOOp\r\n", out: "A1 OK NOOP completed.\r\n"},
		{name: "line ends without CR", in: "a NOOP\nb NOOP\n", out: "a OK NOOP completed.\r\nb OK NOOP completed.\r\n"},
		{name: "id", in: "a ID NIL\r\nb ID (\"name\" \"x\" \"version\" NIL)\r\nc ID ()\r\n", out: id + "a OK ID completed.\r\n" + id + "b OK ID completed.\r\n" + id + "c OK ID completed.\r\n"},
		{name: "id with literals", in: "a ID (\"name\" {3}\r\nx)y)\r\n", out: "+ OK\r\n" + id + "a OK ID completed.\r\n"},
		{name: "logout", in: "a LOGOUT\r\nb NOOP\r\n", out: "* BYE Logging out\r\na OK Logout completed.\r\n"},
		{name: "unknown", in: "a SELECT INBOX\r\n", out: "a BAD Unknown command before login.\r\n"},
		{name: "arguments where none belong", in: "a NOOP x\r\n", out: "a BAD Invalid arguments.\r\n"},
		{name: "tag alone", in: "a\r\n", out: "a BAD Invalid arguments.\r\n"},
		{name: "empty line", in: "\r\n", out: "* BAD Invalid tag.\r\n"},
		{name: "plus in the tag", in: "a+ NOOP\r\n", out: "* BAD Invalid tag.\r\n"},
		{name: "star as the tag", in: "* NOOP\r\n", out: "* BAD Invalid tag.\r\n"},
		{name: "8 bits in the tag", in: "\xe9 NOOP\r\n", out: "* BAD Invalid tag.\r\n"},
		{name: "longest tag", in: strings.Repeat("t", 64) + " NOOP\r\n", out: strings.Repeat("t", 64) + " OK NOOP completed.\r\n"},
		{name: "tag too long", in: strings.Repeat("t", 65) + " NOOP\r\n", out: "* BAD Invalid tag.\r\n"},

		{name: "login with atoms", in: "a LOGIN fred*master x]y\r\n", out: "a" + failed, logins: []prelogin.Login{login("a", "fred*master", "x]y")}},
		{name: "login with quoted strings", in: `a login "fr\"ed" "\\ x"` + "\r\n", out: "a" + failed, logins: []prelogin.Login{login("a", `fr"ed`, `\ x`)}},
		{name: "login with 8 bits", in: "a LOGIN fred \"p\xc3\xab\"\r\n", out: "a" + failed, logins: []prelogin.Login{login("a", "fred", "p\xc3\xab")}},
		{name: "login with literals", in: "a LOGIN {4}\r\nfred {3}\r\nx y\r\n", out: "+ OK\r\n+ OK\r\na" + failed, logins: []prelogin.Login{login("a", "fred", "x y")}},
		{name: "login with LITERAL+", in: "a LOGIN {4+}\r\nfred {0+}\r\n\r\n", out: "a" + failed, logins: []prelogin.Login{login("a", "fred", "")}},
		{name: "literal that looks like a literal", in: "a LOGIN {4+}\r\n{3+} {3}\r\n\"x\"\r\n", out: "+ OK\r\na" + failed, logins: []prelogin.Login{login("a", "{3+}", `"x"`)}},
		{name: "empty password", in: "a LOGIN fred \"\"\r\n", out: "a" + failed, logins: []prelogin.Login{login("a", "fred", "")}},
		{name: "empty user", in: "a LOGIN \"\" x\r\n", out: "a" + failed},
		{name: "control character in the user", in: "a LOGIN {5+}\r\nf\r\nok x\r\n", out: "a" + failed},
		{name: "NUL in a literal", in: "a LOGIN {1+}\r\n\x00 x\r\n", out: "a BAD NUL in a string.\r\n"},
		{name: "NUL in a quoted string", in: "a LOGIN \"\x00\" x\r\n", out: "a BAD Invalid quoted string.\r\n"},
		{name: "NUL in an atom", in: "a LOGIN \x00 x\r\n", out: "a BAD Invalid characters in atom.\r\n"},
		{name: "8 bits in an atom", in: "a LOGIN fr\xebd x\r\n", out: "a BAD Invalid characters in atom.\r\n"},
		{name: "escape of an ordinary character", in: `a LOGIN fred "a\b"` + "\r\n", out: "a BAD Invalid quoted string.\r\n"},
		{name: "quote not closed", in: "a LOGIN fred \"x {3}\r\nb NOOP\r\n", out: "a BAD Invalid quoted string.\r\nb OK NOOP completed.\r\n"},
		{name: "one argument", in: "a LOGIN fred\r\n", out: "a BAD Invalid arguments.\r\n"},
		{name: "three arguments", in: "a LOGIN fred x y\r\n", out: "a BAD Invalid arguments.\r\n"},
		{name: "two spaces", in: "a LOGIN fred  x\r\n", out: "a BAD Invalid characters in atom.\r\n"},
		{name: "literal glued to an atom", in: "a LOGIN fred x{2+}\r\nyz\r\nb NOOP\r\n", out: "a BAD Invalid characters in atom.\r\nb OK NOOP completed.\r\n"},
		{name: "literal without a size", in: "a LOGIN {} x\r\n", out: "a BAD Invalid characters in atom.\r\n"},
		{name: "literal to wait for that is too long", in: "a LOGIN fred {4097}\r\nb NOOP\r\n", out: "a BAD Literal too long or not allowed here.\r\nb OK NOOP completed.\r\n"},
		{name: "literal for a command without strings", in: "a NOOP {3}\r\nb NOOP {3+}\r\nxyz\r\nc NOOP\r\n", out: "a BAD Invalid arguments.\r\nb BAD Invalid arguments.\r\nc OK NOOP completed.\r\n"},

		{name: "PLAIN with initial response", in: "a AUTHENTICATE plain AGZyZWQAeA==\r\n", out: "a" + failed, logins: []prelogin.Login{plain("a", "", "fred", "x")}},
		{name: "PLAIN for another", in: "a AUTHENTICATE PLAIN ZnJlZABib3NzAHg=\r\n", out: "a" + failed, logins: []prelogin.Login{plain("a", "fred", "boss", "x")}},
		{name: "PLAIN with continuation", in: "a AUTHENTICATE PLAIN\r\nAGZyZWQAeA==\r\n", out: "+ \r\na" + failed, logins: []prelogin.Login{plain("a", "", "fred", "x")}},
		{name: "PLAIN cancelled", in: "a AUTHENTICATE PLAIN\r\n*\r\nb NOOP\r\n", out: "+ \r\na" + aborted + "b OK NOOP completed.\r\n"},
		{name: "PLAIN with empty initial response", in: "a AUTHENTICATE PLAIN =\r\n", out: "a BAD Invalid PLAIN message.\r\n"},
		{name: "PLAIN with empty response", in: "a AUTHENTICATE PLAIN\r\n\r\n", out: "+ \r\na BAD Invalid PLAIN message.\r\n"},
		{name: "PLAIN with bad base64", in: "a AUTHENTICATE PLAIN !\r\n", out: "a BAD Invalid base64 data.\r\n"},
		{name: "PLAIN with two responses", in: "a AUTHENTICATE PLAIN AAAA AAAA\r\n", out: "a BAD Invalid arguments.\r\n"},
		{name: "PLAIN with a control character", in: "a AUTHENTICATE PLAIN AGZyCmQAeA==\r\n", out: "a" + failed},
		{name: "other mechanism", in: "a AUTHENTICATE CRAM-MD5\r\nb NOOP\r\n", out: "a NO Unsupported authentication mechanism.\r\nb OK NOOP completed.\r\n"},
		{name: "no mechanism", in: "a AUTHENTICATE\r\n", out: "a BAD Invalid arguments.\r\n"},

		{name: "no plaintext: capability", cfg: prelogin.Config{DisablePlaintext: true}, in: "a CAPABILITY\r\n", out: "* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID LOGINDISABLED\r\na OK Capability completed.\r\n"},
		{name: "no plaintext: login", cfg: prelogin.Config{DisablePlaintext: true}, in: "a LOGIN fred x\r\n", out: "a" + refused},
		{name: "no plaintext: literal not asked for", cfg: prelogin.Config{DisablePlaintext: true}, in: "a LOGIN {4}\r\nb NOOP\r\n", out: "a" + refused + "b OK NOOP completed.\r\n"},
		{name: "no plaintext: PLAIN", cfg: prelogin.Config{DisablePlaintext: true}, in: "a AUTHENTICATE PLAIN\r\nb NOOP\r\n", out: "a" + refused + "b OK NOOP completed.\r\n"},

		{name: "limit of a line", cfg: prelogin.Config{Limits: prelogin.Limits{Line: 16}}, in: "a LOGIN fred 123456\r\n", out: "* BYE Input line too long.\r\n", err: prelogin.ErrLine},
		{name: "limit of a line that does not end", cfg: prelogin.Config{Limits: prelogin.Limits{Line: 16}}, in: strings.Repeat("x", 16), out: "* BYE Input line too long.\r\n", err: prelogin.ErrLine},
		{name: "longest line", cfg: prelogin.Config{Limits: prelogin.Limits{Line: 16}}, in: "a LOGIN fred x\r\n", out: "a" + failed, logins: []prelogin.Login{login("a", "fred", "x")}},
		{name: "limit of a literal", in: "a LOGIN {4097+}\r\n", out: "* BYE Literal too long.\r\n", err: prelogin.ErrLiteral},
		{name: "limit of a literal with a huge size", in: "a LOGIN {99999999999999999999999+}\r\n", out: "* BYE Literal too long.\r\n", err: prelogin.ErrLiteral},
		{name: "limit of all bytes", cfg: prelogin.Config{Limits: prelogin.Limits{Bytes: 20}}, in: "a NOOP\r\nb NOOP\r\nc NOOP\r\n", out: "a OK NOOP completed.\r\nb OK NOOP completed.\r\n* BYE Too many commands before login.\r\n", err: prelogin.ErrBytes},
		{name: "limit of commands", cfg: prelogin.Config{Limits: prelogin.Limits{Commands: 2}}, in: "a NOOP\r\nb NOOP\r\nc NOOP\r\n", out: "a OK NOOP completed.\r\nb OK NOOP completed.\r\n* BYE Too many commands before login.\r\n", err: prelogin.ErrCommands},
		{name: "limit of invalid commands", in: "GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: y\r\n\r\n", out: "GET BAD Unknown command before login.\r\nHost: BAD Unknown command before login.\r\nUser-Agent: BAD Unknown command before login.\r\n* BYE Too many invalid commands.\r\n", err: prelogin.ErrInvalid},
		{name: "limit of attempts", cfg: prelogin.Config{Limits: prelogin.Limits{Attempts: 2}}, in: "a LOGIN f x\r\nb LOGIN \"\" x\r\nc LOGIN f x\r\n", out: "a" + failed + "b" + failed + "* BYE Too many login attempts.\r\n", logins: []prelogin.Login{login("a", "f", "x")}, err: prelogin.ErrAttempts},
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
			out := greeting + tt.out
			if tt.cfg.DisablePlaintext {
				out = private + tt.out
			}
			if diff := cmp.Diff(out, conn.Written()); diff != "" {
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
		{"temporary", prelogin.Refusal{}, "a NO [UNAVAILABLE] Temporary authentication failure.\r\n"},
		{"no backend", prelogin.Refusal{Kind: prelogin.Unavailable}, "a NO [UNAVAILABLE] No mail server is available for you now. Try again later.\r\n"},
		{"locked", prelogin.Refusal{Kind: prelogin.InUse}, "a NO [INUSE] Your mailbox is in use by another session.\r\n"},
		{"disabled", prelogin.Refusal{Kind: prelogin.PermFail, Text: "Ask the desk."}, "a NO [AUTHORIZATIONFAILED] Ask the desk.\r\n"},
		{"the backend's words", prelogin.Refusal{Kind: prelogin.PermFail, Raw: []byte("a NO [X] y\r\n"), Text: "z"}, "a NO [X] y\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := scriptconn.New("a LOGIN fred x\r\n")
			d := New(conn, prelogin.Config{})
			if _, err := d.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := d.Refuse(tt.refusal); err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimPrefix(conn.Written(), greeting); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Over real TCP: everything in one segment, and the rest in a second one.
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

	const behind = "c SELECT INBOX\r\nd APPEND x {3+}\r\n\x00\r\n\r\n"
	if _, err := io.WriteString(client, "a LOGIN fred wrong\r\nb LOGIN fred {5+}\r\nright\r\n"+behind); err != nil {
		t.Fatal(err)
	}
	if err := client.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	d := New(server, prelogin.Config{})
	for _, want := range []string{"wrong", "right"} {
		login, err := d.Next(t.Context())
		if err != nil || login.Password != want {
			t.Fatalf("got %+v, %v", login, err)
		}
		if want == "wrong" {
			if err := d.Refuse(prelogin.Refusal{Kind: prelogin.AuthFailed}); err != nil {
				t.Fatal(err)
			}
		}
	}
	residual := string(d.Residual())
	unread, err := io.ReadAll(server)
	if err != nil || residual+string(unread) != behind {
		t.Errorf("residual %q, then %q, %v; want %q", residual, unread, err, behind)
	}
}

// Time limits, in a bubble where the clock jumps: one command, the whole dialogue, and a client that does not read.
func TestTime(t *testing.T) {
	limits := prelogin.Limits{Idle: 10 * time.Second, Whole: 25 * time.Second, Commands: 1000}
	for _, tt := range []struct {
		name     string
		silent   time.Duration // between the client's bytes
		after    time.Duration // when the dialogue ends
		deaf     bool
		farewell string
	}{
		{name: "silent client", silent: time.Hour, after: 10 * time.Second, farewell: "* BYE Disconnected for inactivity.\r\n"},
		{name: "one byte now and then", silent: 6 * time.Second, after: 10 * time.Second, farewell: "* BYE Disconnected for inactivity.\r\n"},
		{name: "busy but never logged in", silent: time.Second, after: 25 * time.Second, farewell: "* BYE Disconnected for inactivity.\r\n"},
		{name: "client does not read", silent: time.Hour, deaf: true, after: 11 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				var heard strings.Builder
				done := make(chan struct{})
				go func() {
					defer close(done)
					if !tt.deaf {
						_, _ = io.Copy(&heard, client) // ends when the server closes
					}
				}()
				over := make(chan struct{})
				defer close(over)
				go func() {
					for {
						for _, b := range []byte("a NOOP\r\n") {
							select {
							case <-time.After(tt.silent):
							case <-over:
								return
							}
							if _, err := client.Write([]byte{b}); err != nil {
								return
							}
						}
					}
				}()
				begin := time.Now()
				_, err := New(server, prelogin.Config{Limits: limits}).Next(t.Context())
				if !errors.Is(err, prelogin.ErrTime) || time.Since(begin) != tt.after {
					t.Errorf("ended with %v after %v, want %v", err, time.Since(begin), tt.after)
				}
				_ = server.Close()
				_ = client.Close()
				<-done
				if !strings.HasSuffix(heard.String(), tt.farewell) {
					t.Errorf("client heard %q", heard.String())
				}
			})
		})
	}
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		ctx, cancel := context.WithCancelCause(t.Context())
		reason := errors.New("shutdown")
		time.AfterFunc(time.Second, func() { cancel(reason) })
		var heard strings.Builder
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(&heard, client) // ends when the server closes
		}()
		_, err := New(server, prelogin.Config{}).Next(ctx)
		_ = server.Close()
		<-done
		if err != reason || heard.String() != greeting+"* BYE Server is shutting down.\r\n" {
			t.Errorf("ended with %v, client heard %q", err, heard.String())
		}
	})
}
