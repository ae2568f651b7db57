package dovecot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"usher/steer/auth"
)

// Bounds of the handshake, and of a write: auth reads at once or is stuck.
const (
	handshakeTimeout = 5 * time.Second
	maxHandshake     = 128 // lines
	writeTimeout     = 5 * time.Second
)

// minorKnown is the newest minor version that was looked at: Dovecot 2.4.1. From there on requests say protocol= for what
// was service= (auth-client.md section 2).
const minorKnown = 3

// conn is a connection after the handshake. Many requests share it.
type conn struct {
	net        net.Conn
	minor      int
	mechanisms []auth.Mechanism // of a login socket

	since time.Time

	load atomic.Int32 // requests that are not finished

	mu      sync.Mutex
	pending map[uint32]chan reply
	last    uint32
	retired bool          // takes no more requests, and is closed behind the last one
	err     error         // why it is closed
	closed  chan struct{} // closed when err is set

	writing sync.Mutex
}

// connect dials and does the handshake: that of a login socket or that of a user socket.
func connect(ctx context.Context, path string, login bool) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	socket, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c := &conn{net: socket, since: time.Now(), pending: make(map[uint32]chan reply), closed: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = socket.SetDeadline(time.Unix(1, 0)) })
	r := bufio.NewReaderSize(socket, maxLine)
	if err = c.handshake(r, login); err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		stop()
		socket.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("handshake with %s: %w", path, err)
	}
	go c.read(r)
	return c, nil
}

func (c *conn) handshake(r *bufio.Reader, login bool) error {
	fields, err := readLine(r)
	if err != nil {
		return err
	}
	if c.minor, err = version(fields); err != nil {
		return err
	}
	hello := appendLine(nil, "VERSION", "1", strconv.Itoa(min(c.minor, minorKnown)))
	if login {
		// Any number will do that no other client has, of which those with a process use its id: above Linux's largest.
		hello = appendLine(hello, "CPID", strconv.Itoa(1<<22+1+rand.IntN(1<<30)))
	}
	if _, err := c.net.Write(hello); err != nil {
		return err
	}
	for seen := []string(nil); len(seen) < maxHandshake; seen = append(seen, fields[0]) {
		if fields, err = readLine(r); err != nil {
			return err
		}
		switch fields[0] {
		case "MECH":
			if m, ok := mechanism(fields[1:]); ok {
				c.mechanisms = append(c.mechanisms, m)
			}
		case "SPID":
			if !login {
				return nil // all there is
			}
		case "DONE":
			if !login || len(c.mechanisms) == 0 || !slices.Contains(seen, "COOKIE") || !slices.Contains(seen, "SPID") {
				return errors.New("it ended the handshake without what belongs to it")
			}
			return nil
		}
	}
	return errors.New("endless handshake")
}

// readLine returns the next line's fields. A line that is too long is errLine.
func readLine(r *bufio.Reader) ([]string, error) {
	line, err := next(r)
	if err != nil {
		return nil, err
	}
	return parseLine(line)
}

// next returns the next line without its LF, valid until the next read.
func next(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("%w: too long", errLine)
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	return line[:len(line)-1], nil
}

// mechanism reads a MECH line's name and flags. Those that bind to the client's TLS cannot work: it ends at the proxy.
func mechanism(fields []string) (m auth.Mechanism, ok bool) {
	if len(fields) == 0 || !isName(fields[0]) || strings.HasSuffix(fields[0], "-PLUS") || slices.Contains(fields[1:], "channel-binding") {
		return m, false
	}
	m.Name = fields[0]
	m.Plaintext = slices.Contains(fields[1:], "plaintext")
	m.Private = slices.Contains(fields[1:], "private")
	m.Anonymous = slices.Contains(fields[1:], "anonymous")
	return m, true
}

// isName: RFC 4422 section 3.1, 1 to 20 upper-case letters, digits, hyphens and underscores. Clients are told this name.
func isName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 20
}

// read hands each reply to its request, until the connection ends.
func (c *conn) read(r *bufio.Reader) {
	for {
		line, err := next(r)
		if err == nil {
			var re reply
			if re, err = parseReply(line); err == nil {
				err = c.deliver(re)
			}
		}
		if err != nil {
			c.close(err)
			return
		}
	}
}

// deliver gives a reply to its request. One that nobody waits for is late: the request was given up.
func (c *conn) deliver(re reply) error {
	if re.id == 0 {
		return nil // a line of a later version
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ch, ok := c.pending[re.id]
	if !ok {
		return nil
	}
	if re.command != "CONT" {
		delete(c.pending, re.id)
	}
	select {
	case ch <- re:
		return nil
	default:
		return errors.New("a second reply to one request")
	}
}

func (c *conn) close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut(err)
}

// errRetired is a connection that has become too old.
var errRetired = errors.New("connection was replaced")

// retire closes the connection as soon as nothing is on its way.
func (c *conn) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired = true; c.load.Load() == 0 {
		c.shut(errRetired)
	}
}

// shut must be called with mu held.
func (c *conn) shut(err error) {
	if c.err == nil {
		c.err = err
		close(c.closed)
		c.net.Close()
	}
}

// alive reports whether requests can be sent, as far as one knows.
func (c *conn) alive() bool {
	select {
	case <-c.closed:
		return false
	default:
		return true
	}
}

// request is one number on one connection.
type request struct {
	conn    *conn
	id      uint32
	replies chan reply
	ended   bool
}

// open takes a number.
func (c *conn) open() (*request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if c.retired {
		return nil, errRetired
	}
	for {
		c.last++
		if _, taken := c.pending[c.last]; c.last != 0 && !taken {
			break
		}
	}
	rq := &request{conn: c, id: c.last, replies: make(chan reply, 1)}
	c.pending[rq.id] = rq.replies
	c.load.Add(1)
	return rq, nil
}

// ask sends a line, in which the request's number is the second field, and waits for the reply.
func (rq *request) ask(ctx context.Context, limit int, command string, fields ...string) (reply, error) {
	line := appendLine(nil, append([]string{command, strconv.FormatUint(uint64(rq.id), 10)}, fields...)...)
	if len(line) > limit {
		return reply{}, errTooLong
	}
	if err := rq.conn.write(line); err != nil {
		return reply{}, err
	}
	select {
	case re := <-rq.replies:
		return re, nil
	case <-ctx.Done():
		return reply{}, context.Cause(ctx)
	case <-rq.conn.closed:
	}
	select {
	case re := <-rq.replies: // it came first
		return re, nil
	default:
		return reply{}, &lostError{rq.conn.err}
	}
}

// errTooLong is a request that auth would not read, because a name or a message of the client is enormous.
var errTooLong = errors.New("request is too long")

// lostError is a connection that ended while a request was on its way.
type lostError struct{ error }

func (e *lostError) Unwrap() error { return e.error }

func (c *conn) write(line []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	_ = c.net.SetWriteDeadline(time.Now().Add(writeTimeout)) // fails only when it is closed, and so does the write
	if _, err := c.net.Write(line); err != nil {
		c.close(err) // part of a line may be gone: nobody else may write behind it
		return &lostError{err}
	}
	return nil
}

// end gives the number back. Auth is told when it may still be at it (cancel).
func (rq *request) end(cancel bool) {
	if rq.ended {
		return
	}
	rq.ended = true
	c := rq.conn
	if cancel {
		_ = c.write(appendLine(nil, "CANCEL", strconv.FormatUint(uint64(rq.id), 10)))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, rq.id)
	if c.load.Add(-1) == 0 && c.retired {
		c.shut(errRetired)
	}
}
