package dovecot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// maxLine is the limit of a line with its LF (admin.md section 1).
const maxLine = 1024

// errTooLong: the peer may be anything; what follows is not looked at.
var errTooLong = fmt.Errorf("line is longer than %d bytes", maxLine)

// readLine returns the fields of the next line. r must have a buffer of maxLine bytes. An end within a
// line is io.EOF, too: half a command is none.
func readLine(r *bufio.Reader) ([]string, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, errTooLong
	}
	if err != nil {
		return nil, err
	}
	fields := strings.Split(string(bytes.TrimSuffix(line, []byte("\n"))), "\t")
	for i, f := range fields {
		fields[i] = unescape(f)
	}
	return fields, nil
}

var escapes = strings.NewReplacer("\x00", "\x010", "\x01", "\x011", "\t", "\x01t", "\r", "\x01r", "\n", "\x01n")

// escape makes a field of text: byte 1 is the escape byte (ring.md section 1).
func escape(s string) string { return escapes.Replace(s) }

// unescape undoes escape. An unknown escape stands for its second byte.
func unescape(s string) string {
	if !strings.Contains(s, "\x01") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != 1 || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case '0':
			b.WriteByte(0)
		case '1':
			b.WriteByte(1)
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case 'n':
			b.WriteByte('\n')
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
