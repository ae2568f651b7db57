// Package imap logs a user in at an IMAP backend (RFC 3501), with AUTHENTICATE PLAIN in one round trip where the backend
// offers it (RFC 4959) and with LOGIN otherwise.
package imap

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"usher/steer/prelogin"
	"usher/steer/sasl"
	"usher/steer/upstream"
)

// ownTag is the tag of the one command that is ours and not the client's.
const ownTag = "usher"

// Login reads the greeting and logs in over conn, which is new. The errors are *upstream.Rejected when the backend said
// NO, upstream.ErrCredentials when nothing was sent, and temporary ones otherwise (see package upstream). The
// connection has no deadline afterwards; with an error it is only good for closing.
func Login(ctx context.Context, conn net.Conn, credentials upstream.Credentials, limits upstream.Limits) (upstream.Result, error) {
	if err := credentials.Check(); err != nil {
		return upstream.Result{}, err
	}
	if credentials.Tag == "" || strings.ContainsAny(credentials.Tag, " +*") {
		return upstream.Result{}, fmt.Errorf("%w: tag %q", upstream.ErrCredentials, credentials.Tag)
	}
	limits = limits.OrDefault()
	b := &backend{Reader: prelogin.NewReader(conn, limits.Line, limits.Bytes), conn: conn, Credentials: credentials}
	if err := prelogin.Within(ctx, conn, time.Now().Add(limits.Time), b.login); err != nil {
		return upstream.Result{}, err
	}
	return upstream.Result{Reply: b.relay, Residual: b.Residual(), Capabilities: b.capabilities}, nil
}

// StartTLS changes a new connection to TLS, for Login.
func StartTLS(ctx context.Context, conn net.Conn, limits upstream.Limits, handshake upstream.Handshake) (net.Conn, error) {
	return upstream.StartTLS(ctx, conn, limits, handshake, "* OK after STARTTLS\r\n", func(r *prelogin.Reader) error {
		b := &backend{Reader: r, conn: conn}
		if err := b.greeting(); err != nil {
			return err
		}
		if err := b.send(ownTag + " STARTTLS\r\n"); err != nil {
			return err
		}
		reply, line, err := b.answer(ownTag)
		if err == nil && (reply.tag != ownTag || reply.status != "OK") {
			err = fmt.Errorf("%w: %s", upstream.ErrNoTLS, upstream.Excerpt(line))
		}
		return err
	})
}

// backend is one login in progress.
type backend struct {
	*prelogin.Reader
	upstream.Credentials
	conn         io.Writer
	offered      []string // capabilities before login
	capabilities []string // of the last list seen since the command was sent
	relay        []byte   // what the client will see
	challenge    []byte   // of a token that was not taken
	first        string   // a command of ours that goes along with the next one
}

func (b *backend) login() error {
	if err := b.greeting(); err != nil {
		return upstream.Failed("read the greeting", err)
	}
	if b.offered == nil {
		if err := b.ask(); err != nil {
			return upstream.Failed("ask for capabilities", err)
		}
	}
	send, err := b.method()
	if err != nil {
		return err
	}
	if b.Forward != nil && b.offers("ID") {
		b.first = ownTag + " ID " + b.Forward.ID() + "\r\n"
	}
	return upstream.Failed("log in", b.finish(send))
}

func (b *backend) greeting() error {
	line, err := b.Line()
	if err != nil {
		return err
	}
	r, ok := parse(line)
	switch {
	case ok && r.tag == "*" && r.status == "OK":
		b.offered = r.capabilities()
		return nil
	case ok && r.tag == "*" && r.status == "BYE":
		return fmt.Errorf("%w: %s", upstream.ErrBye, upstream.Excerpt(line))
	default:
		// PREAUTH among them: a connection on which somebody else is logged in already is no place for this user.
		return fmt.Errorf("%w: %s", upstream.ErrGreeting, upstream.Excerpt(line))
	}
}

// ask is for greetings without a list. Dovecot greets so while its auth process is slow, and with the list a little later.
func (b *backend) ask() error {
	if err := b.send(ownTag + " CAPABILITY\r\n"); err != nil {
		return err
	}
	r, line, err := b.answer(ownTag)
	if err != nil {
		return err
	}
	if r.tag != ownTag || r.status != "OK" {
		return fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(line))
	}
	// What was said up to here is about the time before login; the client hears nothing of it.
	b.offered, b.capabilities, b.relay = b.capabilities, nil, nil
	return nil
}

// method chooses how to log in.
func (b *backend) method() (send func() (reply, []byte, error), err error) {
	plain, initial := b.offers("AUTH=PLAIN"), b.offers("SASL-IR")
	switch {
	case b.Token() && b.offers("AUTH="+b.Mechanism):
		return func() (reply, []byte, error) { return b.token(initial) }, nil
	case b.Token():
		return nil, fmt.Errorf("%w: no AUTH=%s", upstream.ErrMechanism, b.Mechanism)
	case plain && (initial || b.Delegated() || b.offers("LOGINDISABLED")):
		return func() (reply, []byte, error) { return b.authenticate(initial) }, nil
	case b.offers("LOGINDISABLED"):
		return nil, fmt.Errorf("%w: it wants TLS before a password", upstream.ErrMechanism)
	case !b.Delegated():
		return func() (reply, []byte, error) { return b.loginCommand(b.User, b.Password) }, nil
	case b.MasterUser != "" && b.Separator != "":
		return func() (reply, []byte, error) {
			return b.loginCommand(b.User+b.Separator+b.MasterUser, b.MasterPassword)
		}, nil
	default:
		return nil, fmt.Errorf("%w: a login for another user takes AUTH=PLAIN or a separator", upstream.ErrMechanism)
	}
}

// offers reports whether the backend has a capability, given in upper case.
func (b *backend) offers(capability string) bool { return slices.Contains(b.offered, capability) }

func (b *backend) authenticate(initial bool) (reply, []byte, error) {
	message, err := b.Plain().Encode()
	if err != nil {
		return reply{}, nil, err
	}
	return b.respond("PLAIN", message, initial)
}

// respond sends the one message of a mechanism.
func (b *backend) respond(mechanism string, message []byte, initial bool) (reply, []byte, error) {
	response := sasl.Encode(message) + "\r\n"
	if initial {
		return b.exchange(b.Tag + " AUTHENTICATE " + mechanism + " " + response)
	}
	if r, line, err := b.exchange(b.Tag + " AUTHENTICATE " + mechanism + "\r\n"); err != nil || r.tag != "+" {
		return r, line, err
	}
	return b.exchange(response)
}

// token sends the client's own message. A backend that does not take it says why in a challenge before its NO.
func (b *backend) token(initial bool) (reply, []byte, error) {
	r, line, err := b.respond(b.Mechanism, []byte(b.Message), initial)
	if err != nil || r.tag != "+" {
		return r, line, err
	}
	_, challenge, _ := bytes.Cut(line, []byte{' '})
	if b.challenge, err = sasl.Decode(challenge); err != nil {
		return r, line, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(line))
	}
	return b.exchange(base64.StdEncoding.EncodeToString(sasl.Abandon(b.Mechanism)) + "\r\n")
}

func (b *backend) loginCommand(user, password string) (reply, []byte, error) {
	command := b.Tag + " LOGIN"
	for _, argument := range []string{user, password} {
		if quotable(argument) {
			command += ` "` + escaper.Replace(argument) + `"`
			continue
		}
		if b.offers("LITERAL+") || b.offers("LITERAL-") && len(argument) <= 4096 { // RFC 7888 section 5
			command += fmt.Sprintf(" {%d+}\r\n%s", len(argument), argument)
			continue
		}
		r, line, err := b.exchange(command + fmt.Sprintf(" {%d}\r\n", len(argument)))
		if err != nil || r.tag != "+" {
			return r, line, err
		}
		command = argument
	}
	return b.exchange(command + "\r\n")
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// quotable reports whether s may stand in a quoted string: 7 bits (RFC 3501 section 9). Control characters were refused before.
func quotable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 })
}

// finish sends the login and judges the final line.
func (b *backend) finish(send func() (reply, []byte, error)) error {
	r, line, err := send()
	if err != nil {
		return err
	}
	switch r.status {
	case "OK":
		b.show(line)
		if list := r.capabilities(); list != nil {
			b.capabilities = list
		}
		return nil
	case "NO":
		return &upstream.Rejected{Raw: append(slices.Clone(line), "\r\n"...), Kind: r.kind(), Challenge: b.challenge}
	default:
		// BAD is about our command, and "+" is not expected any more: no words for the client in either.
		return fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(line))
	}
}

func (b *backend) exchange(command string) (reply, []byte, error) {
	first := b.first
	b.first = ""
	if err := b.send(first + command); err != nil {
		return reply{}, nil, err
	}
	if first != "" {
		// Whatever it answers, the client hears nothing of it.
		if r, line, err := b.answer(ownTag); err != nil || r.tag == "+" {
			return r, line, cmp.Or(err, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(line)))
		}
		b.capabilities, b.relay = nil, nil
	}
	return b.answer(b.Tag)
}

func (b *backend) send(command string) error {
	_, err := io.WriteString(b.conn, command)
	return err
}

// answer reads up to the tagged line or to a continuation request, and keeps the untagged lines before it.
func (b *backend) answer(tag string) (reply, []byte, error) {
	for {
		line, err := b.Line()
		if err != nil {
			return reply{}, nil, err
		}
		r, ok := parse(line)
		switch {
		case ok && r.tag == "*" && r.status == "BYE":
			return r, line, fmt.Errorf("%w: %s", upstream.ErrBye, upstream.Excerpt(line))
		case ok && r.tag == "*":
			if list := r.capabilities(); list != nil {
				b.capabilities = list
			}
			b.show(line)
		case ok && (r.tag == tag || r.tag == "+"):
			return r, line, nil
		default:
			return r, line, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(line))
		}
	}
}

// show keeps a line for the client.
func (b *backend) show(line []byte) {
	b.relay = append(append(b.relay, line...), "\r\n"...)
}
