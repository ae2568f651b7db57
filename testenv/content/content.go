// Package content makes the bytes that test traffic consists of, such that the receiver can tell by
// itself whether they are right: nothing is stored and nothing is agreed on beforehand.
//
// A stream is endless and raw, every byte value occurs; both ends know its seed. A message is mail (lines ended by
// CRLF, no bare CR or LF, no NUL) and describes itself in its first line:
//
//	X-Content: seed=17 size=5120
//
// so it can also be checked after a real mail server has stored it. Both come from ChaCha8 (math/rand/v2).
package content

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
)

// Stream returns the endless stream of a seed. It never returns an error.
func Stream(seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// Mismatch says where received bytes differ from what they should be.
type Mismatch struct {
	Offset    int64  // of the first wrong byte
	Want, Got []byte // up to 32 bytes from there on
}

func (m *Mismatch) Error() string {
	return fmt.Sprintf("content differs at byte %d: want %q, got %q", m.Offset, m.Want, m.Got)
}

// Check is a writer that compares what is written with the stream of a seed.
type Check struct {
	stream io.Reader
	offset int64
	want   [4096]byte
}

// NewCheck returns a Check at the beginning of the stream.
func NewCheck(seed uint64) *Check { return &Check{stream: Stream(seed)} }

// Write compares p with the next bytes; the error is a *Mismatch.
func (c *Check) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		got := p[done:min(done+len(c.want), len(p))]
		want := c.want[:len(got)]
		io.ReadFull(c.stream, want)
		if m := compare(want, got); m != nil {
			m.Offset += c.offset
			return done, m
		}
		done += len(got)
		c.offset += int64(len(got))
	}
	return len(p), nil
}

// compare returns nil when want and got are equal.
func compare(want, got []byte) *Mismatch {
	if bytes.Equal(want, got) {
		return nil
	}
	i := 0
	for i < min(len(want), len(got)) && want[i] == got[i] {
		i++
	}
	cut := func(b []byte) []byte { return bytes.Clone(b[i:min(i+32, len(b))]) }
	return &Mismatch{Offset: int64(i), Want: cut(want), Got: cut(got)}
}

// minMessage is the room that the first line needs with the largest numbers.
const minMessage = 64

// Size is the size in bytes of the scripted backend's message number n: between 64 bytes and 256 KiB,
// small ones as frequent as large ones on a logarithmic scale.
func Size(n uint64) int {
	r := rand.New(rand.NewPCG(n, 0x75736865))
	return max(minMessage, int(r.Uint64N(1<<(7+r.IntN(12)))))
}

// Message returns the message of a seed, of size bytes (at least 64).
func Message(seed uint64, size int) []byte {
	size = max(size, minMessage)
	m := make([]byte, 0, size)
	m = fmt.Appendf(m, "X-Content: seed=%d size=%d\r\n", seed, size)
	stream := Stream(seed)
	var raw [57]byte
	line := make([]byte, 76)
	for size-len(m) >= 2 {
		io.ReadFull(stream, raw[:])
		base64.StdEncoding.Encode(line, raw[:])
		// Lines of all lengths, and every eighth begins with a dot, which POP3 must double.
		text := line[:2+int(raw[1])%75]
		if bits.TrailingZeros8(raw[0]) >= 3 {
			text[0] = '.'
		}
		if rest := size - len(m) - 2; rest < len(text)+2 {
			text = bytes.Repeat([]byte{'.'}, rest) // the last line fills up; also with less than a CRLF to spare
		}
		m = append(append(m, text...), '\r', '\n')
	}
	return m
}

// Verify checks a message against its own first line. It returns the message's seed, so that the caller can
// see whether it is the one that was asked for; the error is a *Mismatch or says that it is no message of ours.
func Verify(m []byte) (seed uint64, err error) {
	var size int
	if _, err := fmt.Sscanf(string(m[:min(len(m), minMessage)]), "X-Content: seed=%d size=%d\r\n", &seed, &size); err != nil {
		return 0, fmt.Errorf("message of %d bytes begins with %q: no description", len(m), m[:min(len(m), minMessage)])
	}
	if size < minMessage || size > 1<<30 {
		return seed, fmt.Errorf("message describes itself as %d bytes", size)
	}
	if m := compare(Message(seed, size), m); m != nil {
		return seed, m
	}
	return seed, nil
}
