package sieve

import (
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	"usher/steer/prelogin/internal/dialoguetest"
	"usher/steer/sasl"
)

const core = "\"IMPLEMENTATION\" \"Usher\"\r\n\"SIEVE\" \"fileinto\"\r\n\"VERSION\" \"1.0\"\r\n"

// Each attempt is refused, so that the dialogue goes on to the end of the input.
func TestDialogue(t *testing.T) {
	const greeting = core + "\"SASL\" \"PLAIN\"\r\nOK \"Usher ready.\"\r\n"
	const failed = "NO \"Authentication failed.\"\r\n"
	const arguments = "NO \"Invalid arguments.\"\r\n"
	const plain = "AGZyZWQAeA==" // \0fred\0x
	login := []prelogin.Login{{User: "fred", Password: "x", Mechanism: "PLAIN"}}
	for _, tt := range []struct {
		name   string
		in     string
		out    string // behind the greeting
		logins []prelogin.Login
		cfg    prelogin.Config
		first  string // greeting, where it is another
		err    error  // io.EOF when left out
	}{
		{name: "silence"},
		{name: "capability", in: "CAPABILITY\r\n", out: core + "\"SASL\" \"PLAIN\"\r\nOK \"Capability completed.\"\r\n"},
		{name: "learnt capabilities", cfg: prelogin.Config{Capabilities: []string{`"SIEVE" "x y"`}}, first: "\"SIEVE\" \"x y\"\r\n\"SASL\" \"PLAIN\"\r\nOK \"Usher ready.\"\r\n"},
		{name: "noop", in: "NOOP\r\nnoop \"a\\\"b\"\r\nLOGOUT\r\nNOOP\r\n", out: "OK \"Done\"\r\nOK (TAG \"a\\\"b\") \"Done\"\r\nOK \"Logout completed.\"\r\n"},
		{name: "plain, quoted", in: "AUTHENTICATE \"PLAIN\" \"" + plain + "\"\r\n", out: failed, logins: login},
		{name: "plain, literal", in: "AUTHENTICATE \"PLAIN\" {12+}\r\n" + plain + "\r\n", out: failed, logins: login},
		{name: "both literals", in: "AUTHENTICATE {5+}\r\nPLAIN {12+}\r\n" + plain + "\r\n", out: failed, logins: login},
		{name: "plain, asked", in: "AUTHENTICATE \"plain\"\r\n\"" + plain + "\"\r\n", out: "\"\"\r\n" + failed, logins: login},
		{name: "plain, asked, literal", in: "AUTHENTICATE \"PLAIN\"\r\n{12+}\r\n" + plain + "\r\n", out: "\"\"\r\n" + failed, logins: login},
		{name: "aborted", in: "AUTHENTICATE \"PLAIN\"\r\n\"*\"\r\n", out: "\"\"\r\nNO \"Authentication aborted by client.\"\r\n"},
		{name: "answer without quotes", in: "AUTHENTICATE \"PLAIN\"\r\n" + plain + "\r\n", out: "\"\"\r\n" + arguments},
		{name: "not base64", in: "AUTHENTICATE \"PLAIN\" \"!\"\r\n", out: "NO \"Invalid base64 data.\"\r\n"},
		{name: "unknown mechanism", in: "AUTHENTICATE \"CRAM-MD5\"\r\n", out: "NO \"Unsupported authentication mechanism.\"\r\n"},
		{name: "no mechanism", in: "AUTHENTICATE\r\n", out: arguments},
		{name: "three arguments", in: "AUTHENTICATE \"PLAIN\" \"\" \"\"\r\n", out: arguments},
		{name: "synchronizing literal", in: "AUTHENTICATE \"PLAIN\" {12}\r\n", out: arguments},
		{name: "quote not closed", in: "NOOP \"a\r\n", out: arguments},
		{name: "glued", in: "NOOP \"a\"\"b\"\r\n", out: arguments},
		{name: "another command with a literal", in: "PUTSCRIPT \"x\" {6+}\r\nkeep;\n\r\nNOOP\r\n", out: "NO \"Unknown command before login.\"\r\nOK \"Done\"\r\n"},
		{name: "long literal", in: "NOOP {100000+}\r\n", out: "BYE \"Literal too long.\"\r\n", err: prelogin.ErrLiteral},
		{name: "endless literal", in: "NOOP {99999999999999999999+}\r\n", out: "BYE \"Literal too long.\"\r\n", err: prelogin.ErrLiteral},
		{
			name: "not private", in: "AUTHENTICATE \"PLAIN\" \"" + plain + "\"\r\n", cfg: prelogin.Config{DisablePlaintext: true},
			first: core + "\"SASL\" \"\"\r\nOK \"Usher ready.\"\r\n",
			out:   "NO (ENCRYPT-NEEDED) \"Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\"\r\n",
		},
		{name: "no TLS", in: "STARTTLS\r\n", out: "NO \"Unknown command before login.\"\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := scriptconn.New(tt.in)
			o := dialoguetest.Play(t, New, conn, tt.cfg, 0)
			if tt.err == nil {
				tt.err = io.EOF
			}
			if tt.first == "" {
				tt.first = greeting
			}
			if diff := cmp.Diff(tt.logins, o.Logins); diff != "" || o.Err != tt.err.Error() || o.Written != tt.first+tt.out {
				t.Errorf("%s %s\n%s", o.Err, diff, conn.Dialogue())
			}
		})
	}
}

// However the bytes arrive, the dialogue is the same, and nothing behind the login is lost or doubled.
func FuzzDialogue(f *testing.F) {
	for _, seed := range []string{
		"AUTHENTICATE \"PLAIN\" \"AGZyZWQAeA==\"\r\nPUTSCRIPT", "AUTHENTICATE \"PLAIN\" {12+}\r\nAGZyZWQAeA==\r\nrest",
		"AUTHENTICATE \"LOGIN\"\r\n\"ZnJlZA==\"\r\n{4+}\r\neA==\r\n\x00", "NOOP \"\\\"\"\nLOGOUT\n", "AUTHENTICATE {0+}\r\n {0+}\r\n\r\n",
	} {
		f.Add([]byte(seed), uint8(1), uint8(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, size, accepted uint8) {
		cfg := prelogin.Config{Mechanisms: sasl.Mechanisms, Limits: prelogin.Limits{Line: 128, Literal: 64, Bytes: 1024, Commands: 16}}
		dialoguetest.However(t, New, cfg, data, int(size)+1, int(accepted), func(l prelogin.Login) bool {
			return l.User != "" && sasl.Allowed(l.User+l.Password+l.Authzid)
		})
	})
}
