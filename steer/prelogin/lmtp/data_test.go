package lmtp

import (
	"bytes"
	"strings"
	"testing"
)

func TestBody(t *testing.T) {
	for _, tt := range []struct{ name, in, out, rest string }{
		{"empty", ".\r\nrest", "", "rest"},
		{"lines", "a\r\n\r\nb\r\n.\r\n", "a\r\n\r\nb\r\n", ""},
		{"doubled dots stay", "..\r\n...a\r\n.\r\n", "..\r\n...a\r\n", ""},
		{"dot in a line", "a.\r\n.b\r\n.\r\n", "a.\r\n.b\r\n", ""},
		{"bare LF ends nothing", "a\n.\nMAIL\r\n.\r\n", "a\r\n..\r\nMAIL\r\n", ""},
		{"bare LF before the dot", "a\n.\r\nb\r\n.\r\n", "a\r\n..\r\nb\r\n", ""},
		{"bare LF behind the dot", "a\r\n.\nb\r\n.\r\n", "a\r\n\r\nb\r\n", ""},
		{"bare LF at the beginning", "\n.\n.\r\n.\r\n", "\r\n..\r\n..\r\n", ""},
		{"bare CR", "a\r.\rb\r\n.\rc\r\n.\r\r\n.\r\n", "a\r.\rb\r\n.\rc\r\n.\r\r\n", ""},
		{"NUL and 8 bits", "\x00\xff\r\n.\r\n", "\x00\xff\r\n", ""},
	} {
		for size := 1; size <= len(tt.in); size++ {
			var b body
			var out []byte
			in, ended := []byte(tt.in), false
			for len(in) > 0 && !ended {
				n := min(size, len(in))
				var rest []byte
				out, rest, ended = b.feed(out, in[:n])
				in = in[n-len(rest):]
			}
			if string(out) != tt.out || string(in) != tt.rest || !ended {
				t.Fatalf("%s, %d bytes at a time: %q, rest %q, ended %v", tt.name, size, out, in, ended)
			}
		}
	}
}

// Whatever is fed, and in whatever pieces: lines end with CR LF, and none is a lone dot, however one reads them.
func FuzzBody(f *testing.F) {
	f.Add([]byte("a\r\n.b\n.\n..\r\n.\r.\r\n.\r\n"), uint8(1))
	f.Add([]byte("\n.\r\n.\r\r\n"), uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		feed := func(size int) (all, rest []byte, ended bool) {
			var b body
			for in := data; len(in) > 0; {
				n := min(size, len(in))
				all, rest, ended = b.feed(all, in[:n])
				in = in[n-len(rest):]
				if ended {
					return all, in, true
				}
			}
			return all, nil, false
		}
		whole, rest, ended := feed(len(data) + 1)
		parts, restParts, endedParts := feed(int(size) + 1)
		if !bytes.Equal(whole, parts) || !bytes.Equal(rest, restParts) || ended != endedParts {
			t.Fatalf("in one piece %q, %q, %v; in pieces of %d %q, %q, %v", whole, rest, ended, size+1, parts, restParts, endedParts)
		}
		if !bytes.HasSuffix(data, rest) {
			t.Errorf("rest %q", rest)
		}
		text := strings.ReplaceAll(string(whole), "\r\n", "\n")
		if strings.Count(text, "\n") != strings.Count(string(whole), "\n") || strings.Count(text, "\n") != strings.Count(string(whole), "\r\n") {
			t.Errorf("lines %q", whole)
		}
		if strings.Contains("\n"+text, "\n.\n") {
			t.Errorf("%q ends in the middle", whole)
		}
		if ended && len(whole) > 0 && !bytes.HasSuffix(whole, []byte("\r\n")) {
			t.Errorf("%q does not end with a line", whole)
		}
	})
}

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		in, text, address, user string
		parameters              int
		bad                     bool
	}{
		{in: "<fred@example.org>", text: "<fred@example.org>", address: "fred@example.org", user: "fred@example.org"},
		{in: " <fred+box@x> SIZE=1 BODY=8BITMIME", text: "<fred+box@x>", address: "fred+box@x", user: "fred@x", parameters: 2},
		{in: "<>", text: "<>"},
		{in: "<fred>", text: "<fred>", address: "fred", user: "fred"},
		{in: "<+x@y>", text: "<+x@y>", address: "+x@y", user: "+x@y"},
		{in: `<"a b>\"c"@x>`, text: `<"a b>\"c"@x>`, address: `"a b>\"c"@x`, user: `a b>"c@x`},
		{in: "<fr\xc3\xa9d@x>", text: "<fr\xc3\xa9d@x>", address: "fr\xc3\xa9d@x", user: "fr\xc3\xa9d@x"},
		{in: "fred@x", bad: true}, {in: "<fred@x", bad: true}, {in: "<fred@x>y", bad: true}, {in: "<a b@x>", bad: true},
		{in: "<a<b@x>", bad: true}, {in: "<@r:fred@x>", bad: true}, {in: "<a\rb@x>", bad: true}, {in: `<"a@x>`, bad: true}, {in: "", bad: true},
	} {
		text, address, parameters, ok := path(tt.in)
		if ok == tt.bad || text != tt.text || address != tt.address || len(parameters) != tt.parameters {
			t.Errorf("%q: %q, %q, %q, %v", tt.in, text, address, parameters, ok)
		}
		if got := user(address, "+"); got != tt.user {
			t.Errorf("%q is user %q, want %q", tt.in, got, tt.user)
		}
	}
}
