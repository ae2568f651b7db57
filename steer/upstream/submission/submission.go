// Package submission logs a user in at a submission backend (RFC 6409) with AUTH (RFC 4954). The backend hears the client's
// own name in EHLO, because the client does not say it again.
package submission

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"slices"
	"strings"

	"usher/steer/prelogin"
	"usher/steer/sasl"
	"usher/steer/upstream"
	"usher/steer/upstream/smtp"
)

// longestCommand is what every server takes in one line (RFC 5321 section 4.5.3.1.4), CRLF included.
const longestCommand = 512

// StartTLS changes a new connection to TLS, for Login.
func StartTLS(ctx context.Context, conn net.Conn, limits upstream.Limits, handshake upstream.Handshake) (net.Conn, error) {
	return smtp.StartTLS(ctx, conn, limits, handshake, "EHLO")
}

// Login reads the greeting and logs in over conn, which is new. The errors are *upstream.Rejected when the backend refused
// the user, upstream.ErrCredentials when nothing was sent, and temporary ones otherwise (see package upstream). The result
// has the backend's keywords of EHLO, without those between it and the proxy. The connection has no deadline afterwards; with an error it is only good for closing.
func Login(ctx context.Context, conn net.Conn, credentials upstream.Credentials, limits upstream.Limits) (upstream.Result, error) {
	if err := credentials.Check(); err != nil {
		return upstream.Result{}, err
	}
	if strings.Contains(credentials.Hello, " ") {
		return upstream.Result{}, fmt.Errorf("%w: hello %q", upstream.ErrCredentials, credentials.Hello)
	}
	limits = limits.OrDefault()
	name := cmp.Or(credentials.Hello, smtp.Literal(conn.LocalAddr()))
	b := &backend{
		Conn:        smtp.Conn{Reader: prelogin.NewReader(conn, limits.Line, limits.Bytes), W: conn, Hello: "EHLO " + name},
		Credentials: credentials,
	}
	var reply smtp.Reply
	err := smtp.Within(ctx, conn, limits, func() (err error) {
		reply, err = b.login()
		return err
	})
	if err != nil {
		return upstream.Result{}, err
	}
	return upstream.Result{Reply: reply.Raw, Residual: b.Residual(), Capabilities: b.Keywords("AUTH", "STARTTLS", "XCLIENT")}, nil
}

// backend is one login in progress.
type backend struct {
	smtp.Conn
	upstream.Credentials
}

func (b *backend) login() (smtp.Reply, error) {
	if err := b.Greet(); err != nil {
		return smtp.Reply{}, upstream.Failed("read the greeting", err)
	}
	if err := b.Introduce(b.Forward); err != nil {
		return smtp.Reply{}, upstream.Failed("introduce the client", err)
	}
	mechanism, message := "PLAIN", []byte(b.Message)
	if b.Token() {
		mechanism = b.Mechanism
	} else {
		var err error
		if message, err = b.Plain().Encode(); err != nil {
			return smtp.Reply{}, err
		}
	}
	if offered, _ := b.Keyword("AUTH"); !slices.Contains(offered, mechanism) {
		return smtp.Reply{}, fmt.Errorf("%w: no AUTH %s", upstream.ErrMechanism, mechanism)
	}
	reply, err := b.authenticate(mechanism, message)
	return reply, upstream.Failed("log in", err)
}

func (b *backend) authenticate(mechanism string, message []byte) (smtp.Reply, error) {
	command := "AUTH " + mechanism
	response := sasl.Encode(message)
	if line := command + " " + response; len(line)+2 <= longestCommand {
		command, response = line, ""
	}
	reply, err := b.Command(command)
	if err == nil && reply.Code == 334 && response != "" {
		reply, err = b.Command(response)
	}
	var challenge []byte
	if err == nil && reply.Code == 334 && b.Token() {
		// The token was not taken, and this says why; the refusal itself is still to come.
		if challenge, err = sasl.Decode([]byte(reply.Lines[0])); err != nil {
			return reply, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(reply.Raw))
		}
		reply, err = b.Command(base64.StdEncoding.EncodeToString(sasl.Abandon(mechanism)))
	}
	switch {
	case err != nil:
		return reply, err
	case reply.Code == 235:
		return reply, nil
	case reply.Code == 421:
		return reply, fmt.Errorf("%w: %s", upstream.ErrBye, upstream.Excerpt(reply.Raw))
	case reply.Class() == 4 || reply.Class() == 5:
		return reply, &upstream.Rejected{Raw: reply.Raw, Kind: kind(reply.Code), Challenge: challenge}
	}
	return reply, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(reply.Raw))
}

// kind tells by the code what a refusal means (RFC 4954 section 6).
func kind(code int) prelogin.Kind {
	switch {
	case code < 500:
		return prelogin.TempFail
	case code == 535:
		return prelogin.AuthFailed
	default:
		return prelogin.PermFail
	}
}
