// Package imap is the dialogue with an IMAP client until it is logged in (RFC 3501 sections 6.1 and 6.2).
//
// It announces what holds before login and can be kept without asking a backend: SASL-IR (RFC 4959), LITERAL+ (RFC 7888),
// ID (RFC 2971) and STARTTLS. What holds afterwards is the backend's to say, with its own reply to the login.
package imap

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

// dialogue is the IMAP side of a prelogin.Talk.
type dialogue struct {
	talk *prelogin.Talk
	tag  string // of the last attempt
}

// New makes the Dialogue with the client behind conn. Nothing is written before the first Next.
func New(conn net.Conn, cfg prelogin.Config) prelogin.Dialogue {
	d := &dialogue{}
	d.talk = prelogin.NewTalk(conn, cfg, prelogin.Protocol{
		Greeting: func() string { return "* OK [CAPABILITY " + d.capabilities() + "] " + cfg.Welcome() + "\r\n" },
		Bye:      func(text string) string { return "* BYE " + text + "\r\n" },
		Command:  d.command,
		Ask:      d.ask,
		Refusal:  d.refusal,
	})
	return d.talk
}

func (d *dialogue) capabilities() string {
	all := "IMAP4rev1 SASL-IR LITERAL+ ID"
	if d.talk.StartsTLS() {
		all += " STARTTLS"
	}
	if !d.talk.Plaintext() {
		all += " LOGINDISABLED"
	}
	for _, mechanism := range d.talk.Mechanisms() {
		all += " AUTH=" + mechanism
	}
	return all
}

// command reads and answers one.
func (d *dialogue) command() (*prelogin.Login, error) {
	raw, err := d.read()
	if err != nil {
		return nil, err
	}
	p := &parser{rest: raw}
	tag, name, err := p.head()
	if tag == "" {
		return nil, d.talk.Invalid("* BAD " + errTag.Error() + "\r\n")
	}
	if err == nil {
		switch name {
		case "LOGIN":
			return d.login(tag, p)
		case "AUTHENTICATE":
			return d.authenticate(tag, p)
		case "ID":
			err = p.parameters()
		case "CAPABILITY", "NOOP", "LOGOUT":
		case "STARTTLS":
			if !d.talk.StartsTLS() {
				err = errCommand
			}
		default:
			err = errCommand
		}
	}
	if err == nil {
		err = p.end()
	}
	if err != nil {
		return nil, d.bad(tag, err)
	}
	switch name {
	case "CAPABILITY":
		return nil, d.talk.Say("* CAPABILITY " + d.capabilities() + "\r\n" + tag + " OK Capability completed.\r\n")
	case "ID":
		return nil, d.talk.Say("* ID (\"name\" \"Usher\")\r\n" + tag + " OK ID completed.\r\n")
	case "STARTTLS":
		return nil, d.talk.StartTLS(tag + " OK Begin TLS negotiation now.\r\n")
	case "LOGOUT":
		if err := d.talk.Say("* BYE Logging out\r\n" + tag + " OK Logout completed.\r\n"); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}
	return nil, d.talk.Say(tag + " OK NOOP completed.\r\n")
}

// read assembles one command from its lines and literals. A literal for which the client waits is only asked for when
// the command takes one: before a refusal nobody should have to send a password.
func (d *dialogue) read() ([]byte, error) {
	line, err := d.talk.Line()
	if err != nil {
		return nil, err
	}
	lit, ok := announcement(line)
	if !ok {
		return line, nil
	}
	var command []byte
	wanted := d.takesLiterals(line)
	for ; ok; lit, ok = announcement(line) {
		if lit.sync && (!wanted || lit.size > d.talk.Literal()) {
			break // the parser finds the string missing; the client gets its BAD and sends nothing
		}
		if lit.size > d.talk.Literal() {
			return nil, prelogin.ErrLiteral // its bytes are on their way and cannot be told from commands
		}
		command = append(append(command, line...), "\r\n"...)
		if lit.sync {
			if err := d.talk.Say("+ OK\r\n"); err != nil {
				return nil, err
			}
		}
		data, err := d.talk.Bytes(lit.size)
		if err != nil {
			return nil, err
		}
		command = append(command, data...)
		if line, err = d.talk.Line(); err != nil {
			return nil, err
		}
	}
	return append(command, line...), nil
}

func (d *dialogue) takesLiterals(line []byte) bool {
	_, name, err := (&parser{rest: line}).head()
	return err == nil && (name == "ID" || name == "LOGIN" && d.talk.Plaintext())
}

func (d *dialogue) login(tag string, p *parser) (*prelogin.Login, error) {
	if !d.talk.Plaintext() {
		return nil, d.private(tag)
	}
	user, err := p.argument()
	if err != nil {
		return nil, d.bad(tag, err)
	}
	password, err := p.argument()
	if err == nil {
		err = p.end()
	}
	if err != nil {
		return nil, d.bad(tag, err)
	}
	return d.attempt(prelogin.Login{User: user, Password: password, Mechanism: "LOGIN", Tag: tag}), nil
}

func (d *dialogue) authenticate(tag string, p *parser) (*prelogin.Login, error) {
	mechanism, err := p.argument()
	if err != nil {
		return nil, d.bad(tag, err)
	}
	var response []byte
	initial := len(p.rest) > 0
	if initial {
		if err := p.space(); err != nil {
			return nil, d.bad(tag, err)
		}
		response = p.word()
		if err := p.end(); err != nil || len(response) == 0 {
			return nil, d.bad(tag, errArgs)
		}
	}
	mechanism = strings.ToUpper(mechanism)
	switch d.talk.Offer(mechanism) {
	case prelogin.Unknown:
		return nil, d.talk.Say(tag + " NO Unsupported authentication mechanism.\r\n")
	case prelogin.Private:
		return nil, d.private(tag)
	}
	var first []byte
	if initial {
		message, err := sasl.Decode(response)
		if err != nil {
			return nil, d.bad(tag, errBase64)
		}
		first = append([]byte{}, message...) // an empty one, and not none
	}
	login, err := d.talk.Authenticate(mechanism, first)
	switch {
	case errors.Is(err, sasl.ErrAborted):
		return nil, d.talk.Say(tag + " BAD " + errAborted.Error() + "\r\n")
	case errors.Is(err, sasl.ErrBase64):
		return nil, d.bad(tag, errBase64)
	case errors.Is(err, sasl.ErrMessage):
		return nil, d.bad(tag, fault("Invalid "+mechanism+" message."))
	case err != nil:
		return nil, err
	}
	login.Tag = tag
	return d.attempt(*login), nil
}

// ask is one step of a SASL exchange.
func (d *dialogue) ask(challenge []byte) ([]byte, error) {
	if err := d.talk.Say("+ " + base64.StdEncoding.EncodeToString(challenge) + "\r\n"); err != nil {
		return nil, err
	}
	response, err := d.talk.Line()
	if err != nil {
		return nil, err
	}
	return sasl.Answer(response)
}

// attempt remembers whom a refusal will answer.
func (d *dialogue) attempt(login prelogin.Login) *prelogin.Login {
	d.tag = login.Tag
	return &login
}

func (d *dialogue) bad(tag string, fault error) error {
	return d.talk.Invalid(tag + " BAD " + fault.Error() + "\r\n")
}

func (d *dialogue) private(tag string) error {
	return d.talk.Say(tag + " NO [PRIVACYREQUIRED] Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\r\n")
}

func (d *dialogue) refusal(r prelogin.Refusal) []byte {
	return fmt.Appendf(nil, "%s NO [%s] %s\r\n", d.tag, code(r.Kind), r.Message())
}

// code is the response code of RFC 5530 section 3.
func code(k prelogin.Kind) string {
	switch k {
	case prelogin.AuthFailed:
		return "AUTHENTICATIONFAILED"
	case prelogin.PermFail:
		return "AUTHORIZATIONFAILED"
	case prelogin.InUse:
		return "INUSE"
	default:
		return "UNAVAILABLE"
	}
}
