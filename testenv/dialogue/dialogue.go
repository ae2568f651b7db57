// Package dialogue drives one side of a line-based conversation in a test, and prints the whole conversation
// when it does not go as expected.
//
//	d := dialogue.New(t, conn)
//	d.Expect("* OK *")
//	d.Send(`a LOGIN anna secret`)
//	d.Expect("a OK *")
package dialogue

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// DefaultTimeout bounds each expectation.
const DefaultTimeout = 5 * time.Second

// kept is how many lines of the conversation are printed: the last ones.
const kept = 200

// Dialogue is a conversation; use one in one goroutine. Every method ends the test when it fails.
type Dialogue struct {
	Timeout time.Duration // per expectation; DefaultTimeout unless set

	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
	said []string
}

// New begins a conversation on an open connection, which is closed at the end of the test.
func New(t testing.TB, conn net.Conn) *Dialogue {
	t.Cleanup(func() { conn.Close() })
	return &Dialogue{Timeout: DefaultTimeout, t: t, conn: conn, r: bufio.NewReader(conn)}
}

// Send sends lines, each ended by CRLF, in one write.
func (d *Dialogue) Send(lines ...string) {
	d.t.Helper()
	d.SendRaw(strings.Join(lines, "\r\n") + "\r\n")
}

// SendRaw sends text as it stands.
func (d *Dialogue) SendRaw(text string) {
	d.t.Helper()
	d.note("C", text)
	d.conn.SetWriteDeadline(time.Now().Add(d.Timeout))
	if _, err := io.WriteString(d.conn, text); err != nil {
		d.fail("send %q: %v", text, err)
	}
}

// Expect reads one line and returns it without its CRLF. In the pattern "*" stands for any text, so "* OK *" also
// matches the untagged answer that it looks like.
func (d *Dialogue) Expect(pattern string) string {
	d.t.Helper()
	line, err := d.line()
	if err != nil {
		d.fail("expected line %q: %v", pattern, err)
	}
	if !match(pattern, line) {
		d.fail("expected line %q", pattern)
	}
	return line
}

// ExpectUntil reads lines up to one that matches, and returns all of them.
func (d *Dialogue) ExpectUntil(pattern string) (lines []string) {
	d.t.Helper()
	for {
		line, err := d.line()
		if err != nil {
			d.fail("expected some line %q: %v", pattern, err)
		}
		if lines = append(lines, line); match(pattern, line) {
			return lines
		}
	}
}

// ExpectRaw reads exactly these bytes.
func (d *Dialogue) ExpectRaw(want string) {
	d.t.Helper()
	d.arm(d.Timeout)
	got := make([]byte, len(want))
	n, err := io.ReadFull(d.r, got)
	d.note("S", string(got[:n]))
	if err != nil || !bytes.Equal(got, []byte(want)) {
		d.fail("expected %q, got %q, %v", want, got[:n], err)
	}
}

// ExpectEOF expects the other side to close its direction, in order and without another byte.
func (d *Dialogue) ExpectEOF() {
	d.t.Helper()
	if line, err := d.line(); !errors.Is(err, io.EOF) || line != "" {
		d.fail("expected the end of the stream, got %q, %v", line, err)
	}
}

// ExpectReset expects the other side to reset the connection.
func (d *Dialogue) ExpectReset() {
	d.t.Helper()
	if line, err := d.line(); !errors.Is(err, syscall.ECONNRESET) {
		d.fail("expected a reset, got %q, %v", line, err)
	}
}

// ExpectSilence expects nothing for some time.
func (d *Dialogue) ExpectSilence(quiet time.Duration) {
	d.t.Helper()
	d.arm(quiet)
	b, err := d.r.Peek(1)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		d.note("S", string(b))
		d.fail("expected silence, got %q, %v", b, err)
	}
}

// CloseWrite closes the own direction.
func (d *Dialogue) CloseWrite() {
	d.t.Helper()
	d.said = append(d.said, "C: (closes its direction)")
	c, ok := d.conn.(interface{ CloseWrite() error })
	if !ok {
		d.fail("%T cannot be closed in one direction", d.conn)
	}
	if err := c.CloseWrite(); err != nil {
		d.fail("close own direction: %v", err)
	}
}

// Close hangs up.
func (d *Dialogue) Close() { d.conn.Close() }

func (d *Dialogue) line() (string, error) {
	d.arm(d.Timeout)
	line, err := d.r.ReadString('\n')
	if line != "" {
		d.note("S", line)
	}
	if err != nil {
		return line, err
	}
	if !strings.HasSuffix(line, "\r\n") {
		return line, errors.New("line ends without CR")
	}
	return strings.TrimSuffix(line, "\r\n"), nil
}

func (d *Dialogue) arm(t time.Duration) { d.conn.SetReadDeadline(time.Now().Add(t)) }

// note records what was said, showing everything that is not plain text.
func (d *Dialogue) note(who, text string) {
	for line := range strings.SplitAfterSeq(text, "\n") {
		if line == "" {
			continue
		}
		shown := strings.TrimSuffix(line, "\r\n")
		if q := fmt.Sprintf("%q", shown); shown == line || q != `"`+shown+`"` {
			shown = fmt.Sprintf("%.300q", line) // not a plain line: with its quotes and its end
		}
		d.said = append(d.said, who+": "+shown)
	}
}

func (d *Dialogue) fail(format string, args ...any) {
	d.t.Helper()
	from := max(0, len(d.said)-kept)
	d.t.Fatalf("%s\nthe dialogue was (C is this test):\n  %s", fmt.Sprintf(format, args...), strings.Join(d.said[from:], "\n  "))
}

func match(pattern, line string) bool {
	parts := strings.Split(pattern, "*")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile(`(?s)^` + strings.Join(parts, ".*") + `$`).MatchString(line)
}
