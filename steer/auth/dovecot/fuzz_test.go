package dovecot

import (
	"bufio"
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"usher/steer/auth"
)

// lines of the transcripts, with | for TAB.
var lines = []string{
	"VERSION|1|2", "MECH|PLAIN|plaintext", "MECH|CRAM-MD5|dictionary|active", "SPID|27310", "CUID|1", "DONE",
	"COOKIE|941c49fcebaada44c205d1c895265364", "OK|1|user=user2@x.test|proxy|lip=127.0.1.1|lport=10143|pass=pw",
	"OK|6|user=dmaybe@x.test|director_proxy_maybe=y", "OK|8|user=byname@x.test|proxy|host=localhost|hostip=127.0.0.1|pass=pw",
	"PASS|4|user=disabled@x.test|nologin=y|reason=Go=away", "USER|6|user1@x.test|", "NOTFOUND|1", "FAIL|1|user=a|code=temp_fail",
	"CONT|1|PGE+", "DONE|7|fail", "OK|1|a=\x01t\x01n\x01r\x010\x011", "OK|4294967296|x", "OK", "", "|", "\x01",
}

// A line is refused, or read in a way that writing it gives a line that is read alike.
func FuzzLine(f *testing.F) {
	for _, line := range lines {
		f.Add([]byte(strings.ReplaceAll(line, "|", "\t")))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		fields, err := parseLine(line)
		if err != nil {
			if !errors.Is(err, errLine) {
				t.Error(err)
			}
			return
		}
		written := appendLine(nil, fields...)
		if bytes.Count(written, []byte("\n")) != 1 {
			t.Errorf("%q is not one line", written)
		}
		again, err := parseLine(written[:len(written)-1])
		if err != nil || !slices.Equal(fields, again) {
			t.Errorf("%q: fields %q, then %q, %v", line, fields, again, err)
		}
		re, err := parseReply(line)
		if err != nil || re.id == 0 {
			return
		}
		a := &Auth{named: map[string]bool{}}
		x := a.begin(request23("fred", "x"), "PLAIN")
		if answer, err := x.accepted(re); err == nil && (answer.User == "" || answer.Upstream.Check() != nil) {
			t.Errorf("%q: answer %+v", line, answer)
		}
		var refused *auth.Refused
		if errors.As(failure(re, auth.ErrCredentials), &refused); refused.Text != auth.Line(refused.Text) {
			t.Errorf("%q: text %q", line, refused.Text)
		}
		if len(a.named) > maxNamed {
			t.Errorf("%d names", len(a.named))
		}
	})
}

// Any strings are one line, and the same strings on the other side.
func FuzzAppend(f *testing.F) {
	f.Add("a\tb", "\r\n\x00\x01")
	f.Fuzz(func(t *testing.T, a, b string) {
		line := appendLine(nil, a, b)
		if bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("%q", line)
		}
		if back, err := parseLine(line[:len(line)-1]); err != nil || !slices.Equal(back, []string{a, b}) {
			t.Errorf("%q, %q: back %q, %v", a, b, back, err)
		}
	})
}

// Whatever comes in place of a handshake ends, and without a panic.
func FuzzHandshake(f *testing.F) {
	for _, hello := range []string{hello23, hello24, users23, users24} {
		f.Add([]byte(strings.ReplaceAll(hello, "|", "\t")), true)
		f.Add([]byte(strings.ReplaceAll(hello, "|", "\t")), false)
	}
	f.Fuzz(func(t *testing.T, input []byte, login bool) {
		c := &conn{net: discard{}}
		err := c.handshake(bufio.NewReaderSize(bytes.NewReader(input), maxLine), login)
		if err == nil && login && len(c.mechanisms) == 0 {
			t.Error("no mechanisms")
		}
		for _, m := range c.mechanisms {
			if !isName(m.Name) {
				t.Errorf("mechanism %q", m.Name)
			}
		}
	})
}
