package backend

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"strings"

	"usher/testenv/content"
)

// errReset ends a session by RST, errFinished one that has said its last word.
var (
	errReset    = errors.New("reset by this server")
	errFinished = errors.New("finished")
)

// maxPing bounds the buffers of X-PINGPONG.
const maxPing = 1 << 20

// pattern is what X-SOURCE sends for seed 0.
var pattern = []byte(strings.Repeat("every guest is shown to the same seat, every time. ", 5140))

// extension runs one of the commands that both protocols have; known says whether it was one. final is
// sent by the caller when err is nil.
func (c *session) extension(command, args string, final func(text string)) (known bool, err error) {
	var n [2]uint64
	for i, f := range strings.Fields(args) {
		if i == len(n) {
			return true, errGarbled
		}
		if n[i], err = strconv.ParseUint(f, 10, 64); err != nil {
			return true, errGarbled
		}
	}
	switch command {
	case "X-ECHO":
		err = c.echo(int64(n[0]))
	case "X-SOURCE":
		err = c.source(int64(n[0]), n[1])
	case "X-DISCARD":
		_, err = io.CopyN(io.Discard, c.r, int64(n[0]))
	case "X-PINGPONG":
		err = c.pingpong(n[0], n[1])
	case "X-FINISH":
		final("Goodbye from this side.")
		return true, c.finish()
	case "X-RESET":
		c.tcp.SetLinger(0)
		c.tcp.Close()
		return true, errReset
	default:
		return false, nil
	}
	if err == nil {
		final(command + " completed.")
	}
	return true, err
}

// echo sends n bytes back as they come.
func (c *session) echo(n int64) error {
	for n > 0 {
		if err := c.turn(); err != nil {
			return err
		}
		if _, err := c.r.Peek(1); err != nil {
			return err
		}
		b, _ := c.r.Peek(int(min(n, int64(c.r.Buffered()))))
		if _, err := c.Write(b); err != nil {
			return err
		}
		c.r.Discard(len(b))
		n -= int64(len(b))
	}
	return nil
}

func (c *session) source(n int64, seed uint64) error {
	if seed != 0 {
		_, err := io.CopyN(c, content.Stream(seed), n)
		return err
	}
	for n > 0 {
		b := pattern[:min(n, int64(len(pattern)))]
		if _, err := c.Write(b); err != nil {
			return err
		}
		n -= int64(len(b))
	}
	return nil
}

// pingpong is the benchmark's server: two system calls per round, and nothing else.
func (c *session) pingpong(request, reply uint64) error {
	if request < 1 || request > maxPing || reply > maxPing {
		return errGarbled
	}
	if err := c.flush(); err != nil {
		return err
	}
	in, out := make([]byte, request), make([]byte, reply)
	for {
		if _, err := io.ReadFull(c.r, in); err != nil {
			return err
		}
		if in[0] == 'Q' {
			return nil
		}
		if _, err := c.conn.Write(out); err != nil {
			return err
		}
	}
}

// finish closes this direction and takes what the other one still brings.
func (c *session) finish() error {
	if err := c.flush(); err != nil {
		return err
	}
	if err := c.conn.CloseWrite(); err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(h, c.r)
	c.server.mu.Lock()
	c.record.Tail, c.record.TailSHA256 = n, hex.EncodeToString(h.Sum(nil))
	c.server.mu.Unlock()
	if err != nil {
		return err
	}
	return errFinished
}
