package client

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"usher/testenv/content"
)

// simple is a command with nothing but a final line.
func (s *Session) simple(command string, each func(string) error) error {
	return s.do(command, func() error {
		if err := s.send(command); err != nil {
			return err
		}
		_, err := s.final(each)
		return err
	})
}

// Noop does a round trip.
func (s *Session) Noop() error { return s.simple("NOOP", nil) }

// Logout says goodbye, waits until the server closes, and closes.
func (s *Session) Logout() error {
	defer s.conn.Close()
	command := "LOGOUT"
	if s.cfg.Protocol == POP3 || s.cfg.Protocol == Submission {
		command = "QUIT"
	}
	return s.do(command, func() error {
		if err := s.send(command); err != nil {
			return err
		}
		for { // not final(): "* BYE" is right here
			l, err := s.line()
			if err != nil {
				return err
			}
			if strings.HasPrefix(l, "* ") {
				continue
			}
			if s.cfg.Protocol == Submission || s.cfg.Protocol == Sieve {
				if _, _, err := textStatus(l, s.cfg.Protocol); err != nil {
					return err
				}
				return s.end()
			}
			if l != "+OK" && !strings.HasPrefix(l, "+OK ") && !strings.HasPrefix(l, s.tag+" OK ") {
				return fail(Refused, "%s", l)
			}
			return s.end()
		}
	})
}

// end expects nothing but the end of the stream.
func (s *Session) end() error {
	rest, err := io.ReadAll(io.LimitReader(s.r, 100))
	if err == nil && len(rest) > 0 {
		err = fail(Corrupt, "expected the end, got %q", rest)
	}
	return err
}

// Who asks the backend for its name and the user it believes to serve (X-WHO).
func (s *Session) Who() (backend string, err error) {
	err = s.do("X-WHO", func() error {
		if err := s.send("X-WHO"); err != nil {
			return err
		}
		var answer string
		text, err := s.final(func(l string) error { answer = l; return nil })
		if err != nil {
			return err
		}
		switch s.cfg.Protocol {
		case POP3:
			answer = "* X-WHO " + text
		case Submission:
			answer = "* " + strings.TrimPrefix(answer, "250-")
		case Sieve:
			answer = "* " + strings.Trim(answer, `"`)
		}
		f := strings.Fields(answer)
		if len(f) != 5 || f[2] != s.cfg.User {
			return fail(Corrupt, "backend serves %q, this is %s", answer, s.cfg.User)
		}
		backend = f[3]
		return nil
	})
	return backend, err
}

// Select opens INBOX (POP3: STAT).
func (s *Session) Select() error {
	if s.cfg.Protocol == POP3 {
		return s.simple("STAT", nil)
	}
	return s.simple("SELECT INBOX", func(l string) error {
		if n, ok := strings.CutSuffix(l[2:], " EXISTS"); ok {
			s.exists, _ = strconv.ParseUint(n, 10, 64)
		}
		return nil
	})
}

// List reads the list of messages of a POP3 session.
func (s *Session) List() error {
	return s.do("LIST", func() error {
		if err := s.send("LIST"); err != nil {
			return err
		}
		if _, err := s.final(nil); err != nil {
			return err
		}
		for {
			if l, err := s.line(); err != nil || l == "." {
				return err
			}
		}
	})
}

// Idle is in IDLE for some time and returns the untagged lines that came; POP3 sessions just wait.
func (s *Session) Idle(d time.Duration) (lines []string, err error) {
	if s.cfg.Protocol == POP3 {
		time.Sleep(d)
		return nil, nil
	}
	err = s.do("IDLE", func() error {
		if err := s.send("IDLE"); err != nil {
			return err
		}
		if err := s.goOn(); err != nil {
			return err
		}
		s.conn.SetDeadline(time.Now().Add(d + s.cfg.Timeout))
		done := time.AfterFunc(d, func() { io.WriteString(&s.wire, "DONE\r\n") })
		defer done.Stop()
		_, err := s.final(func(l string) error { lines = append(lines, l); return nil })
		return err
	})
	return lines, err
}

// Append stores message seed of size bytes, with a synchronizing literal or (plus) without waiting.
// The scripted backend says what it got, a real one shows it with Fetch.
func (s *Session) Append(seed uint64, size int, plus bool) error {
	m := content.Message(seed, size)
	announce := fmt.Sprintf("APPEND INBOX (\\Seen) {%d", len(m))
	return s.do(announce+"}", func() error {
		if plus {
			if err := s.send(announce+"+}", append(m, '\r', '\n')...); err != nil {
				return err
			}
		} else {
			if err := s.send(announce + "}"); err != nil {
				return err
			}
			if err := s.goOn(); err != nil {
				return err
			}
			if _, err := s.wire.Write(append(m, '\r', '\n')); err != nil {
				return err
			}
		}
		text, err := s.final(nil)
		if err != nil || s.cfg.Real {
			return err
		}
		if want := fmt.Sprintf(" %x ", sha256.Sum256(m)); !strings.Contains(text, want) {
			return fail(Corrupt, "backend got another message: want %s, got %s", want, text)
		}
		return nil
	})
}

// Fetch reads message n (from 1) and checks it (POP3: RETR).
func (s *Session) Fetch(n uint64) error {
	command := fmt.Sprintf("FETCH %d (BODY.PEEK[])", n)
	read := s.fetched
	if s.cfg.Protocol == POP3 {
		command = fmt.Sprintf("RETR %d", n)
		read = s.retrieved
	}
	return s.do(command, func() error {
		if err := s.send(command); err != nil {
			return err
		}
		m, err := read()
		if err != nil {
			return err
		}
		seed, err := content.Verify(m)
		if err != nil {
			return err
		}
		if !s.cfg.Real && seed != n {
			return fail(Corrupt, "asked for message %d, got a right message %d", n, seed)
		}
		return nil
	})
}

func (s *Session) fetched() (m []byte, err error) {
	_, err = s.final(func(l string) error {
		brace := strings.LastIndexByte(l, '{')
		if brace < 0 || !strings.HasSuffix(l, "}") {
			return nil
		}
		size, err := strconv.ParseUint(l[brace+1:len(l)-1], 10, 31)
		if err != nil {
			return fail(Nonsense, "%s", l)
		}
		m = make([]byte, size)
		if _, err := io.ReadFull(s.r, m); err != nil {
			return err
		}
		rest, err := s.line()
		if err == nil && !strings.HasSuffix(rest, ")") {
			err = fail(Corrupt, "behind the message: %q", rest)
		}
		return err
	})
	if err == nil && m == nil {
		err = fail(Nonsense, "no message in the answer")
	}
	return m, err
}

func (s *Session) retrieved() ([]byte, error) {
	if _, err := s.final(nil); err != nil {
		return nil, err
	}
	var m bytes.Buffer
	for {
		l, err := s.line()
		if err != nil || l == "." {
			return m.Bytes(), err
		}
		m.WriteString(strings.TrimPrefix(l, "."))
		m.WriteString("\r\n")
	}
}

// Echo sends n bytes of stream seed and checks what comes back meanwhile.
func (s *Session) Echo(n int64, seed uint64) error {
	command := fmt.Sprintf("X-ECHO %d", n)
	return s.do(command, func() error {
		if err := s.send(command); err != nil {
			return err
		}
		sent := make(chan error, 1)
		go func() {
			_, err := io.CopyN(&s.wire, content.Stream(seed), n)
			sent <- err
		}()
		_, err := io.CopyN(content.NewCheck(seed), s.r, n)
		if err != nil {
			s.conn.SetDeadline(time.Unix(1, 0)) // the sender must not wait for a peer that is lost
		}
		if serr := <-sent; err == nil {
			err = serr
		}
		if err != nil {
			return err
		}
		_, err = s.final(nil)
		return err
	})
}

// Source receives n bytes of stream seed and checks them; seed 0 is cheap and not checked.
func (s *Session) Source(n int64, seed uint64) error {
	command := fmt.Sprintf("X-SOURCE %d %d", n, seed)
	return s.do(command, func() error {
		if err := s.send(command); err != nil {
			return err
		}
		return s.sourced(n, seed)
	})
}

func (s *Session) sourced(n int64, seed uint64) error {
	check := io.Discard
	if seed != 0 {
		check = content.NewCheck(seed)
	}
	if _, err := io.CopyN(check, s.r, n); err != nil {
		return err
	}
	_, err := s.final(nil)
	return err
}

// HalfClose asks for n bytes, closes the own direction at once, reads everything and expects the server to end
// the connection. The session is over.
func (s *Session) HalfClose(n int64, seed uint64) error {
	defer s.conn.Close()
	command := fmt.Sprintf("X-SOURCE %d %d", n, seed)
	return s.do("half-close, "+command, func() error {
		if err := s.send(command); err != nil {
			return err
		}
		if err := s.conn.CloseWrite(); err != nil {
			return err
		}
		if err := s.sourced(n, seed); err != nil {
			return err
		}
		return s.end()
	})
}

// Finish lets the server close its direction first and then sends n bytes of stream seed. The session is
// over; the server's record has count and hash (TailSHA256 of backend.Session is that of the same stream).
func (s *Session) Finish(n int64, seed uint64) error {
	defer s.conn.Close()
	return s.do("X-FINISH", func() error {
		if err := s.send("X-FINISH"); err != nil {
			return err
		}
		if _, err := s.final(nil); err != nil {
			return err
		}
		if err := s.end(); err != nil {
			return err
		}
		_, err := io.CopyN(&s.wire, content.Stream(seed), n)
		return err
	})
}

// behind is a command that is pipelined behind the login.
type behind struct {
	s    *Session
	data string
	raw  []byte
}

func (s *Session) behind() *behind {
	b := &behind{s: s, raw: make([]byte, 1+rand.IntN(2000))}
	io.ReadFull(content.Stream(1), b.raw)
	b.data = fmt.Sprintf("X-ECHO %d\r\n%s", len(b.raw), b.raw)
	if s.cfg.Protocol == IMAP {
		b.data = "behind " + b.data
	}
	return b
}

func (b *behind) read() error {
	got := make([]byte, len(b.raw))
	if _, err := io.ReadFull(b.s.r, got); err != nil {
		return err
	}
	if !slices.Equal(got, b.raw) {
		return fail(Corrupt, "bytes behind the login differ")
	}
	b.s.tag = "behind"
	_, err := b.s.final(nil)
	return err
}
