package dialogue

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

// server says its part of a conversation over TCP and then does end.
func server(t *testing.T, says string, end func(*net.TCPConn)) net.Conn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.Write([]byte(says))
	if end != nil {
		end(s.(*net.TCPConn))
	}
	return c
}

func TestExpectations(t *testing.T) {
	d := New(t, server(t, "* OK ready\r\n* 1 EXISTS\r\na OK {3}\r\nabc", func(c *net.TCPConn) { c.CloseWrite() }))
	if got := d.Expect("* OK *"); got != "* OK ready" {
		t.Errorf("Expect returned %q", got)
	}
	d.Send("a NOOP", "b NOOP")
	if got := d.ExpectUntil("a OK*"); len(got) != 2 {
		t.Errorf("ExpectUntil returned %q", got)
	}
	d.ExpectRaw("abc")
	d.CloseWrite()
	d.ExpectEOF()

	d = New(t, server(t, "", nil))
	d.ExpectSilence(time.Millisecond)
	d.Close()

	New(t, server(t, "", func(c *net.TCPConn) { c.SetLinger(0); c.Close() })).ExpectReset()
}

// recorder is a testing.TB that keeps what the failed test would print.
type recorder struct {
	testing.TB
	text string
}

func (r *recorder) Helper()        {}
func (r *recorder) Cleanup(func()) {}
func (r *recorder) Fatalf(format string, args ...any) {
	r.text = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestFailurePrintsTheDialogue(t *testing.T) {
	for name, c := range map[string]struct {
		says string
		end  func(*net.TCPConn)
		f    func(*Dialogue)
		want string
	}{
		"other line":   {"* BYE\r\n", nil, func(d *Dialogue) { d.Expect("* OK *") }, "C: a\n  S: * BYE"},
		"no CR":        {"* OK\n", nil, func(d *Dialogue) { d.Expect("* OK") }, `S: "* OK\n"`},
		"other bytes":  {"\x00b", nil, func(d *Dialogue) { d.ExpectRaw("ab") }, `S: "\x00b"`},
		"not the end":  {"more\r\n", nil, (*Dialogue).ExpectEOF, "S: more"},
		"half a line":  {"mo", func(c *net.TCPConn) { c.Close() }, (*Dialogue).ExpectEOF, `S: "mo"`},
		"no reset":     {"", func(c *net.TCPConn) { c.CloseWrite() }, (*Dialogue).ExpectReset, "C: a"},
		"not silent":   {"x", nil, func(d *Dialogue) { d.ExpectSilence(time.Second) }, `S: "x"`},
		"never a line": {"1\r\n2\r\n", nil, func(d *Dialogue) { d.Timeout = 20 * time.Millisecond; d.ExpectUntil("3") }, "S: 1\n  S: 2"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &recorder{TB: t}
			done := make(chan struct{})
			go func() {
				defer close(done)
				d := New(r, server(t, c.says, c.end))
				d.Send("a")
				c.f(d)
			}()
			<-done
			if !strings.Contains(r.text, c.want) {
				t.Errorf("the failure says\n%s\nwant in it\n%s", r.text, c.want)
			}
		})
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, line string
		want          bool
	}{
		{"* OK *", "* OK ready", true}, {"* OK *", "* OK", false}, {"a OK*", "a OK", true}, {"a.OK", "a OK", false},
		{"[x] *", "[x] y", true}, {"", "", true}, {"a", "ab", false},
	} {
		if match(c.pattern, c.line) != c.want {
			t.Errorf("match(%q, %q) = %t", c.pattern, c.line, !c.want)
		}
	}
}
