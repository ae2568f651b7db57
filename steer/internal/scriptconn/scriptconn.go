// Package scriptconn is a network connection for tests whose other side is a script: what it says is given beforehand, cut
// into segments at will, and what it is told is recorded.
package scriptconn

import (
	"bytes"
	"io"
	"net"
	"strings"
	"time"
)

// Conn is the connection. Each Read returns bytes of one segment only; behind the last one is io.EOF.
type Conn struct {
	net.Conn // nil: whatever is not implemented here must not be used

	segments [][]byte
	written  bytes.Buffer
	dialogue strings.Builder
}

// New makes a connection on which the segments arrive one after the other.
func New(segments ...string) *Conn {
	c := &Conn{}
	for _, s := range segments {
		c.segments = append(c.segments, []byte(s))
	}
	return c
}

// Bytewise makes a connection on which everything arrives in segments of n bytes.
func Bytewise(n int, all string) *Conn {
	c := &Conn{}
	for len(all) > n {
		c.segments, all = append(c.segments, []byte(all[:n])), all[n:]
	}
	c.segments = append(c.segments, []byte(all))
	return c
}

func (c *Conn) Read(p []byte) (int, error) {
	for len(c.segments) > 0 && len(c.segments[0]) == 0 {
		c.segments = c.segments[1:]
	}
	if len(c.segments) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.segments[0])
	c.note("< ", p[:n])
	c.segments[0] = c.segments[0][n:]
	return n, nil
}

func (c *Conn) Write(p []byte) (int, error) {
	c.note("> ", p)
	return c.written.Write(p)
}

// Written is everything that the code under test said.
func (c *Conn) Written() string { return c.written.String() }

// Unread is what nobody read from the connection.
func (c *Conn) Unread() string { return string(bytes.Join(c.segments, nil)) }

// Dialogue is both sides in their order, for the message of a failing test; "> " is what the code under test said.
func (c *Conn) Dialogue() string { return c.dialogue.String() }

func (c *Conn) note(direction string, p []byte) {
	for line := range bytes.Lines(p) {
		c.dialogue.WriteString(direction + strings.TrimSuffix(string(line), "\n") + "\n")
	}
}

// Close does nothing.
func (c *Conn) Close() error { return nil }

// SetDeadline does nothing: a script never waits.
func (c *Conn) SetDeadline(time.Time) error { return nil }

// LocalAddr is always the same.
func (c *Conn) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 9} }
