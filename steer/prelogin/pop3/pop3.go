// Package pop3 is the dialogue with a POP3 client until it is logged in: the AUTHORIZATION state of RFC 1939 with CAPA
// (RFC 2449) and AUTH (RFC 5034). There is no APOP: it needs the password itself at the server.
package pop3

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"usher/steer/prelogin"
	"usher/steer/sasl"
)

// dialogue is the POP3 side of a prelogin.Talk.
type dialogue struct {
	talk *prelogin.Talk
	user string // of USER, until the next PASS
}

// New makes the Dialogue with the client behind conn. Nothing is written before the first Next.
func New(conn net.Conn, cfg prelogin.Config) prelogin.Dialogue {
	d := &dialogue{}
	d.talk = prelogin.NewTalk(conn, cfg, prelogin.Protocol{
		Greeting: func() string { return "+OK " + cfg.Welcome() + "\r\n" },
		Bye:      func(text string) string { return "-ERR " + text + "\r\n" },
		Command:  d.command,
		Ask:      d.ask,
		Refusal:  refusal,
	})
	return d.talk
}

// capabilities has TOP and UIDL although they are the backend's: RFC 2449 sections 6.1 and 6.8 want them announced in both
// states, and clients that ask only before login would do without them.
func (d *dialogue) capabilities() string {
	all := "CAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nAUTH-RESP-CODE\r\n"
	if d.talk.StartsTLS() {
		all += "STLS\r\n"
	}
	if d.talk.Plaintext() {
		all += "USER\r\n"
	}
	if offered := d.talk.Mechanisms(); len(offered) > 0 {
		all += "SASL " + strings.Join(offered, " ") + "\r\n"
	}
	return all
}

// command reads and answers one.
func (d *dialogue) command() (*prelogin.Login, error) {
	line, err := d.talk.Line()
	if err != nil {
		return nil, err
	}
	name, argument := split(line)
	switch name {
	case "USER":
		return nil, d.name(argument)
	case "PASS":
		return d.password(argument)
	case "AUTH":
		if argument == "" {
			return nil, d.mechanisms()
		}
		return d.authenticate(argument)
	case "APOP":
		return nil, d.talk.Say("-ERR APOP not enabled.\r\n")
	}
	if argument != "" {
		name = "" // the commands below have no arguments
	}
	switch name {
	case "CAPA":
		return nil, d.talk.Say("+OK\r\n" + d.capabilities() + ".\r\n")
	case "STLS":
		if d.talk.StartsTLS() {
			d.user = "" // it was said in plaintext
			return nil, d.talk.StartTLS("+OK Begin TLS negotiation now.\r\n")
		}
	case "NOOP":
		return nil, d.talk.Say("+OK\r\n")
	case "QUIT":
		if err := d.talk.Say("+OK Logging out\r\n"); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}
	return nil, d.talk.Invalid("-ERR Unknown command.\r\n")
}

// split cuts a line at its first space. The argument keeps its own spaces: passwords have them (RFC 1939 section 7, PASS).
func split(line []byte) (name, argument string) {
	command, rest, _ := bytes.Cut(line, []byte{' '})
	return strings.ToUpper(string(command)), string(rest)
}

func (d *dialogue) name(user string) error {
	if !d.talk.Plaintext() {
		return d.private()
	}
	if user == "" {
		return d.talk.Invalid("-ERR No username given.\r\n")
	}
	d.user = user
	return d.talk.Say("+OK\r\n")
}

func (d *dialogue) password(password string) (*prelogin.Login, error) {
	if !d.talk.Plaintext() {
		return nil, d.private()
	}
	if d.user == "" {
		return nil, d.talk.Invalid("-ERR No username given.\r\n")
	}
	login := &prelogin.Login{User: d.user, Password: password, Mechanism: "USER"}
	d.user = "" // RFC 1939: after a failed PASS the client begins with USER again
	return login, nil
}

func (d *dialogue) mechanisms() error {
	answer := "+OK\r\n"
	for _, mechanism := range d.talk.Mechanisms() {
		answer += mechanism + "\r\n"
	}
	return d.talk.Say(answer + ".\r\n")
}

func (d *dialogue) authenticate(argument string) (*prelogin.Login, error) {
	mechanism, response, given := strings.Cut(argument, " ")
	mechanism = strings.ToUpper(mechanism)
	switch d.talk.Offer(mechanism) {
	case prelogin.Unknown:
		return nil, d.talk.Say("-ERR Unsupported authentication mechanism.\r\n")
	case prelogin.Private:
		return nil, d.private()
	}
	var initial []byte
	if given {
		message, err := sasl.Decode([]byte(response))
		if err != nil {
			return nil, d.talk.Invalid("-ERR Invalid base64 data.\r\n")
		}
		initial = append([]byte{}, message...)
	}
	login, err := d.talk.Authenticate(mechanism, initial)
	switch {
	case errors.Is(err, sasl.ErrAborted):
		return nil, d.talk.Say("-ERR Authentication aborted by client.\r\n")
	case errors.Is(err, sasl.ErrBase64):
		return nil, d.talk.Invalid("-ERR Invalid base64 data.\r\n")
	case errors.Is(err, sasl.ErrMessage):
		return nil, d.talk.Invalid("-ERR Invalid " + mechanism + " message.\r\n")
	}
	return login, err
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

func (d *dialogue) private() error {
	return d.talk.Say("-ERR Plaintext authentication disallowed on non-secure (SSL/TLS) connections.\r\n")
}

func refusal(r prelogin.Refusal) []byte {
	return fmt.Appendf(nil, "-ERR [%s] %s\r\n", code(r.Kind), r.Message())
}

// code is the response code of RFC 2449 section 8.1.1 and RFC 3206 section 4.
func code(k prelogin.Kind) string {
	switch k {
	case prelogin.AuthFailed, prelogin.PermFail:
		return "AUTH"
	case prelogin.InUse:
		return "IN-USE"
	default:
		return "SYS/TEMP"
	}
}
