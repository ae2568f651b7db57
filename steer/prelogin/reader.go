package prelogin

import (
	"bytes"
	"io"
)

// firstBuffer is what an idle connection costs: most logins fit, and it grows by doubling up to the limit of a line or
// of a literal. Whatever was read ahead is therefore bounded by the same limit.
const firstBuffer = 1 << 10

// Reader reads lines and counted bytes from a connection and can tell which bytes it read too many. Unlike
// bufio.Reader it has limits, starts small and gives its buffer back.
type Reader struct {
	src   io.Reader
	line  int // longest line
	total int // bytes that may still be consumed
	buf   []byte
	start int // buf[start:] was read and not consumed yet
}

// NewReader reads from src; the longest line and all consumed bytes together are bounded.
func NewReader(src io.Reader, line, total int) *Reader {
	return &Reader{src: src, line: line, total: total}
}

// Line returns the next line without its line end, which is CRLF or LF alone (Dovecot and nginx take both). The slice
// is valid until the next call. A line of more bytes than allowed is ErrLine, more bytes altogether ErrBytes; an end of
// the stream inside a line is io.EOF as well, because no command was begun that could be answered.
func (r *Reader) Line() ([]byte, error) {
	searched := 0
	for {
		data := r.buf[r.start:]
		if i := bytes.IndexByte(data[searched:], '\n'); i >= 0 {
			n := searched + i + 1
			if n > r.line {
				return nil, ErrLine
			}
			line, err := r.take(n)
			if err != nil {
				return nil, err
			}
			return bytes.TrimSuffix(line[:n-1], []byte{'\r'}), nil
		}
		searched = len(data)
		if searched >= r.line {
			return nil, ErrLine
		}
		if err := r.fill(r.line); err != nil {
			return nil, err
		}
	}
}

// Bytes returns exactly the next n bytes, valid until the next call. The caller has checked n against its own limit.
func (r *Reader) Bytes(n int) ([]byte, error) {
	if n > r.total {
		return nil, ErrBytes
	}
	for len(r.buf)-r.start < n {
		if err := r.fill(n); err != nil {
			return nil, err
		}
	}
	return r.take(n)
}

// HasLine reports whether Line will return without waiting for the connection.
func (r *Reader) HasLine() bool { return bytes.IndexByte(r.buf[r.start:], '\n') >= 0 }

// Chunk returns what is there, after waiting for at least one byte and for at most limit ones at a time. All of it counts
// as unread until Discard.
func (r *Reader) Chunk(limit int) ([]byte, error) {
	if r.Buffered() == 0 {
		if err := r.fill(limit); err != nil {
			return nil, err
		}
	}
	return r.buf[r.start:], nil
}

// Discard consumes n bytes of a Chunk. They are not counted: what they are is no dialogue.
func (r *Reader) Discard(n int) { r.start += n }

// Buffered is how many bytes were read and not consumed.
func (r *Reader) Buffered() int { return len(r.buf) - r.start }

// Residual returns a copy of the bytes that were read but not consumed, nil when there are none, and releases the buffer.
func (r *Reader) Residual() []byte {
	rest := bytes.Clone(r.buf[r.start:])
	r.buf, r.start = nil, 0
	if len(rest) == 0 {
		return nil
	}
	return rest
}

// take consumes n buffered bytes.
func (r *Reader) take(n int) ([]byte, error) {
	if n > r.total {
		return nil, ErrBytes
	}
	r.total -= n
	p := r.buf[r.start : r.start+n]
	r.start += n
	return p, nil
}

// fill reads once, and makes room before that, for at most limit unconsumed bytes. There is room to make, because the
// callers ask only while they have fewer than limit.
func (r *Reader) fill(limit int) error {
	if r.start > 0 {
		r.buf = r.buf[:copy(r.buf, r.buf[r.start:])]
		r.start = 0
	}
	if len(r.buf) == cap(r.buf) {
		grown := make([]byte, len(r.buf), min(max(firstBuffer, 2*cap(r.buf)), max(limit, firstBuffer)))
		copy(grown, r.buf)
		r.buf = grown
	}
	// A reader may return nothing without an error a few times; a connection does not, so that more is a fault.
	for range 100 {
		n, err := r.src.Read(r.buf[len(r.buf):cap(r.buf)])
		r.buf = r.buf[:len(r.buf)+n]
		if n > 0 {
			return nil // an error comes again with the next read
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}
