package proxyheader

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
)

func TestRead(t *testing.T) {
	ends := func(client, local string, tls bool) Header {
		return Header{netip.MustParseAddrPort(client), netip.MustParseAddrPort(local), tls}
	}
	sig := string(signature)
	four := "\xc0\x00\x02\x01\xc0\x00\x02\x02\x03\xe8\x00\x8f"
	for _, tt := range []struct {
		name, in string
		want     Header
		err      error
	}{
		{name: "1, IPv4", in: "PROXY TCP4 192.0.2.1 192.0.2.2 1000 143\r\n", want: ends("192.0.2.1:1000", "192.0.2.2:143", false)},
		{name: "1, IPv6", in: "PROXY TCP6 2001:db8::1 2001:db8::2 65535 1\r\n", want: ends("[2001:db8::1]:65535", "[2001:db8::2]:1", false)},
		{name: "1, unknown", in: "PROXY UNKNOWN\r\n"},
		{name: "1, unknown and more", in: "PROXY UNKNOWN ffff::1 x y\r\n"},
		{name: "1, longest", in: "PROXY UNKNOWN " + strings.Repeat("x", 91) + "\r\n"},
		{name: "1, too long", in: "PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n", err: ErrHeader},
		{name: "1, wrong family", in: "PROXY TCP6 192.0.2.1 192.0.2.2 1000 143\r\n", err: ErrHeader},
		{name: "1, two spaces", in: "PROXY TCP4  192.0.2.1 192.0.2.2 1000 143\r\n", err: ErrHeader},
		{name: "1, port", in: "PROXY TCP4 192.0.2.1 192.0.2.2 65536 143\r\n", err: ErrHeader},
		{name: "1, port with zero", in: "PROXY TCP4 192.0.2.1 192.0.2.2 01000 143\r\n", err: ErrHeader},
		{name: "1, zone", in: "PROXY TCP6 fe80::1%eth0 2001:db8::2 1 1\r\n", err: ErrHeader},
		{name: "1, no CR", in: "PROXY UNKNOWN\n", err: ErrHeader},
		{name: "1, cut off", in: "PROXY TCP4 192.0.2.1", err: ErrMissing},
		{name: "none", in: "a LOGIN fred secret\r\n", err: ErrMissing},
		{name: "silence", err: ErrMissing},
		{name: "2, IPv4", in: sig + "\x21\x11\x00\x0c" + four, want: ends("192.0.2.1:1000", "192.0.2.2:143", false)},
		{name: "2, TLS", in: sig + "\x21\x11\x00\x14" + four + "\x20\x00\x05\x01\x00\x00\x00\x00", want: ends("192.0.2.1:1000", "192.0.2.2:143", true)},
		{name: "2, details", in: sig + "\x21\x11\x00\x13" + four + "\x04\x00\x01x\x02\x00\x00", want: ends("192.0.2.1:1000", "192.0.2.2:143", false)},
		{name: "2, mapped", in: sig + "\x21\x21\x00\x24" + strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01" + strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x02\x03\xe8\x00\x8f", want: ends("192.0.2.1:1000", "192.0.2.2:143", false)},
		{name: "2, local", in: sig + "\x20\x00\x00\x00"},
		{name: "2, local with addresses", in: sig + "\x20\x11\x00\x0c" + four},
		{name: "2, unspecified", in: sig + "\x21\x00\x00\x03abc"},
		{name: "2, UDP", in: sig + "\x21\x12\x00\x0c" + four, err: ErrHeader},
		{name: "2, version 3", in: sig + "\x31\x11\x00\x0c" + four, err: ErrHeader},
		{name: "2, short addresses", in: sig + "\x21\x11\x00\x0b" + four, err: ErrHeader},
		{name: "2, details cut off", in: sig + "\x21\x11\x00\x0f" + four + "\x04\x00\x01", err: ErrHeader},
		{name: "2, giant", in: sig + "\x21\x11\xff\xff" + four, err: ErrHeader},
		{name: "2, cut off", in: sig + "\x21\x11\x00\x0c" + four[:5], err: ErrMissing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rest := strings.NewReader(tt.in + "rest")
			if tt.err == ErrMissing {
				rest = strings.NewReader(tt.in)
			}
			h, err := Read(iotest.OneByteReader(rest))
			if h != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %v, %v", h, err)
			}
			if left, _ := io.ReadAll(rest); tt.err == nil && string(left) != "rest" {
				t.Errorf("left %q", left)
			}
		})
	}
}

// What is written reads as what was meant, and nothing that is read is longer than it may be.
func FuzzHeader(f *testing.F) {
	for _, seed := range []string{
		"PROXY TCP4 192.0.2.1 192.0.2.2 1000 143\r\n", "PROXY UNKNOWN\r\n", string(signature) + "\x20\x00\x00\x00",
		string(signature) + "\x21\x11\x00\x14\xc0\x00\x02\x01\xc0\x00\x02\x02\x03\xe8\x00\x8f\x20\x00\x05\x01\x00\x00\x00\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		h, err := Read(r)
		if used := len(data) - r.Len(); used > 16+longest2 {
			t.Errorf("%d bytes read", used)
		}
		if err != nil || !h.Client.IsValid() {
			return
		}
		if again, err := Read(bytes.NewReader(h.Append(nil))); err != nil || again != h {
			t.Errorf("%v became %v, %v", h, again, err)
		}
	})
}
