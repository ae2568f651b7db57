package wire

import (
	"bytes"
	"net/netip"
	"strings"
)

// args walks through the fields of a line. The first thing wrong is kept; what follows it is of no use,
// but harmless.
type args struct {
	rest []byte
	more bool // there is a field left, maybe an empty one
	bad  string
}

func (a *args) fail(what string) {
	if a.bad == "" {
		a.bad = "bad " + what
	}
}

// field returns the next field as it came, escaped. There are no others than those between TABs.
func (a *args) field() (field []byte, ok bool) {
	if !a.more {
		return nil, false
	}
	i := bytes.IndexByte(a.rest, '\t')
	if i < 0 {
		field, a.rest, a.more = a.rest, nil, false
		return field, true
	}
	field, a.rest = a.rest[:i], a.rest[i+1:]
	return field, true
}

// end: nothing may follow.
func (a *args) end() {
	if a.more && a.bad == "" {
		a.bad = "too many arguments"
	}
}

// uint parses a decimal number without a sign, of at most this size.
func (a *args) uint(most uint64, what string) uint64 {
	f, ok := a.field()
	if !ok {
		a.fail(what)
	}
	return a.uintOf(f, most, what)
}

func (a *args) uintOf(f []byte, most uint64, what string) uint64 {
	var n uint64
	if len(f) == 0 || len(f) > 19 { // 19 digits do not overflow
		a.fail(what)
		return 0
	}
	for _, c := range f {
		if c < '0' || c > '9' {
			a.fail(what)
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	if n > most {
		a.fail(what)
		return 0
	}
	return n
}

func (a *args) uint32(what string) uint32 { return uint32(a.uint(1<<32-1, what)) }

func (a *args) time(what string) int64 { return int64(a.uint(maxTime, what)) }

func (a *args) timeOf(f []byte, what string) int64 { return int64(a.uintOf(f, maxTime, what)) }

// addr parses an IP address; one that is mapped into IPv6 is IPv4.
func (a *args) addr(what string) netip.Addr {
	f, _ := a.field()
	if addr, ok := parseIPv4(f); ok {
		return addr
	}
	// Zones are local to a machine: no other director could use them.
	addr, err := netip.ParseAddr(string(f))
	if err != nil || addr.Zone() != "" {
		a.fail(what)
		return netip.Addr{}
	}
	return addr.Unmap()
}

// parseIPv4 is netip.ParseAddr for the usual case, without making a string of the bytes.
func parseIPv4(f []byte) (netip.Addr, bool) {
	var ip [4]byte
	n, digits, value := 0, 0, 0
	for i := 0; i <= len(f); i++ {
		if i == len(f) || f[i] == '.' {
			if digits == 0 || n == 4 {
				return netip.Addr{}, false
			}
			ip[n] = byte(value)
			n, digits, value = n+1, 0, 0
			continue
		}
		c := f[i]
		if c < '0' || c > '9' || digits > 0 && value == 0 {
			return netip.Addr{}, false
		}
		value = value*10 + int(c-'0')
		if digits++; value > 255 {
			return netip.Addr{}, false
		}
	}
	return netip.AddrFrom4(ip), n == 4
}

// text parses a field that may be escaped.
func (a *args) text(what string) string {
	f, ok := a.field()
	if !ok {
		a.fail(what)
		return ""
	}
	return unescape(f)
}

// The bytes that a field cannot contain, and what stands for them behind a 0x01.
const (
	escape     = "\x01"
	unescaped  = "\x00\x01\t\r\n"
	escapeCode = "01trn"
)

// unescape undoes appendText. A code that is not one stands for itself, and a lone escape at the end for nothing.
func unescape(f []byte) string {
	if bytes.IndexByte(f, escape[0]) < 0 {
		return string(f)
	}
	out := make([]byte, 0, len(f))
	for i := 0; i < len(f); i++ {
		c := f[i]
		if c == escape[0] {
			if i++; i == len(f) {
				break
			}
			if c = f[i]; strings.IndexByte(escapeCode, c) >= 0 {
				c = unescaped[strings.IndexByte(escapeCode, c)]
			}
		}
		out = append(out, c)
	}
	return string(out)
}

// appendText appends a field, escaped.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if code := strings.IndexByte(unescaped, s[i]); code >= 0 {
			b = append(b, escape[0], escapeCode[code])
		} else {
			b = append(b, s[i])
		}
	}
	return b
}
