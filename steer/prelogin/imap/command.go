package imap

import (
	"bytes"
	"math"
	"strings"
)

// maxTag bounds the tag, which comes back in each answer and goes to the backend. Clients use 4 to 10 characters.
const maxTag = 64

// fault is what is wrong with a command, as a text for the client.
type fault string

func (f fault) Error() string { return string(f) }

const (
	errTag     fault = "Invalid tag."
	errArgs    fault = "Invalid arguments."
	errQuote   fault = "Invalid quoted string."
	errAtom    fault = "Invalid characters in atom."
	errLiteral fault = "Literal too long or not allowed here."
	errNUL     fault = "NUL in a string."
	errCommand fault = "Unknown command before login."
	errBase64  fault = "Invalid base64 data."
	errAborted fault = "Authentication aborted by client."
)

// parser walks over one command, complete with its literals: "{3}" CRLF and the three bytes. Its errors are faults.
// The grammar is that of RFC 3501 section 9.
type parser struct {
	rest []byte
}

// head takes the tag and the command's name, in upper case. An invalid tag is returned empty.
func (p *parser) head() (tag, name string, err error) {
	word := p.word()
	if len(word) == 0 || len(word) > maxTag {
		return "", "", errTag
	}
	for _, c := range word {
		// tag = 1*<any ASTRING-CHAR except "+">
		if !astringChar(c) || c == '+' || c == '*' || c == '%' {
			return "", "", errTag
		}
	}
	tag = string(word)
	if err := p.space(); err != nil {
		return tag, "", err
	}
	return tag, strings.ToUpper(string(p.word())), nil
}

// word takes everything up to the next space.
func (p *parser) word() []byte {
	i := bytes.IndexByte(p.rest, ' ')
	if i < 0 {
		i = len(p.rest)
	}
	word := p.rest[:i]
	p.rest = p.rest[i:]
	return word
}

// space takes exactly one.
func (p *parser) space() error {
	if len(p.rest) == 0 || p.rest[0] != ' ' {
		return errArgs
	}
	p.rest = p.rest[1:]
	return nil
}

// end is where nothing may follow.
func (p *parser) end() error {
	if len(p.rest) != 0 {
		return errArgs
	}
	return nil
}

// argument takes a space and an astring.
func (p *parser) argument() (string, error) {
	if err := p.space(); err != nil {
		return "", err
	}
	return p.astring()
}

func (p *parser) astring() (string, error) {
	if len(p.rest) == 0 {
		return "", errArgs
	}
	switch p.rest[0] {
	case '"':
		return p.quoted()
	case '{':
		return p.literal()
	}
	n := 0
	for n < len(p.rest) && astringChar(p.rest[n]) {
		n++
	}
	if n == 0 {
		return "", errAtom
	}
	s := string(p.rest[:n])
	p.rest = p.rest[n:]
	if len(p.rest) > 0 && p.rest[0] != ' ' && p.rest[0] != ')' {
		return "", errAtom
	}
	return s, nil
}

// astringChar is RFC 3501's, and the two list wildcards: people type user*master without quotes.
func astringChar(c byte) bool {
	return c > ' ' && c < 0x7f && !strings.ContainsRune(`(){"\`, rune(c))
}

// quoted takes a quoted string. 8-bit characters are no 7-bit TEXT-CHARs, but clients send passwords in UTF-8 like that.
func (p *parser) quoted() (string, error) {
	var s []byte
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; c {
		case '"':
			p.rest = p.rest[i+1:]
			return string(s), nil
		case '\\':
			i++
			if i == len(p.rest) || (p.rest[i] != '"' && p.rest[i] != '\\') {
				return "", errQuote
			}
			s = append(s, p.rest[i])
		case 0, '\r', '\n':
			return "", errQuote
		default:
			s = append(s, c)
		}
	}
	return "", errQuote
}

func (p *parser) literal() (string, error) {
	line, rest, ok := bytes.Cut(p.rest, []byte("\r\n"))
	lit, announced := announcement(line)
	if !announced || len(line) != lit.length {
		return "", errAtom
	}
	if !ok || lit.size > len(rest) {
		return "", errLiteral
	}
	s := rest[:lit.size]
	p.rest = rest[lit.size:]
	if bytes.IndexByte(s, 0) >= 0 {
		return "", errNUL // RFC 3501: CHAR8 is any but NUL
	}
	return string(s), nil
}

// parameters takes what ID may have: NIL, or a list of strings and NILs (RFC 2971 section 3.3). Nothing is kept.
func (p *parser) parameters() error {
	if err := p.space(); err != nil {
		return err
	}
	if len(p.rest) == 0 || p.rest[0] != '(' {
		_, err := p.astring()
		return err
	}
	p.rest = p.rest[1:]
	for first := true; ; first = false {
		if len(p.rest) > 0 && p.rest[0] == ')' {
			p.rest = p.rest[1:]
			return nil
		}
		if !first {
			if err := p.space(); err != nil {
				return err
			}
		}
		if _, err := p.astring(); err != nil {
			return err
		}
	}
}

// announced is the "{size}" or "{size+}" at the end of a line.
type announced struct {
	size   int  // bytes; math.MaxInt32 for everything above
	sync   bool // the client waits for our "+"
	length int  // of the announcement itself
}

// announcement finds out whether a literal follows the line. Braces inside a quoted string announce nothing: a client
// that forgot its closing quote must get an error, not a "+".
func announcement(line []byte) (announced, bool) {
	open := -1
	for i, quoted := 0, false; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && c == '{':
			open = i
		}
		if quoted {
			open = -1
		}
	}
	if open < 0 || line[len(line)-1] != '}' {
		return announced{}, false
	}
	digits := line[open+1 : len(line)-1]
	a := announced{sync: true, length: len(line) - open}
	if bytes.HasSuffix(digits, []byte{'+'}) {
		digits, a.sync = digits[:len(digits)-1], false
	}
	if len(digits) == 0 {
		return announced{}, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return announced{}, false
		}
		a.size = min(a.size*10+int(c-'0'), math.MaxInt32)
	}
	return a, true
}
