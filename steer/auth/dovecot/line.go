package dovecot

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
)

// Longest lines with their line ends, in bytes (auth-client.md section 1, auth-master.md).
const (
	maxLine     = 16 << 10 // in both directions
	maxUserLine = 1024     // to auth on a user socket
)

// errLine is a line that is not of the protocol. What was in it is not repeated: it may be a password.
var errLine = errors.New("malformed line")

// escapes are the bytes behind 0x01 and what they stand for (auth-client.md section 2).
var escapes = [...]struct{ letter, means byte }{{'0', 0}, {'1', 1}, {'t', '\t'}, {'r', '\r'}, {'n', '\n'}}

// appendLine appends a line of fields, which may have any bytes in them.
func appendLine(b []byte, fields ...string) []byte {
	for i, field := range fields {
		if i > 0 {
			b = append(b, '\t')
		}
		b = appendField(b, field)
	}
	return append(b, '\n')
}

func appendField(b []byte, field string) []byte {
next:
	for i := range len(field) {
		for _, e := range escapes {
			if field[i] == e.means {
				b = append(b, 1, e.letter)
				continue next
			}
		}
		b = append(b, field[i])
	}
	return b
}

// parseLine splits a line, without its LF, into its fields. There is at least one, which may be empty.
func parseLine(line []byte) ([]string, error) {
	if bytes.ContainsAny(line, "\x00\r\n") {
		return nil, errLine
	}
	fields := strings.Split(string(line), "\t")
	for i, f := range fields {
		if strings.IndexByte(f, 1) < 0 {
			continue
		}
		var err error
		if fields[i], err = unescape(f); err != nil {
			return nil, err
		}
	}
	return fields, nil
}

func unescape(f string) (string, error) {
	b := make([]byte, 0, len(f))
next:
	for i := 0; i < len(f); i++ {
		if f[i] != 1 {
			b = append(b, f[i])
			continue
		}
		i++
		for _, e := range escapes {
			if i < len(f) && f[i] == e.letter {
				b = append(b, e.means)
				continue next
			}
		}
		return "", errLine
	}
	return string(b), nil
}

// reply is a line that answers a request: "OK", "FAIL", "CONT", "PASS", "USER" or "NOTFOUND".
type reply struct {
	command string
	id      uint32
	fields  []string // after the id
}

// parseReply reads a reply. A line of another kind has the id 0, which no request has.
func parseReply(line []byte) (reply, error) {
	fields, err := parseLine(line)
	if err != nil {
		return reply{}, err
	}
	switch fields[0] {
	case "OK", "FAIL", "CONT", "PASS", "USER", "NOTFOUND":
	default:
		return reply{command: fields[0]}, nil
	}
	if len(fields) < 2 {
		return reply{}, errLine
	}
	id, err := strconv.ParseUint(fields[1], 10, 32)
	if err != nil || id == 0 {
		return reply{}, errLine
	}
	return reply{command: fields[0], id: uint32(id), fields: fields[2:]}, nil
}

// get returns the value of the first field with this key; whether it is there at all is ok.
func (re reply) get(key string) (value string, ok bool) {
	for _, field := range re.fields {
		if k, v, _ := strings.Cut(field, "="); k == key {
			return v, true
		}
	}
	return "", false
}

// version reads the "VERSION 1 minor" with which both sides begin.
func version(fields []string) (minor int, err error) {
	if len(fields) < 3 || fields[0] != "VERSION" {
		return 0, errors.New("it does not speak the auth protocol: no VERSION")
	}
	minor, err = strconv.Atoi(fields[2])
	if fields[1] != "1" || err != nil || minor < 0 {
		return 0, errors.New("it speaks another version of the auth protocol, want 1")
	}
	return minor, nil
}
