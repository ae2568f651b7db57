// Package submission is the dialogue with a mail client that submits messages (RFC 6409) until it is logged in: SMTP's EHLO,
// AUTH (RFC 4954) and STARTTLS (RFC 3207), and nothing about mail: that is the backend's.
//
// Clients do not ask for the server's keywords again once they are logged in. So what is announced here has to be true for
// the backends: Config.Capabilities, or what each of them has.
package submission

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"usher/steer/prelogin"
	"usher/steer/sasl"
)

// capabilities are keywords that Dovecot's submission service and every present MTA have.
var capabilities = []string{"PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"}

// mechanisms has LOGIN, because there are printers that know nothing else.
var mechanisms = []string{"PLAIN", "LOGIN"}

// dialogue is the SMTP side of a prelogin.Talk.
type dialogue struct {
	talk  *prelogin.Talk
	cfg   prelogin.Config
	hello string // the client's name, after EHLO
}

// New makes the Dialogue with the client behind conn. Nothing is written before the first Next.
func New(conn net.Conn, cfg prelogin.Config) prelogin.Dialogue {
	if cfg.Name == "" {
		cfg.Name = "usher"
	}
	if cfg.Capabilities == nil {
		cfg.Capabilities = capabilities
	}
	if cfg.Mechanisms == nil {
		cfg.Mechanisms = mechanisms
	}
	d := &dialogue{cfg: cfg}
	d.talk = prelogin.NewTalk(conn, cfg, prelogin.Protocol{
		Greeting: func() string { return "220 " + cfg.Name + " ESMTP " + cfg.Welcome() + "\r\n" },
		Bye:      func(text string) string { return "421 4.7.0 " + text + "\r\n" },
		Command:  d.command,
		Ask:      d.ask,
		Refusal:  refusal,
	})
	return d.talk
}

// command reads and answers one.
func (d *dialogue) command() (*prelogin.Login, error) {
	line, err := d.talk.Line()
	if err != nil {
		return nil, err
	}
	name, argument, _ := strings.Cut(string(line), " ")
	switch strings.ToUpper(name) {
	case "EHLO":
		return nil, d.greet(argument, d.ehlo)
	case "HELO":
		return nil, d.greet(argument, func() string { return "250 " + d.cfg.Name + "\r\n" })
	case "AUTH":
		return d.authenticate(argument)
	case "STARTTLS":
		return nil, d.startTLS(argument)
	case "NOOP":
		return nil, d.talk.Say("250 2.0.0 OK\r\n")
	case "RSET":
		return nil, d.talk.Say("250 2.0.0 OK\r\n")
	case "QUIT":
		if err := d.talk.Say("221 2.0.0 Bye\r\n"); err != nil {
			return nil, err
		}
		return nil, io.EOF
	case "MAIL", "RCPT", "DATA", "BDAT", "BURL", "VRFY", "EXPN":
		return nil, d.talk.Say("530 5.7.0 Authentication required.\r\n")
	}
	return nil, d.talk.Invalid("500 5.5.1 Unknown command.\r\n")
}

// greet takes EHLO and HELO. The name goes to the backend, and from there into headers of mail.
func (d *dialogue) greet(name string, answer func() string) error {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return d.talk.Invalid("501 5.5.4 Invalid name.\r\n")
	}
	d.hello = name
	return d.talk.Say(answer())
}

func (d *dialogue) ehlo() string {
	keywords := d.cfg.Capabilities
	if d.talk.StartsTLS() {
		keywords = append(keywords[:len(keywords):len(keywords)], "STARTTLS")
	}
	if offered := d.talk.Mechanisms(); len(offered) > 0 {
		keywords = append(keywords[:len(keywords):len(keywords)], "AUTH "+strings.Join(offered, " "))
	}
	answer := d.cfg.Name
	var b strings.Builder
	for _, next := range keywords {
		b.WriteString("250-" + answer + "\r\n")
		answer = next
	}
	return b.String() + "250 " + answer + "\r\n"
}

func (d *dialogue) startTLS(argument string) error {
	switch {
	case !d.talk.StartsTLS():
		return d.talk.Invalid("502 5.5.1 TLS is not available.\r\n")
	case argument != "":
		return d.talk.Invalid("501 5.5.4 No arguments here.\r\n")
	}
	d.hello = "" // RFC 3207 section 4.2: what was said before counts no more
	return d.talk.StartTLS("220 2.0.0 Begin TLS negotiation now.\r\n")
}

func (d *dialogue) authenticate(argument string) (*prelogin.Login, error) {
	mechanism, response, given := strings.Cut(argument, " ")
	mechanism = strings.ToUpper(mechanism)
	if d.hello == "" {
		return nil, d.talk.Invalid("503 5.5.1 EHLO first.\r\n")
	}
	switch d.talk.Offer(mechanism) {
	case prelogin.Unknown:
		return nil, d.talk.Say("504 5.5.4 Unsupported authentication mechanism.\r\n")
	case prelogin.Private:
		return nil, d.talk.Say("538 5.7.11 Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\r\n")
	}
	var initial []byte
	if given {
		message, err := sasl.Decode([]byte(response))
		if err != nil {
			return nil, d.talk.Invalid("501 5.5.2 Invalid base64 data.\r\n")
		}
		initial = append([]byte{}, message...)
	}
	login, err := d.talk.Authenticate(mechanism, initial)
	switch {
	case errors.Is(err, sasl.ErrAborted):
		return nil, d.talk.Say("501 5.7.0 Authentication aborted by client.\r\n")
	case errors.Is(err, sasl.ErrBase64):
		return nil, d.talk.Invalid("501 5.5.2 Invalid base64 data.\r\n")
	case errors.Is(err, sasl.ErrMessage):
		return nil, d.talk.Invalid("501 5.5.2 Invalid " + mechanism + " message.\r\n")
	case err != nil:
		return nil, err
	}
	login.Hello = d.hello
	return login, nil
}

// ask is one step of a SASL exchange.
func (d *dialogue) ask(challenge []byte) ([]byte, error) {
	if err := d.talk.Say("334 " + base64.StdEncoding.EncodeToString(challenge) + "\r\n"); err != nil {
		return nil, err
	}
	response, err := d.talk.Line()
	if err != nil {
		return nil, err
	}
	return sasl.Answer(response)
}

func refusal(r prelogin.Refusal) []byte {
	return fmt.Appendf(nil, "%s %s\r\n", cmp.Or(r.Code, code(r.Kind)), r.Message())
}

// code is the reply code of RFC 4954 section 6.
func code(k prelogin.Kind) string {
	switch k {
	case prelogin.AuthFailed:
		return "535 5.7.8"
	case prelogin.PermFail:
		return "535 5.7.1"
	default:
		return "454 4.7.0"
	}
}
