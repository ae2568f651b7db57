package dovecot

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"usher/steer/auth"
	"usher/steer/sasl"
)

// Mechanisms implements auth.Relayer: what a connection was told when it was made.
func (a *Auth) Mechanisms(ctx context.Context) ([]auth.Mechanism, error) {
	if a.login == nil {
		return nil, errNoLogin
	}
	c, err := a.login.live(ctx, a.login.choose())
	if err != nil {
		return nil, fmt.Errorf("%w: Dovecot's auth: %w", auth.ErrTemporary, err)
	}
	return c.mechanisms, nil
}

var errNoLogin = fmt.Errorf("%w: no socket of Dovecot's auth for logins is configured", auth.ErrTemporary)

// Begin implements auth.Relayer.
func (a *Auth) Begin(ctx context.Context, r auth.Request, mechanism string) (auth.Exchange, error) {
	mechanism = strings.ToUpper(mechanism)
	all, err := a.Mechanisms(ctx)
	if err != nil {
		return nil, err
	}
	// EXTERNAL is no exchange but a claim, which Authenticate makes when it is true.
	if mechanism == "EXTERNAL" || !slices.ContainsFunc(all, func(m auth.Mechanism) bool { return m.Name == mechanism }) {
		return nil, fmt.Errorf("%w: there is no mechanism %s to be relayed", auth.ErrCredentials, auth.Line(mechanism))
	}
	r.Login.Mechanism, r.Login.User, r.Login.Password, r.Login.Authzid, r.Login.Message = mechanism, "", "", "", ""
	return a.begin(r, mechanism), nil
}

func (a *Auth) begin(r auth.Request, mechanism string) *exchange {
	return &exchange{auth: a, r: r, mechanism: mechanism}
}

// exchange is one AUTH and its CONTs.
type exchange struct {
	auth      *Auth
	r         auth.Request
	mechanism string
	request   *request     // nil: not begun
	final     *auth.Answer // waits for the client to acknowledge the last data
	ended     bool
}

// Next implements auth.Exchange.
func (x *exchange) Next(ctx context.Context, message []byte) ([]byte, *auth.Answer, error) {
	switch {
	case x.ended:
		return nil, nil, fmt.Errorf("%w: the exchange has ended", auth.ErrTemporary)
	case x.auth.login == nil:
		return nil, nil, errNoLogin
	case x.final != nil:
		answer := x.final
		x.end(false)
		if len(message) != 0 {
			return nil, nil, fmt.Errorf("%w: the client answers the last message", auth.ErrCredentials)
		}
		return nil, answer, nil
	}
	ctx, cancel := context.WithTimeout(ctx, x.auth.config.Timeout)
	defer cancel()
	// A place is held for auth's work and not while a client thinks: those who never answer must not block the others.
	if err := x.auth.login.enter(ctx); err != nil {
		x.end(true)
		return nil, nil, err
	}
	re, err := x.step(ctx, message)
	x.auth.login.leave()
	if err != nil {
		x.end(true)
		if errors.Is(err, errTooLong) {
			return nil, nil, fmt.Errorf("%w: the client's message is too long", auth.ErrCredentials)
		}
		return nil, nil, fmt.Errorf("%w: Dovecot's auth: %w", auth.ErrTemporary, err)
	}
	return x.answer(re)
}

// step sends the client's message.
func (x *exchange) step(ctx context.Context, message []byte) (reply, error) {
	if x.request != nil {
		return x.request.ask(ctx, maxLine, "CONT", base64.StdEncoding.EncodeToString(message))
	}
	rq, err := x.auth.login.open(ctx)
	if err != nil {
		return reply{}, err
	}
	x.request = rq
	fields := append([]string{x.mechanism}, rq.conn.about(x.r)...)
	if x.r.TLS != nil {
		fields = append(fields, "secured=tls")
	}
	if x.r.TLS != nil && len(x.r.TLS.VerifiedChains) > 0 {
		fields = append(fields, "valid-client-cert")
		if name := x.r.Login.User; x.mechanism == "EXTERNAL" && name != "" {
			fields = append(fields, "cert_username="+name)
		}
	}
	if x.auth.config.NoPenalty {
		fields = append(fields, "no-penalty")
	}
	fields = append(fields, "final-resp-ok")
	if message != nil {
		// Behind everything else; an empty one is there too, and not none.
		fields = append(fields, "resp="+sasl.Encode(message))
	}
	return rq.ask(ctx, maxLine, "AUTH", fields...)
}

// answer is what a reply means for the exchange.
func (x *exchange) answer(re reply) ([]byte, *auth.Answer, error) {
	switch re.command {
	case "CONT":
		challenge, err := decode(strings.Join(re.fields[:min(len(re.fields), 1)], ""))
		if err != nil {
			x.end(true)
		}
		return challenge, nil, err
	case "FAIL":
		x.end(false)
		return nil, nil, failure(re, auth.ErrCredentials)
	case "OK":
		answer, err := x.accepted(re)
		x.end(errors.Is(err, errNoProxy)) // such a login would wait in auth for a process that never asks for it
		if err != nil {
			return nil, nil, err
		}
		data, ok := re.get("resp")
		if !ok {
			return nil, answer, nil
		}
		last, err := decode(data)
		if err != nil {
			return nil, nil, err
		}
		x.ended, x.final = false, answer
		return last, nil, nil
	}
	x.end(true)
	return nil, nil, fmt.Errorf("%w: Dovecot's auth answers a login with %s", auth.ErrTemporary, re.command)
}

// accepted is what an OK says of the user.
func (x *exchange) accepted(re reply) (*auth.Answer, error) {
	f, err := x.auth.fields(re)
	switch {
	case err != nil:
		return nil, err
	case f.User == "":
		return nil, fmt.Errorf("%w: Dovecot's auth accepts a login without a name", auth.ErrTemporary)
	case !f.Proxy && !f.NoLogin:
		return nil, errNoProxy
	}
	if x.r.Login.User == "" {
		x.r.Login.User = f.User // of a relayed exchange nobody knew it
	}
	answer, err := f.Answer(x.r, x.auth.config.Master, f.User)
	if err != nil {
		return nil, err
	}
	return &answer, nil
}

// decode reads base64 of auth; the empty message is not nil.
func decode(text string) ([]byte, error) {
	message, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: Dovecot's auth sends no base64", auth.ErrTemporary)
	}
	return message, nil
}

// Cancel implements auth.Exchange.
func (x *exchange) Cancel() { x.end(true) }

// end gives the number back, once.
func (x *exchange) end(cancel bool) {
	x.ended, x.final = true, nil
	if x.request != nil {
		x.request.end(cancel)
	}
}

// initial is the mechanism and the message for credentials that are complete.
func initial(r auth.Request) (mechanism string, message []byte, err error) {
	l := r.Login
	switch {
	case l.Mechanism == "EXTERNAL":
		// Auth believes our word that there was a certificate with this name (cert_username) in it, if it has
		// auth_ssl_username_from_cert.
		if !r.Certified() {
			return "", nil, fmt.Errorf("%w: EXTERNAL without a certificate", auth.ErrCredentials)
		}
		if l.Authzid != "" && l.Authzid != l.User {
			return "", nil, fmt.Errorf("%w: EXTERNAL for another user than the certificate names", auth.ErrCredentials)
		}
		return "EXTERNAL", []byte{}, nil
	case sasl.IsToken(l.Mechanism):
		return l.Mechanism, []byte(l.Message), nil
	}
	message, err = sasl.Plain{Authzid: l.Authzid, Authcid: l.User, Password: l.Password}.Encode()
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", auth.ErrCredentials, err)
	}
	return "PLAIN", message, nil
}

// abandon acknowledges the explanation of a refusal; not nil.
func abandon(mechanism string) []byte {
	if b := sasl.Abandon(mechanism); b != nil {
		return b
	}
	return []byte{}
}

// about are the parameters of all requests: service and addresses.
func (c *conn) about(r auth.Request) []string {
	service := "service="
	if c.minor >= minorKnown {
		service = "protocol="
	}
	fields := []string{service + r.Protocol}
	if r.Session != "" {
		fields = append(fields, "session="+r.Session)
	}
	fields = appendAddr(fields, "lip=", "lport=", r.Local)
	fields = appendAddr(fields, "rip=", "rport=", r.Client)
	if r.RealLocal != r.Local {
		fields = appendAddr(fields, "real_lip=", "real_lport=", r.RealLocal)
	}
	if r.RealClient != r.Client {
		fields = appendAddr(fields, "real_rip=", "real_rport=", r.RealClient)
	}
	if r.TLS != nil && r.TLS.ServerName != "" {
		fields = append(fields, "local_name="+r.TLS.ServerName)
	}
	return fields
}

func appendAddr(fields []string, ip, port string, a netip.AddrPort) []string {
	if !a.IsValid() {
		return fields
	}
	return append(fields, ip+a.Addr().Unmap().WithZone("").String(), port+strconv.Itoa(int(a.Port())))
}
