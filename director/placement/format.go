package placement

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// DefaultFormat is Dovecot's default of director_username_hash: the whole name in lower case.
const DefaultFormat = "%Lu"

// maxNumber bounds the offset and width of a variable; a format is operator input, but "%999999999u"
// with zero padding would make every hash cost a gigabyte.
const maxNumber = 1 << 16

// A Format is a parsed director_username_hash setting: user name -> key -> 32-bit hash.
// It is immutable and safe for concurrent use.
type Format struct {
	text  string
	parts []part
}

// part is a literal, or one variable with what is to be done to its value:
// %[[-]offset.][[-]width][modifiers]variable.
type part struct {
	literal   string
	variable  byte   // 'u', 'n', 'd' or '%'; 0: a literal
	digest    string // hash method of %{md5:user}; empty: none
	modifiers string // letters out of L U H N M, applied from left to right
	offset    int    // bytes to skip; negative: count from the end
	width     int    // bytes to keep; negative: all but so many; 0: all
	pad       bool   // width is a minimum, reached with leading zeros
}

// longNames maps %{name} to the letter of the short form.
var longNames = map[string]byte{"user": 'u', "username": 'n', "domain": 'd'}

// ParseFormat parses a director_username_hash value such as "%Lu" (user-hash.md section 1). The empty
// format and one without variables are legal: all users then share one hash. Unknown variables,
// modifiers and hash methods are errors that name them; the modifiers known are L, U, H, N and M.
func ParseFormat(text string) (*Format, error) {
	f := &Format{text: text}
	for rest := text; rest != ""; {
		literal, behind, found := strings.Cut(rest, "%")
		if literal != "" {
			f.parts = append(f.parts, part{literal: literal})
		}
		// A single % at the very end expands to nothing, as in Dovecot.
		if !found || behind == "" {
			break
		}
		p, n, err := parseVariable(behind)
		if err != nil {
			return nil, fmt.Errorf("username hash format %q: %w", text, err)
		}
		f.parts = append(f.parts, p)
		rest = behind[n:]
	}
	return f, nil
}

// parseVariable parses what follows a % and returns the number of bytes it took.
func parseVariable(s string) (p part, n int, err error) {
	number := func() (value int, negative, zero bool, err error) {
		start := n
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			value = value*10 + int(s[n]-'0')
			if value > maxNumber {
				return 0, false, false, fmt.Errorf("number %q is too large, at most %d", s[start:n+1], maxNumber)
			}
			n++
		}
		return value, start > 0 && s[start-1] == '-', n > start && s[start] == '0', nil
	}
	sign := func() {
		if n < len(s) && s[n] == '-' {
			n++
		}
	}

	sign()
	value, negative, zero, err := number()
	if err != nil {
		return p, n, err
	}
	p.width, p.pad = value, zero // "%-5u" is "%5u": a sign belongs to the offset or follows the dot
	if n < len(s) && s[n] == '.' {
		n++
		if p.offset = value; negative {
			p.offset = -value
		}
		sign()
		if p.width, negative, p.pad, err = number(); err != nil {
			return p, n, err
		}
		if negative {
			p.width = -p.width
		}
	}

	start := n
	for n < len(s) && strings.IndexByte("LUHNM", s[n]) >= 0 {
		n++
	}
	p.modifiers = s[start:n]
	if p.width < 0 && strings.ContainsAny(p.modifiers, "HN") {
		return p, n, fmt.Errorf("modifiers H and N need a positive width, not %d", p.width)
	}
	if n == len(s) {
		return p, n, fmt.Errorf("modifier %q without a variable", p.modifiers)
	}

	switch c := s[n]; {
	case c == 'u' || c == 'n' || c == 'd' || c == '%':
		p.variable = c
		return p, n + 1, nil
	case c != '{' && strings.IndexByte("EXRDT", c) >= 0:
		return p, n, fmt.Errorf("modifier '%c' is not supported", c)
	case c != '{':
		return p, n, fmt.Errorf("unknown variable '%%%c'", c)
	}
	name, _, found := strings.Cut(s[n+1:], "}")
	if !found {
		return p, n, fmt.Errorf("variable '%%%s' lacks its closing brace", s[n:])
	}
	n += len(name) + 2
	field := name
	if method, of, ok := strings.Cut(name, ":"); ok {
		if sum(nil, method) == nil {
			return p, n, fmt.Errorf("unknown variable '%%%s' (hash method %q)", name, method)
		}
		p.digest, field = method, of
	}
	if p.variable = longNames[field]; p.variable == 0 {
		return p, n, fmt.Errorf("unknown variable '%%%s'", name)
	}
	return p, n, nil
}

// String returns the format as it was written.
func (f *Format) String() string { return f.text }

// Hash returns the user hash of a name: the first four bytes of MD5(key), big-endian. It is never 0,
// which means "no hash" elsewhere; a 0 becomes 1. A name made of digits is a name like any other.
func (f *Format) Hash(user string) uint32 {
	var buffer [256]byte
	digest := md5.Sum(f.Append(buffer[:0], user))
	return max(1, binary.BigEndian.Uint32(digest[:]))
}

// Append appends the expansion of the format for user to dst: the key that is hashed.
func (f *Format) Append(dst []byte, user string) []byte {
	for i := range f.parts {
		if p := &f.parts[i]; p.variable == 0 {
			dst = append(dst, p.literal...)
		} else {
			dst = p.append(dst, user)
		}
	}
	return dst
}

func (p *part) append(dst []byte, user string) []byte {
	value := user
	switch at := strings.IndexByte(user, '@'); {
	case p.variable == '%':
		value = "%"
	case p.variable == 'n' && at >= 0:
		value = user[:at]
	case p.variable == 'd':
		if value = ""; at >= 0 {
			value = user[at+1:]
		}
	}

	// Everything happens in place behind start, so that hashing a name allocates nothing.
	start := len(dst)
	dst = append(dst, value...)
	if p.digest != "" {
		dst = hex.AppendEncode(dst[:start], sum(dst[start:], p.digest))
	}
	offset, width := p.offset, p.width
	for _, m := range []byte(p.modifiers) {
		switch v := dst[start:]; m {
		case 'L':
			for i, c := range v {
				if 'A' <= c && c <= 'Z' { // ASCII only: bytes of UTF-8 stay as they are
					v[i] = c + 'a' - 'A'
				}
			}
		case 'U':
			for i, c := range v {
				if 'a' <= c && c <= 'z' {
					v[i] = c - ('a' - 'A')
				}
			}
		case 'M':
			digest := md5.Sum(v)
			dst = hex.AppendEncode(dst[:start], digest[:])
		case 'H', 'N':
			// These two take offset and width for themselves: hex digits at least, and modulus.
			dst = appendNumber(dst[:start], numberOf(m, v, uint64(width)), offset)
			offset, width = 0, 0
		}
	}
	return cut(dst, start, offset, width, p.pad)
}

// numberOf computes the H (Dovecot's string hash) and N (first eight bytes of the MD5) modifiers.
func numberOf(modifier byte, value []byte, modulus uint64) uint32 {
	var n uint64
	if modifier == 'H' {
		n = uint64(StringHash(value))
	} else {
		digest := md5.Sum(value)
		n = binary.BigEndian.Uint64(digest[:])
	}
	if modulus != 0 {
		n %= modulus
	}
	return uint32(n)
}

func appendNumber(dst []byte, n uint32, digits int) []byte {
	start := len(dst)
	dst = strconv.AppendUint(dst, uint64(n), 16)
	for len(dst)-start < digits {
		dst = slices.Insert(dst, start, '0')
	}
	return dst
}

// cut applies offset and width to dst[start:].
func cut(dst []byte, start, offset, width int, pad bool) []byte {
	length := len(dst) - start
	skip := min(offset, length)
	if offset < 0 {
		skip = max(0, length+offset)
	}
	if skip > 0 {
		dst = append(dst[:start], dst[start+skip:]...)
		length -= skip
	}
	if pad {
		for ; length < width; length++ {
			dst = slices.Insert(dst, start, '0')
		}
		return dst
	}
	if width < 0 {
		// All but so many bytes. Fewer than none keeps everything, because Dovecot's negative
		// length becomes a huge unsigned one.
		if width += length; width == 0 {
			return dst[:start]
		}
	}
	if width > 0 && width < length {
		dst = dst[:start+width]
	}
	return dst
}

// StringHash is the PJW hash, which Dovecot uses for the H modifier and for IPv6 addresses.
func StringHash(s []byte) uint32 {
	var h uint32
	for _, c := range s {
		h = h<<4 + uint32(c)
		if g := h & 0xf0000000; g != 0 {
			h ^= g>>24 ^ g
		}
	}
	return h
}

// sum returns the digest of data by a method of %{method:variable}, nil if the method is unknown.
func sum(data []byte, method string) []byte {
	switch method {
	case "md5":
		d := md5.Sum(data)
		return d[:]
	case "sha1":
		d := sha1.Sum(data)
		return d[:]
	case "sha256":
		d := sha256.Sum256(data)
		return d[:]
	case "sha512":
		d := sha512.Sum512(data)
		return d[:]
	}
	return nil
}

// ParseHash reads a user argument the way Dovecot's admin commands do: a name that is an unsigned
// 32-bit decimal number is taken as the hash itself (user-hash.md section 1). Only the door to
// doveadm may use it; everywhere else a user "1234" is a user of that name.
func ParseHash(argument string) (hash uint32, ok bool) {
	n, err := strconv.ParseUint(argument, 10, 32)
	return uint32(n), err == nil
}
