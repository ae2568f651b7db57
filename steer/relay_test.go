package steer

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"usher/director"
	"usher/steer/auth"
	"usher/testenv/client"
)

// puzzle is a driver that understands a mechanism of two steps, which the proxy does not.
type puzzle struct {
	auth.Static
	cancelled chan struct{}
}

func (puzzle) Mechanisms(context.Context) ([]auth.Mechanism, error) {
	return []auth.Mechanism{{Name: "PUZZLE"}, {Name: "PLAIN", Plaintext: true}, {Name: "HIDDEN", Private: true}}, nil
}

func (p puzzle) Begin(_ context.Context, r auth.Request, mechanism string) (auth.Exchange, error) {
	if mechanism != "PUZZLE" {
		return nil, auth.ErrCredentials
	}
	return &riddle{p: p, r: r}, nil
}

type riddle struct {
	p    puzzle
	r    auth.Request
	step int
}

func (x *riddle) Next(_ context.Context, message []byte) ([]byte, *auth.Answer, error) {
	x.step++
	switch {
	case x.step == 1 && message == nil:
		return []byte("6*9"), nil, nil
	case x.step == 2 && string(message) == "42":
		return []byte("v=proof"), nil, nil
	case x.step == 3 && len(message) == 0:
		a := &auth.Answer{User: "fred", Verified: true}
		a.Upstream.User, a.Upstream.Password = "fred", "secret"
		return nil, a, nil
	}
	return nil, nil, fmt.Errorf("%w: wrong answer", auth.ErrCredentials)
}

func (x *riddle) Cancel() { x.p.cancelled <- struct{}{} }

// A mechanism that only the driver understands is passed on, step by step, and its outcome is a login like any other.
func TestRelayedMechanism(t *testing.T) {
	driver := puzzle{auth.Static{NoPassword: true}, make(chan struct{}, 1)}
	for _, tt := range []struct{ protocol, greets, begin, right, end, who string }{
		{"imap", "AUTH=PUZZLE", "a AUTHENTICATE PUZZLE", "+ djk", "a OK", "b X-WHO"},
		{"submission", "", "EHLO x\r\nAUTH PUZZLE", "334 djk", "235", "X-WHO"},
		{"sieve", "PUZZLE", `AUTHENTICATE "PUZZLE"`, "", "OK", "X-WHO"},
	} {
		t.Run(tt.protocol, func(t *testing.T) {
			x := newSite(t, siteConfig{protocol: tt.protocol, driver: driver})
			c, err := net.Dial("tcp", x.addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			answer := func(word string) string {
				if tt.protocol == "sieve" {
					return `"` + word + `"`
				}
				return word
			}
			r := bufio.NewReader(c)
			var all strings.Builder
			until := func(part string) {
				t.Helper()
				for {
					line, err := r.ReadString('\n')
					all.WriteString(line)
					if err != nil {
						t.Fatalf("waiting for %q: %v\n%s", part, err, all.String())
					}
					if strings.Contains(line, part) {
						return
					}
				}
			}
			for _, round := range []struct{ word, next, then string }{
				{"NDM=", "", "uthentication failed"}, // 43
				{"*", "", "aborted by client"},
				{"NDI=", "dj1wcm9vZg==", tt.end}, // 42
			} {
				fmt.Fprintf(c, "%s\r\n", tt.begin)
				until("Nio5") // 6*9
				fmt.Fprintf(c, "%s\r\n", answer(round.word))
				if round.next != "" {
					until(round.next)
					fmt.Fprintf(c, "%s\r\n", answer(""))
				}
				until(round.then)
			}
			fmt.Fprintf(c, "%s\r\n", tt.who)
			until("X-WHO fred ")
			if text := all.String(); !strings.Contains(text, tt.greets) || strings.Contains(text, "HIDDEN") {
				t.Errorf("dialogue:\n%s", text)
			}
			select {
			case <-driver.cancelled:
			default:
				t.Error("the aborted exchange was not cancelled")
			}
		})
	}
}

// An order of the director ends a session with TLS like any other.
func TestKickTLS(t *testing.T) {
	x := newSite(t, siteConfig{protocol: "imap", client: TLSImplicit})
	s, err := x.dial(client.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	x.Router.Begin(func(id uint64) director.Event { return director.Kick{ID: id, User: "fred"} })
	wait(t, "the end of the session", func() bool { return x.Counts().Total == 0 })
	if err := s.Noop(); err == nil {
		t.Error("the session goes on")
	}
}

// Many sessions with TLS on both legs do what mail clients do, at the same time, and none gets a wrong byte.
func TestTrafficTLS(t *testing.T) {
	x := newSite(t, siteConfig{protocol: "imap", backends: 2, client: TLSStart, upstream: TLSImplicit})
	var sessions []*client.Session
	for i := range 20 {
		s, err := x.dial(client.Config{User: fmt.Sprint("user", i), Pipeline: true})
		if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	report := client.Each(sessions, func(i int, s *client.Session) error {
		if err := s.Hammer(ctx, uint64(i)); err != nil {
			return err
		}
		return s.Logout()
	})
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	wait(t, "the end of the sessions", func() bool { return x.Counts().Total == 0 })
}
