package lmtp_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/steer/prelogin/lmtp"
	"usher/testenv/backend"
)

// site has the users a1, a2 ... at the first backend, b1 ... at the second, c1 ... at one that is not there.
type site struct {
	backends map[string]*backend.Server
	behave   map[string]func(command, path string) backend.Refusal
}

func newSite(t *testing.T) *site {
	s := &site{backends: map[string]*backend.Server{}, behave: map[string]func(string, string) backend.Refusal{}}
	for _, name := range []string{"a", "b"} {
		b, err := backend.Start(nil, netip.MustParseAddr("127.0.0.1"), backend.Options{
			Name: name, IMAPPort: backend.AnyPort, POP3Port: backend.AnyPort, LMTPPort: backend.AnyPort,
			Behaviour: backend.Behaviour{Deliver: func(command, path string) backend.Refusal {
				if f := s.behave[name]; f != nil {
					return f(command, path)
				}
				return backend.Accept
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		s.backends[name] = b
	}
	return s
}

func (s *site) find(_ context.Context, r lmtp.Recipient) (lmtp.Target, error) {
	switch {
	case strings.HasPrefix(r.User, "nobody"):
		return lmtp.Target{}, &lmtp.Refusal{Reply: "550 5.1.1 <" + r.Address + "> Unknown user"}
	case strings.HasPrefix(r.User, "broken"):
		return lmtp.Target{}, errors.New("the database is asleep")
	}
	b, there := s.backends[r.User[:1]]
	return lmtp.Target{Backend: r.User[:1], Dial: func(ctx context.Context) (net.Conn, error) {
		if !there {
			return nil, errors.New("no route to host")
		}
		return net.Dial("tcp", fmt.Sprint("127.0.0.1:", b.Port("lmtp")))
	}}, nil
}

// mails are what a backend has got, as "<path> <path>", in order.
func (s *site) mails(name string) (all []string) {
	for _, m := range s.backends[name].Mails() {
		all = append(all, strings.Join(m.To, " "))
	}
	return all
}

const greeting = "220 usher LMTP Usher ready.\r\n250-usher\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n"

func TestTransactions(t *testing.T) {
	const ok, sender, goAhead = "250 2.0.0 OK\r\n", "250 2.1.0 OK\r\n", "354 OK\r\n"
	const accepted, bye = "250 2.1.5 OK\r\n", "221 2.0.0 Bye\r\n"
	saved := func(path string) string { return "250 2.0.0 <" + path + "> Saved\r\n" }
	lost := func(path string) string {
		return "451 4.4.2 <" + path + "> Connection to the backend was lost, try again later.\r\n"
	}
	const mail = "Subject: x\r\n\r\n..dot\r\n\xe9\r\n.\r\n"
	refuse := func(what, where string, how backend.Refusal) func(string, string) backend.Refusal {
		return func(command, path string) backend.Refusal {
			if command == what && (where == "" || path == where) {
				return how
			}
			return backend.Accept
		}
	}
	for _, tt := range []struct {
		name   string
		in     string // behind LHLO; QUIT is added
		out    string // behind the answer to LHLO
		a, b   []string
		atA    func(command, path string) backend.Refusal
		cfg    lmtp.Config
		err    error
		noQuit bool
	}{
		{
			name: "two backends", in: "MAIL FROM:<s@x> BODY=8BITMIME SIZE=30\r\nRCPT TO:<a1@x>\r\nRCPT TO:<b1@x>\r\nRCPT TO:<a2+box@x>\r\nDATA\r\n" + mail,
			out: sender + accepted + accepted + accepted + goAhead + saved("a1@x") + saved("b1@x") + saved("a2+box@x"), a: []string{"<a1@x> <a2+box@x>"}, b: []string{"<b1@x>"},
		},
		{
			name: "two mails", in: strings.Repeat("MAIL FROM:<>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<b1@x>\r\nDATA\r\n"+mail, 2),
			out: strings.Repeat(sender+accepted+accepted+goAhead+saved("a1@x")+saved("b1@x"), 2), a: []string{"<a1@x>", "<a1@x>"}, b: []string{"<b1@x>", "<b1@x>"},
		},
		{
			name: "a backend that is down", in: "MAIL FROM:<s@x>\r\nRCPT TO:<c1@x>\r\nRCPT TO:<b1@x>\r\nRCPT TO:<c2@x>\r\nDATA\r\n" + mail,
			out: sender + "451 4.4.1 <c1@x> Backend is not available, try again later.\r\n" + accepted + "451 4.4.1 <c2@x> Backend is not available, try again later.\r\n" + goAhead + saved("b1@x"), b: []string{"<b1@x>"},
		},
		{
			name: "unknown, and not known today", in: "MAIL FROM:<s@x>\r\nRCPT TO:<nobody@x>\r\nRCPT TO:<broken@x>\r\nDATA\r\nRSET\r\n",
			out: sender + "550 5.1.1 <nobody@x> Unknown user\r\n451 4.3.0 <broken@x> Temporary failure, try again later.\r\n503 5.5.1 No valid recipients.\r\n" + ok,
		},
		{
			name: "refused by its backend", in: "MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<a2@x>\r\nDATA\r\n" + mail, atA: refuse("RCPT", "<a1@x>", backend.Reject),
			out: sender + "550 5.1.1 <a1@x> No\r\n" + accepted + goAhead + saved("a2@x"), a: []string{"<a2@x>"},
		},
		{
			name: "all refused, and another mail", in: "MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nDATA\r\nRSET\r\nMAIL FROM:<s@x>\r\nRCPT TO:<a2@x>\r\nDATA\r\n" + mail, atA: refuse("RCPT", "<a1@x>", backend.Unavailable),
			out: sender + "450 4.2.0 <a1@x> Later\r\n503 5.5.1 No valid recipients.\r\n" + ok + sender + accepted + goAhead + saved("a2@x"), a: []string{"<a2@x>"},
		},
		{
			name: "one recipient refused, the mail goes elsewhere only", in: strings.Repeat("MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<b1@x>\r\nDATA\r\n"+mail, 2), atA: refuse("RCPT", "<a1@x>", backend.Unavailable),
			out: strings.Repeat(sender+"450 4.2.0 <a1@x> Later\r\n"+accepted+goAhead+saved("b1@x"), 2), b: []string{"<b1@x>", "<b1@x>"},
		},
		{
			name: "sender refused", in: strings.Repeat("MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<b1@x>\r\nDATA\r\n"+mail, 2), atA: refuse("MAIL", "", backend.Unavailable),
			out: strings.Repeat(sender+"450 4.2.0 <s@x> Later\r\n"+accepted+goAhead+saved("b1@x"), 2), b: []string{"<b1@x>", "<b1@x>"},
		},
		{
			name: "DATA refused by one", in: strings.Repeat("MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<b1@x>\r\nDATA\r\n"+mail, 2), atA: refuse("DATA", "", backend.Unavailable),
			out: strings.Repeat(sender+accepted+accepted+goAhead+"450 4.2.0  Later\r\n"+saved("b1@x"), 2), b: []string{"<b1@x>", "<b1@x>"},
		},
		{
			name: "DATA refused by all", in: "MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nDATA\r\nNOOP\r\n", atA: refuse("DATA", "", backend.Reject),
			out: sender + accepted + "451 4.3.0 No backend takes the mail now, try again later.\r\n" + ok,
		},
		{
			name: "a backend dies with the mail", in: "MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<b1@x>\r\nRCPT TO:<a2@x>\r\nDATA\r\n" + mail + "NOOP\r\n", atA: refuse(".", "", backend.HangUp),
			out: sender + accepted + accepted + accepted + goAhead + lost("a1@x") + saved("b1@x") + lost("a2@x") + ok, b: []string{"<b1@x>"},
		},
		{
			name: "a backend dies between replies", in: "MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<a2@x>\r\nDATA\r\n" + mail, atA: refuse("stored", "<a2@x>", backend.HangUp),
			out: sender + accepted + accepted + goAhead + lost("a1@x") + lost("a2@x"),
		},
		{
			name: "not stored for one", in: "MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<a2@x>\r\nDATA\r\n" + mail, atA: refuse("stored", "<a1@x>", backend.Unavailable),
			out: sender + accepted + accepted + goAhead + "450 4.2.0 <a1@x> Later\r\n" + saved("a2@x"), a: []string{"<a2@x>"},
		},
		{
			name: "reset", in: "MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRSET\r\nDATA\r\nMAIL FROM:<t@x>\r\nRCPT TO:<a2@x>\r\nDATA\r\n" + mail,
			out: sender + accepted + ok + "503 5.5.1 No valid recipients.\r\n" + sender + accepted + goAhead + saved("a2@x"), a: []string{"<a2@x>"},
		},
		{
			name: "order", in: "RCPT TO:<a1@x>\r\nMAIL FROM:<s@x>\r\nMAIL FROM:<s@x>\r\nVRFY a1\r\nBDAT 3 LAST\r\nMAIL FROM <x>\r\n",
			out: "503 5.5.1 MAIL first.\r\n" + sender + "503 5.5.1 MAIL already given.\r\n252 2.3.3 Try RCPT instead.\r\n500 5.5.1 Unknown command.\r\n503 5.5.1 MAIL already given.\r\n",
		},
		{
			name: "parameters", in: "MAIL FROM:<s@x> SMTPUTF8\r\nMAIL FROM:<s@x> SIZE=x\r\nMAIL FROM:<s@x>\r\nRCPT TO:<a1@x> ORCPT=x\r\nRCPT TO:<>\r\n",
			out: "555 5.5.4 Unsupported parameters.\r\n501 5.5.4 Invalid parameters.\r\n" + sender + "555 5.5.4 Unsupported parameters.\r\n501 5.5.4 Invalid address.\r\n",
		},
		{
			name: "too many recipients", cfg: lmtp.Config{Recipients: 1}, in: "MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<a2@x>\r\nDATA\r\n" + mail,
			out: sender + accepted + "452 4.5.3 Too many recipients.\r\n" + goAhead + saved("a1@x"), a: []string{"<a1@x>"},
		},
		{
			name: "too many faults", cfg: lmtp.Config{Invalid: 3}, in: "A\r\nB\r\nC\r\nNOOP\r\n", err: prelogin.ErrInvalid,
			out: strings.Repeat("500 5.5.1 Unknown command.\r\n", 3) + "421 4.7.0 Too long a line, or too many errors.\r\n", noQuit: true,
		},
		{name: "long line", in: strings.Repeat("x", 5000), out: "421 4.7.0 Too long a line, or too many errors.\r\n", err: prelogin.ErrLine, noQuit: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			if tt.atA != nil {
				s.behave["a"] = tt.atA
			}
			for _, size := range []int{1 << 20, 7} {
				in, out := "LHLO mx\r\n"+tt.in, greeting+tt.out
				if !tt.noQuit {
					in, out = in+"QUIT\r\n", out+bye
				}
				conn := scriptconn.Bytewise(size, in)
				cfg := tt.cfg
				cfg.Find, cfg.Delimiter = s.find, "+"
				err := lmtp.Serve(t.Context(), conn, cfg)
				if !errors.Is(err, tt.err) {
					t.Errorf("got %v", err)
				}
				if diff := cmp.Diff(out, conn.Written()); diff != "" {
					t.Errorf("(-want +got) %s", diff)
				}
			}
			if a, b := s.mails("a"), s.mails("b"); !slices.Equal(a, append(tt.a, tt.a...)) || !slices.Equal(b, append(tt.b, tt.b...)) {
				t.Errorf("mails at a %q, at b %q", a, b)
			}
			sum := sha256.Sum256([]byte(strings.TrimSuffix(mail, ".\r\n")))
			for _, m := range append(s.backends["a"].Mails(), s.backends["b"].Mails()...) {
				if m.SHA256 != fmt.Sprintf("%x", sum) || m.Client != "mx" {
					t.Errorf("mail %+v", m)
				}
			}
		})
	}
}

// A mail with lines that some servers take for its end arrives as one mail.
func TestSmuggling(t *testing.T) {
	for _, evil := range []string{"\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r\n.\r", "\n\n.\n"} {
		s := newSite(t)
		in := "LHLO mx\r\nMAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nDATA\r\nhello" + evil + "MAIL FROM:<evil@x>\r\nRCPT TO:<a2@x>\r\nDATA\r\nsmuggled\r\n.\r\nQUIT\r\n"
		conn := scriptconn.New(in)
		if err := lmtp.Serve(t.Context(), conn, lmtp.Config{Find: s.find}); err != nil {
			t.Fatal(err)
		}
		if got := s.mails("a"); len(got) != 1 || got[0] != "<a1@x>" {
			t.Errorf("%q: mails %q\n%s", evil, got, conn.Dialogue())
		}
	}
}

// What a client does not end, nobody stores.
func TestClientLeaves(t *testing.T) {
	s := newSite(t)
	for _, in := range []string{"half a mail\r\n", "half a mail", "a dot\r\n.", ""} {
		conn := scriptconn.New("LHLO mx\r\nMAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<b1@x>\r\nDATA\r\n" + in)
		if err := lmtp.Serve(t.Context(), conn, lmtp.Config{Find: s.find}); err != nil {
			t.Errorf("got %v", err)
		}
	}
	if a, b := s.mails("a"), s.mails("b"); len(a)+len(b) > 0 {
		t.Errorf("mails %q, %q", a, b)
	}
}

// A backend closes connections that it finds idle: the next mail gets a new one.
func TestIdleBackend(t *testing.T) {
	s := newSite(t)
	var mails atomic.Int32
	s.behave["a"] = func(command, _ string) backend.Refusal {
		if command == "MAIL" && mails.Add(1) == 2 {
			return backend.HangUp
		}
		return backend.Accept
	}
	mail := "MAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nDATA\r\nx\r\n.\r\n"
	if err := lmtp.Serve(t.Context(), scriptconn.New("LHLO mx\r\n"+mail+mail+mail), lmtp.Config{Find: s.find}); err != nil {
		t.Error(err)
	}
	got := s.backends["a"].Mails()
	if len(got) != 3 || got[0].Connection == got[1].Connection || got[1].Connection != got[2].Connection {
		t.Errorf("mails %+v", got)
	}
}

// A large mail goes to both backends at once, and one above the limit to none.
func TestSize(t *testing.T) {
	s := newSite(t)
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- lmtp.Serve(t.Context(), near, lmtp.Config{Find: s.find, Size: 10 << 20}) }()
	_ = far.SetDeadline(time.Now().Add(30 * time.Second))
	answers := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(far)
		answers <- string(b)
	}()
	h := sha256.New()
	line := strings.Repeat("0123456789abcde ", 64) + "\r\n"
	for _, lines := range []int{8 << 10, 12 << 10} {
		fmt.Fprint(far, "LHLO mx\r\nMAIL FROM:<s@x>\r\nRCPT TO:<a1@x>\r\nRCPT TO:<b1@x>\r\nDATA\r\n")
		for range lines {
			io.WriteString(far, line)
			if lines == 8<<10 {
				io.WriteString(h, line)
			}
		}
		io.WriteString(far, ".\r\n")
	}
	fmt.Fprint(far, "MAIL FROM:<s@x> SIZE=10485761\r\n")
	io.WriteString(far, "QUIT\r\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
	near.Close()
	text := <-answers
	if strings.Count(text, "552 5.3.4 Message too big.") != 3 || strings.Count(text, "Saved") != 2 || !strings.Contains(text, "250 SIZE 10485760\r\n") {
		t.Errorf("answers:\n%s", text)
	}
	for _, name := range []string{"a", "b"} {
		if m := s.backends[name].Mails(); len(m) != 1 || m[0].SHA256 != fmt.Sprintf("%x", h.Sum(nil)) {
			t.Errorf("%s got %+v", name, m)
		}
	}
}

// Whatever a client says, the server ends, answers in lines, and reads no further than it answers.
func FuzzServe(f *testing.F) {
	f.Add([]byte("LHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<a1@x>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"), uint8(0))
	f.Add([]byte("LHLO x\nMAIL FROM:<> SIZE=1 BODY=7BIT\nRCPT TO:<\"\\\"\"@x>\nRSET\nVRFY\nNOOP\n"), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		find := func(context.Context, lmtp.Recipient) (lmtp.Target, error) { return lmtp.Target{}, errors.New("no") }
		run := func(conn *scriptconn.Conn) (string, string) {
			err := lmtp.Serve(t.Context(), conn, lmtp.Config{Find: find, Line: 128})
			return fmt.Sprint(err), conn.Written()
		}
		err, out := run(scriptconn.New(string(data)))
		errParts, outParts := run(scriptconn.Bytewise(int(size)+1, string(data)))
		if err != errParts || out != outParts {
			t.Errorf("in one segment:\n%q, %s\nin segments of %d:\n%q, %s", out, err, size+1, outParts, errParts)
		}
		if !strings.HasSuffix(out, "\r\n") || strings.ContainsAny(strings.ReplaceAll(out, "\r\n", ""), "\r\n\x00") {
			t.Errorf("answers %q are not lines", out)
		}
	})
}
