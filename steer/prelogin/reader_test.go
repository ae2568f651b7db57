package prelogin

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReaderMemory(t *testing.T) {
	input := "a short line\r\n" + strings.Repeat("x", 6000) + "\r\n" + strings.Repeat("y", 100_000)
	r := NewReader(strings.NewReader(input), 8<<10, 64<<10)
	if r.buf != nil {
		t.Error("a buffer before the first byte")
	}
	if _, err := r.Line(); err != nil || cap(r.buf) > 4<<10 {
		t.Errorf("%v, %d bytes of buffer for a short line", err, cap(r.buf))
	}
	if _, err := r.Line(); err != nil || cap(r.buf) > 8<<10 {
		t.Errorf("%v, %d bytes of buffer for a line of 6000", err, cap(r.buf))
	}
	rest := r.Residual()
	if len(rest) == 0 || strings.Trim(string(rest), "y") != "" {
		t.Errorf("residual %.20q", rest)
	}
	if r.buf != nil || r.Residual() != nil {
		t.Error("the buffer is kept after Residual")
	}
}

func TestReaderLimits(t *testing.T) {
	for _, tt := range []struct {
		name        string
		in          string
		line, total int
		want        []string
		err         error
	}{
		{"longest line", "123456\r\n1234567\n", 8, 100, []string{"123456", "1234567"}, io.EOF},
		{"too long with CR", "1234567\r\n", 8, 100, nil, ErrLine},
		{"too long without end", "12345678", 8, 100, nil, ErrLine},
		{"CR inside", "a\rb\r\r\n", 8, 100, []string{"a\rb\r"}, io.EOF},
		{"end inside a line", "a\nb", 8, 100, []string{"a"}, io.EOF},
		{"all bytes", "a\nb\nc\n", 8, 4, []string{"a", "b"}, ErrBytes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for name, src := range map[string]io.Reader{
				"whole":    strings.NewReader(tt.in),
				"bytewise": iotest.OneByteReader(strings.NewReader(tt.in)),
				"EOF with": iotest.DataErrReader(strings.NewReader(tt.in)),
			} {
				r := NewReader(src, tt.line, tt.total)
				var got []string
				var err error
				for {
					var line []byte
					if line, err = r.Line(); err != nil {
						break
					}
					got = append(got, string(line))
				}
				if !errors.Is(err, tt.err) || strings.Join(got, "|") != strings.Join(tt.want, "|") {
					t.Errorf("%s: got %q, %v", name, got, err)
				}
			}
		})
	}
}

func TestReaderBytes(t *testing.T) {
	r := NewReader(iotest.HalfReader(strings.NewReader("ab"+strings.Repeat("x", 3000)+"\ncd")), 8<<10, 3005)
	for _, want := range []string{"ab" + strings.Repeat("x", 3000), "\n", ""} {
		if got, err := r.Bytes(len(want)); err != nil || string(got) != want {
			t.Errorf("got %.20q, %v", got, err)
		}
	}
	if _, err := r.Bytes(3); !errors.Is(err, ErrBytes) {
		t.Errorf("more than all: %v", err)
	}
	if got, err := r.Bytes(2); err != nil || string(got) != "cd" {
		t.Errorf("got %q, %v", got, err)
	}
}

// noProgress is a source that breaks io.Reader's promise.
type noProgress struct{}

func (noProgress) Read([]byte) (int, error) { return 0, nil }

func TestReaderNoProgress(t *testing.T) {
	if _, err := NewReader(noProgress{}, 10, 10).Line(); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

func TestKinds(t *testing.T) {
	seen := make(map[string]bool)
	for k := TempFail; k <= PermFail; k++ {
		if seen[k.String()] || k.String() == "unknown" || k.Text() == "" || !strings.HasSuffix(k.Text(), ".") {
			t.Errorf("kind %d: %s, %q", k, k, k.Text())
		}
		seen[k.String()] = true
	}
	if (PermFail + 1).String() != "unknown" {
		t.Error("a kind without a test")
	}
}
