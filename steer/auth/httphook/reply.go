package httphook

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"usher/steer/auth"
	"usher/steer/sasl"
	"usher/steer/upstream"
)

// reply is an answer that allows the login, or asks for patience.
type reply struct {
	again bool // ask once more, after wait
	wait  time.Duration

	user, pass string // empty: as the client gave them
	host       netip.Addr
	port       uint16
	tag        string
}

// fields are the headers that mean something.
var fields = []string{
	"Auth-Status", "Auth-Server", "Auth-Port", "Auth-User", "Auth-Pass", "Auth-Wait", "Auth-Error-Code", "Auth-Director-Tag",
}

// code is what Auth-Error-Code may be: a reply code of SMTP, perhaps with an enhanced one (RFC 3463).
var code = regexp.MustCompile(`^[45][0-9]{2}( [245]\.[0-9]{1,3}\.[0-9]{1,3})?$`)

// parse reads an answer's headers. A refusal is a *auth.Refused; all other errors are the hook's mistakes.
func parse(header http.Header) (reply, error) {
	value := make(map[string]string, len(fields))
	for _, name := range fields {
		all := header.Values(name)
		switch {
		case len(all) > 1:
			return reply{}, fmt.Errorf("%s twice", name)
		case len(all) == 1 && !sasl.Allowed(all[0]):
			return reply{}, fmt.Errorf("control character in %s", name)
		case len(all) == 1:
			value[name] = strings.Trim(all[0], " ")
		}
	}
	var re reply
	seconds, err := strconv.ParseUint(value["Auth-Wait"], 10, 31)
	if err != nil && value["Auth-Wait"] != "" {
		return reply{}, errors.New("Auth-Wait is no number of seconds")
	}
	re.wait = min(time.Duration(seconds)*time.Second, maxWait)

	switch status := value["Auth-Status"]; status {
	case "OK":
	case "WAIT":
		re.again = true
		return re, nil
	case "":
		return reply{}, errors.New("no Auth-Status")
	default:
		return reply{}, refusal(status, value["Auth-Error-Code"], re.wait)
	}
	re.user, re.pass, re.tag = value["Auth-User"], value["Auth-Pass"], value["Auth-Director-Tag"]
	if server := value["Auth-Server"]; server != "" {
		if re.host, err = auth.Address(server); err != nil {
			return reply{}, fmt.Errorf("Auth-Server: %w", err)
		}
	}
	if port := value["Auth-Port"]; port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return reply{}, errors.New("Auth-Port is no port")
		}
		re.port = uint16(n)
	}
	return re, nil
}

// answer is what a reply means, without a password for the backend.
func (re reply) answer(r auth.Request) (auth.Answer, error) {
	if err := auth.NotSelf(r, re.host, re.port); err != nil {
		return auth.Answer{}, err
	}
	user := cmp.Or(re.user, r.Login.User)
	return auth.Answer{
		User: user, Verified: true, Tag: re.tag, Host: re.host, Port: re.port,
		Upstream: upstream.Credentials{User: user, Tag: r.Login.Tag, Hello: r.Login.Hello},
	}, nil
}

// refusal finds out what kind it is. The text is for people; only the code, if there is one, tells a hook that is ill from
// a password that is wrong. Without Auth-Wait nginx ends the connection, so hooks limit the attempts by leaving it out.
func refusal(status, smtp string, wait time.Duration) *auth.Refused {
	if !code.MatchString(smtp) {
		smtp = ""
	}
	kind := auth.ErrCredentials
	switch {
	case strings.HasPrefix(smtp, "4"):
		kind = auth.ErrTemporary
	case smtp != "" && !strings.HasPrefix(smtp, "535"):
		kind = auth.ErrDisabled
	}
	text := auth.Line(status)
	return &auth.Refused{
		Err: fmt.Errorf("%w: the auth hook says %q", kind, text), Text: text, Code: smtp, Wait: wait, Close: wait == 0,
	}
}
