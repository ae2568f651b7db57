package sasl

import (
	"errors"
	"fmt"
	"strings"
)

// ErrAborted is an exchange that the client ended with "*".
var ErrAborted = errors.New("exchange aborted by the client")

// Result is what a client has said in an exchange. Nothing of it is verified, but for EXTERNAL.
type Result struct {
	Authzid  string // whom to act as; empty: User
	User     string // whose password or token it is
	Password string // or token; empty with EXTERNAL
	Message  string // of a token's mechanism, for a backend that takes it as it is
}

// Mechanisms are those that Begin knows, in upper case. All but EXTERNAL show a secret to whoever reads along.
var Mechanisms = []string{"PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER", "EXTERNAL"}

// IsToken reports whether a mechanism, in upper case, carries a token in place of a password.
func IsToken(mechanism string) bool { return mechanism == "XOAUTH2" || mechanism == "OAUTHBEARER" }

// Exchange is the server's side of an exchange.
type Exchange struct {
	Result
	mechanism string
	certified string
	asked     int
}

// Begin starts an exchange of one of Mechanisms. Certified is whom the client's certificate names, for EXTERNAL.
func Begin(mechanism, certified string) *Exchange {
	return &Exchange{mechanism: mechanism, certified: certified}
}

// Next takes the client's message; at first, nil means that there was no initial response. While it returns a challenge,
// which may be empty but is not nil, the client is asked for one more. The error is ErrMessage.
func (x *Exchange) Next(message []byte) (challenge []byte, err error) {
	if x.mechanism == "LOGIN" {
		return x.login(message)
	}
	if message == nil {
		return []byte{}, nil // the others all begin with the client
	}
	switch x.mechanism {
	case "PLAIN":
		var p Plain
		p, err = DecodePlain(message)
		x.Result = Result{Authzid: p.Authzid, User: p.Authcid, Password: p.Password}
	case "XOAUTH2":
		err = x.xoauth2(string(message))
	case "OAUTHBEARER":
		err = x.oauthBearer(string(message))
	case "EXTERNAL":
		// RFC 4422 appendix A: the message is the authzid, and mostly empty.
		x.User = x.certified
		if len(message) > 0 && string(message) != x.certified {
			x.Authzid = string(message)
		}
	default:
		err = fmt.Errorf("%s: %w: unknown mechanism", x.mechanism, ErrMessage)
	}
	return nil, err
}

// login is the mechanism LOGIN (draft-murchison-sasl-login): name and password, each asked for. An initial response is
// the name.
func (x *Exchange) login(message []byte) ([]byte, error) {
	if message == nil && x.asked == 0 {
		x.asked = 1
		return []byte("Username:"), nil
	}
	if x.asked < 2 {
		x.asked, x.User = 2, string(message)
		return []byte("Password:"), nil
	}
	x.Password = string(message)
	return nil, nil
}

// xoauth2 reads "user=" name ^A "auth=Bearer " token ^A ^A (Google's, and everybody's since).
func (x *Exchange) xoauth2(message string) error {
	body, ended := strings.CutSuffix(message, "\x01\x01")
	if !ended {
		return fmt.Errorf("XOAUTH2: %w: no end", ErrMessage)
	}
	for field := range strings.SplitSeq(body, "\x01") {
		key, value, _ := strings.Cut(field, "=")
		var err error
		switch key {
		case "user":
			err = once(&x.User, value)
		case "auth":
			err = x.bearer(value)
		}
		if err != nil {
			return fmt.Errorf("XOAUTH2: %w", err)
		}
	}
	return x.token("XOAUTH2", message)
}

// oauthBearer reads RFC 7628 section 3.1: a GS2 header "n,a=name," and key=value pairs, each with ^A before it, and two
// behind the last one.
func (x *Exchange) oauthBearer(message string) error {
	header, body, found := strings.Cut(message, "\x01")
	binding, name, _ := strings.Cut(header, ",")
	name, _, comma := strings.Cut(name, ",")
	if !found || !comma || !strings.HasSuffix(message, "\x01\x01") {
		return fmt.Errorf("OAUTHBEARER: %w", ErrMessage)
	}
	if binding != "n" && binding != "y" {
		return fmt.Errorf("OAUTHBEARER: %w: channel binding", ErrMessage)
	}
	if name != "" {
		saslname, ok := strings.CutPrefix(name, "a=")
		user, err := unescape(saslname)
		if !ok || err != nil {
			return fmt.Errorf("OAUTHBEARER: %w: name", ErrMessage)
		}
		x.User = user
	}
	for pair := range strings.SplitSeq(strings.TrimSuffix(body, "\x01\x01"), "\x01") {
		if key, value, _ := strings.Cut(pair, "="); key == "auth" {
			if err := x.bearer(value); err != nil {
				return fmt.Errorf("OAUTHBEARER: %w", err)
			}
		}
	}
	return x.token("OAUTHBEARER", message)
}

// unescape reads a saslname (RFC 5801 section 4).
func unescape(s string) (string, error) {
	plain := strings.NewReplacer("=2C", ",", "=3D", "=").Replace(s)
	if strings.Count(s, "=") != strings.Count(s, "=2C")+strings.Count(s, "=3D") {
		return "", ErrMessage
	}
	return plain, nil
}

func (x *Exchange) bearer(value string) error {
	scheme, token, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return fmt.Errorf("%w: no bearer token", ErrMessage)
	}
	return once(&x.Password, strings.TrimLeft(token, " "))
}

func once(field *string, value string) error {
	if *field != "" {
		return fmt.Errorf("%w: a field twice", ErrMessage)
	}
	*field = value
	return nil
}

// token checks that both halves are there: without a name nobody knows where the user belongs.
func (x *Exchange) token(mechanism, message string) error {
	if x.User == "" || x.Password == "" {
		return fmt.Errorf("%s: %w: user or token missing", mechanism, ErrMessage)
	}
	x.Message = message
	return nil
}

// Abandon is how a client answers the error that a token's mechanism sends as a challenge, to get its final refusal
// (RFC 7628 section 3.2.3).
func Abandon(mechanism string) []byte {
	if mechanism == "OAUTHBEARER" {
		return []byte{1}
	}
	return nil
}
