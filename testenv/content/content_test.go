package content

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"
)

func TestCheck(t *testing.T) {
	good := make([]byte, 50_000)
	io.ReadFull(Stream(9), good)
	rapid.Check(t, func(t *rapid.T) {
		data := bytes.Clone(good[:rapid.IntRange(1, len(good)).Draw(t, "size")])
		wrong := rapid.IntRange(-1, len(data)-1).Draw(t, "wrong byte")
		if wrong >= 0 {
			data[wrong] ^= 0x40
		}
		c := NewCheck(9)
		var err error
		for rest := data; len(rest) > 0 && err == nil; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "chunk")
			_, err = c.Write(rest[:n])
			rest = rest[n:]
		}
		var m *Mismatch
		if wrong < 0 && err != nil || wrong >= 0 && (!errors.As(err, &m) || m.Offset != int64(wrong)) {
			t.Fatalf("wrong byte %d: %v", wrong, err)
		}
	})
}

func TestMessage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		size := rapid.IntRange(minMessage, 3000).Draw(t, "size")
		m := Message(seed, size)
		if len(m) != size || !bytes.HasSuffix(m, []byte("\r\n")) {
			t.Fatalf("size %d, want %d; ends with %q", len(m), size, m[len(m)-2:])
		}
		if bare := bytes.ReplaceAll(m, []byte("\r\n"), nil); bytes.ContainsAny(bare, "\r\n\x00") {
			t.Fatal("bare CR, LF or NUL")
		}
		if got, err := Verify(m); err != nil || got != seed {
			t.Fatalf("Verify: %d, %v", got, err)
		}
		if _, err := Verify(m[:len(m)-1]); err == nil {
			t.Fatal("a truncated message is called right")
		}
		m[rapid.IntRange(0, len(m)-1).Draw(t, "wrong byte")] ^= 0x01
		if got, err := Verify(m); err == nil && got == seed {
			t.Fatal("a changed message is called right")
		}
	})
	if _, err := Verify([]byte("hello")); err == nil {
		t.Error("anything is called right")
	}
}

func TestSizes(t *testing.T) {
	small, large := 0, 0
	for n := range uint64(1000) {
		switch s := Size(n); {
		case s < minMessage || s > 256<<10:
			t.Fatalf("Size(%d) = %d", n, s)
		case s < 1024:
			small++
		case s > 32<<10:
			large++
		}
	}
	if small < 100 || large < 100 {
		t.Errorf("%d small and %d large of 1000", small, large)
	}
}
