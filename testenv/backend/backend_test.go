package backend

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"usher/testenv/content"
	"usher/testenv/dialogue"
)

func start(t *testing.T, o Options) *Server {
	t.Helper()
	o.IMAPPort, o.POP3Port = AnyPort, AnyPort
	s, err := Start(nil, netip.MustParseAddr("127.0.0.1"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func talk(t *testing.T, to netip.AddrPort) *dialogue.Dialogue {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	return dialogue.New(t, c)
}

func TestIMAP(t *testing.T) {
	s := start(t, Options{Name: "stalls", Password: "secret", Master: "usher", MasterPassword: "key"})
	d := talk(t, s.IMAP())
	d.Expect("* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN] stalls ready.")
	d.Send(`a CAPABILITY`, `b ID ("name" "usher")`, `c SELECT INBOX`, `d LOGIN anna wrong`)
	d.Expect("* CAPABILITY IMAP4rev1 SASL-IR *")
	d.Expect("a OK *")
	d.Expect("* ID NIL")
	d.Expect("b OK *")
	d.Expect("c BAD *")
	d.Expect("d NO [AUTHENTICATIONFAILED] *")
	// Master user by authzid, and what is not allowed with it: anna NUL usher NUL key, then NUL-less rubbish.
	d.Send("e AUTHENTICATE PLAIN", "!")
	d.Expect("+ ")
	d.Expect("e BAD *")
	d.Send("f AUTHENTICATE PLAIN YW5uYQB1c2hlcgBrZXk=", "g LOGIN anna secret")
	d.Expect("f OK [CAPABILITY *] Logged in")
	d.Expect("g BAD *")
	d.Send("h x-who", "i SELECT INBOX")
	d.Expect("* X-WHO anna stalls 1")
	d.Expect("h OK *")
	d.ExpectUntil("i OK [READ-WRITE] *")

	d.SendRaw("j APPEND INBOX (\\Seen \\Flagged) \"17-Jul-1996 02:44:25 -0700\" {5}\r\n")
	d.Expect("+ OK")
	d.SendRaw("he\r\nl\r\nk APPEND {5+}\r\nINBOX {0+}\r\n\r\n")
	d.Expect(fmt.Sprintf("j OK [APPENDUID 1 1] %x *", sha256.Sum256([]byte("he\r\nl"))))
	d.Expect(fmt.Sprintf("k OK [APPENDUID 1 1] %x *", sha256.Sum256(nil)))

	m := content.Message(4, content.Size(4))
	d.Send("l FETCH 4 (BODY.PEEK[])", "m FETCH 0 ALL")
	d.Expect(fmt.Sprintf("* 4 FETCH (BODY[] {%d}", len(m)))
	d.ExpectRaw(string(m) + ")\r\n")
	d.Expect("l OK *")
	d.Expect("m BAD *")

	d.SendRaw("n X-ECHO 4\r\n\r\nabo X-DISCARD 2\r\nzzp X-PINGPONG 2 3\r\n")
	d.ExpectRaw("\r\nab")
	d.Expect("n OK *")
	d.Expect("o OK *")
	d.SendRaw("P1P2")
	d.ExpectRaw("\x00\x00\x00\x00\x00\x00")
	d.SendRaw("Q.")
	d.Expect("p OK *")

	d.Send("q IDLE")
	d.Expect("+ idling")
	for end := time.Now().Add(time.Second); s.Notify("anna", "5 EXISTS") != 1; {
		if time.Now().After(end) {
			t.Fatal("the session does not idle")
		}
	}
	d.Expect("* 5 EXISTS")
	d.Send("DONE", "r LOGOUT")
	d.Expect("q OK *")
	d.Expect("* BYE *")
	d.Expect("r OK *")
	d.ExpectEOF()

	s.Close()
	r := s.Sessions()
	if len(r) != 1 || r[0].Master != "usher" || r[0].ClientID != `("name" "usher")` || r[0].Ending != Logout {
		t.Errorf("records %+v", r)
	}
}

func TestPOP3(t *testing.T) {
	s := start(t, Options{Name: "stalls", Password: "sec ret"})
	d := talk(t, s.POP3())
	d.Expect("+OK stalls ready.")
	d.Send("CAPA", "STAT", "USER anna", "PASS secret", "AUTH LOGIN", "AUTH PLAIN", "AGFubmEAc2VjIHJldA==")
	d.ExpectUntil(".")
	d.Expect("-ERR *")
	d.Expect("+OK")
	d.Expect("-ERR [AUTH] *")
	d.Expect("-ERR Only PLAIN *")
	d.Expect("+ ")
	d.Expect("+OK Logged in.")
	d.Send("X-WHO", "STAT", "UIDL", "DELE 1", "DELE 101", "HELP", "QUIT")
	d.Expect("+OK anna stalls 1")
	d.Expect("+OK 100 *")
	if lines := d.ExpectUntil("."); len(lines) != 102 {
		t.Errorf("UIDL has %d lines", len(lines))
	}
	d.Expect("+OK *")
	d.Expect("-ERR *")
	d.Expect("-ERR *")
	d.Expect("+OK Logging out.")
	d.ExpectEOF()

	d = talk(t, s.POP3())
	d.Send("USER anna", "PASS sec ret", "X-FINISH")
	d.ExpectUntil("+OK Goodbye *")
	d.ExpectEOF()
	d.SendRaw("tail")
	d.Close()
	for end := time.Now().Add(time.Second); len(s.Live()) > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if r := s.Sessions(); len(r) != 2 || r[1].Tail != 4 || r[1].Ending != FIN {
		t.Errorf("records %+v", r)
	}
}

// Peers that speak nonsense lose their connection and nothing else.
func TestNonsense(t *testing.T) {
	s := start(t, Options{})
	long := make([]byte, 10_000)
	for i := range long {
		long[i] = 'x'
	}
	for name, text := range map[string]string{
		"empty line":  "\r\n",
		"no command":  "a\r\n",
		"long line":   string(long),
		"long atom":   "a " + string(long),
		"no quote":    `a LOGIN "` + string(long),
		"bad literal": "a LOGIN {x}\r\n",
		"big literal": "a LOGIN {4000000000+}\r\n",
		"no argument": "a LOGIN\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", s.IMAP().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write([]byte(text))
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			for buf := make([]byte, 4096); err == nil; {
				_, err = c.Read(buf)
			}
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the connection is still open")
			}
		})
	}
	talk(t, s.IMAP()).Expect("* OK *")
}

func TestCloseEndsSessions(t *testing.T) {
	s := start(t, Options{})
	d := talk(t, s.IMAP())
	d.Send("a LOGIN anna x")
	d.ExpectUntil("a OK *")
	if n, live, logins, refused := s.Counts(); n != 1 || live != 1 || logins != 1 || refused != 0 {
		t.Errorf("counts %d %d %d %d", n, live, logins, refused)
	}
	s.Close()
	d.ExpectEOF()
	if r := s.Sessions(); len(r) != 1 || r[0].Ending != Closed {
		t.Errorf("records %+v", r)
	}
}
