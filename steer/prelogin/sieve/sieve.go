// Package sieve is the dialogue with a ManageSieve client (RFC 5804) until it is logged in.
//
// What the server's Sieve can do is announced before the login, and some clients never ask again. The server learns it
// from its backends: Config.Capabilities are their lines about it.
package sieve

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"usher/steer/prelogin"
	"usher/steer/sasl"
)

// capabilities are for the time before the first backend was asked: the core of the language (RFC 5228) alone.
var capabilities = []string{`"IMPLEMENTATION" "Usher"`, `"SIEVE" "fileinto"`, `"VERSION" "1.0"`}

// dialogue is the ManageSieve side of a prelogin.Talk.
type dialogue struct {
	talk *prelogin.Talk
	cfg  prelogin.Config
}

// New makes the Dialogue with the client behind conn. Nothing is written before the first Next.
func New(conn net.Conn, cfg prelogin.Config) prelogin.Dialogue {
	if cfg.Capabilities == nil {
		cfg.Capabilities = capabilities
	}
	d := &dialogue{cfg: cfg}
	d.talk = prelogin.NewTalk(conn, cfg, prelogin.Protocol{
		Greeting: func() string { return d.capabilities(cfg.Welcome()) },
		Bye:      func(text string) string { return "BYE " + quote(text) + "\r\n" },
		Secured:  func() string { return d.capabilities("TLS negotiation successful.") }, // RFC 5804 section 2.2
		Command:  d.command,
		Ask:      d.ask,
		Refusal:  refusal,
	})
	return d.talk
}

// capabilities are all lines, and the one that ends them.
func (d *dialogue) capabilities(text string) string {
	var b strings.Builder
	for _, line := range d.cfg.Capabilities {
		b.WriteString(line + "\r\n")
	}
	// The capability has to be there, even if nothing can be offered without TLS (RFC 5804 section 1.7).
	b.WriteString(`"SASL" ` + quote(strings.Join(d.talk.Mechanisms(), " ")) + "\r\n")
	if d.talk.StartsTLS() {
		b.WriteString("\"STARTTLS\"\r\n")
	}
	return b.String() + "OK " + quote(text) + "\r\n"
}

func quote(s string) string { return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"` }

// command reads and answers one.
func (d *dialogue) command() (*prelogin.Login, error) {
	line, err := d.talk.Line()
	if err != nil {
		return nil, err
	}
	word, rest, spaced := strings.Cut(string(line), " ")
	arguments, err := d.arguments(rest, spaced)
	if err != nil {
		return nil, d.wrong(err)
	}
	name := strings.ToUpper(word)
	most := map[string]int{"CAPABILITY": 0, "LOGOUT": 0, "STARTTLS": 0, "NOOP": 1, "AUTHENTICATE": 2}
	limit, known := most[name]
	switch {
	case !known || name == "STARTTLS" && !d.talk.StartsTLS():
		return nil, d.talk.Invalid("NO \"Unknown command before login.\"\r\n")
	case len(arguments) > limit:
		return nil, d.talk.Invalid("NO \"Invalid arguments.\"\r\n")
	}
	switch name {
	case "CAPABILITY":
		return nil, d.talk.Say(d.capabilities("Capability completed."))
	case "STARTTLS":
		return nil, d.talk.StartTLS("OK \"Begin TLS negotiation now.\"\r\n")
	case "AUTHENTICATE":
		return d.authenticate(arguments)
	case "LOGOUT":
		if err := d.talk.Say("OK \"Logout completed.\"\r\n"); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}
	if len(arguments) == 1 { // RFC 5804 section 2.13
		return nil, d.talk.Say("OK (TAG " + quote(arguments[0]) + ") \"Done\"\r\n")
	}
	return nil, d.talk.Say("OK \"Done\"\r\n")
}

// errSyntax is a string that is none. The client hears so and may go on.
var errSyntax = errors.New("invalid string")

// wrong answers a fault in a command's strings.
func (d *dialogue) wrong(err error) error {
	if errors.Is(err, errSyntax) {
		return d.talk.Invalid("NO \"Invalid arguments.\"\r\n")
	}
	return err
}

// arguments reads the strings of a command; its line goes on behind a literal.
func (d *dialogue) arguments(rest string, more bool) ([]string, error) {
	var all []string
	for more {
		s, behind, err := d.next(rest)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
		if behind == "" {
			return all, nil
		}
		if rest, more = strings.CutPrefix(behind, " "); !more {
			return nil, errSyntax
		}
	}
	return all, nil
}

// next takes one string, quoted or a literal, from the beginning of rest.
func (d *dialogue) next(rest string) (s, behind string, err error) {
	if size, ok := announcement(rest); ok {
		if size > d.talk.Literal() {
			return "", "", prelogin.ErrLiteral // its bytes are on their way and cannot be told from commands
		}
		data, err := d.talk.Bytes(size)
		if err != nil {
			return "", "", err
		}
		s = string(data)
		line, err := d.talk.Line()
		return s, string(line), err
	}
	inner, ok := strings.CutPrefix(rest, `"`)
	if !ok {
		return "", "", errSyntax
	}
	var b strings.Builder
	for i := 0; i < len(inner); i++ {
		switch c := inner[i]; c {
		case '"':
			return b.String(), inner[i+1:], nil
		case '\\':
			if i++; i == len(inner) {
				return "", "", errSyntax
			}
			b.WriteByte(inner[i])
		case 0, '\r':
			return "", "", errSyntax
		default:
			b.WriteByte(c)
		}
	}
	return "", "", errSyntax
}

// announcement reads "{size+}", which is the whole rest of a line. Clients have no other form (RFC 5804 section 4,
// literal-c2s), and do not wait.
func announcement(s string) (size int, ok bool) {
	digits, ok := strings.CutPrefix(s, "{")
	if !ok {
		return 0, false
	}
	digits, ok = strings.CutSuffix(digits, "+}")
	if !ok || digits == "" {
		return 0, false
	}
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0, false
		}
		size = min(size*10+int(c-'0'), 1<<30)
	}
	return size, true
}

func (d *dialogue) authenticate(arguments []string) (*prelogin.Login, error) {
	if len(arguments) == 0 {
		return nil, d.talk.Invalid("NO \"Invalid arguments.\"\r\n")
	}
	mechanism := strings.ToUpper(arguments[0])
	switch d.talk.Offer(mechanism) {
	case prelogin.Unknown:
		return nil, d.talk.Say("NO \"Unsupported authentication mechanism.\"\r\n")
	case prelogin.Private:
		return nil, d.talk.Say("NO (ENCRYPT-NEEDED) \"Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\"\r\n")
	}
	var initial []byte
	if len(arguments) == 2 {
		message, err := sasl.Decode([]byte(arguments[1]))
		if err != nil {
			return nil, d.talk.Invalid("NO \"Invalid base64 data.\"\r\n")
		}
		initial = append([]byte{}, message...)
	}
	login, err := d.talk.Authenticate(mechanism, initial)
	switch {
	case errors.Is(err, sasl.ErrAborted):
		return nil, d.talk.Say("NO \"Authentication aborted by client.\"\r\n")
	case errors.Is(err, sasl.ErrBase64):
		return nil, d.talk.Invalid("NO \"Invalid base64 data.\"\r\n")
	case errors.Is(err, sasl.ErrMessage):
		return nil, d.talk.Invalid("NO \"Invalid " + mechanism + " message.\"\r\n")
	case errors.Is(err, errSyntax):
		return nil, d.wrong(err)
	}
	return login, err
}

// ask is one step of a SASL exchange: strings both ways.
func (d *dialogue) ask(challenge []byte) ([]byte, error) {
	if err := d.talk.Say(quote(base64.StdEncoding.EncodeToString(challenge)) + "\r\n"); err != nil {
		return nil, err
	}
	line, err := d.talk.Line()
	if err != nil {
		return nil, err
	}
	response, behind, err := d.next(string(line))
	if err == nil && behind != "" {
		err = errSyntax
	}
	if err != nil {
		return nil, err
	}
	return sasl.Answer([]byte(response))
}

func refusal(r prelogin.Refusal) []byte {
	return fmt.Appendf(nil, "NO%s %s\r\n", code(r.Kind), quote(r.Message()))
}

// code is the response code of RFC 5804 section 1.3.
func code(k prelogin.Kind) string {
	switch k {
	case prelogin.AuthFailed, prelogin.PermFail:
		return ""
	default:
		return " (TRYLATER)"
	}
}
