package imap

import (
	"bytes"
	"strings"

	"usher/steer/prelogin"
)

// reply is one line of the backend, taken apart (RFC 3501 section 7).
type reply struct {
	tag    string // "*", "+" or a tag
	status string // in upper case: OK, NO, BAD, BYE, PREAUTH, CAPABILITY ...; empty with "+"
	code   string // the response code's name in upper case, as in "[UNAVAILABLE] text"
	args   string // what follows the name of the status or of the code
}

// parse takes a line apart; ok is false when it is nothing that IMAP servers say.
func parse(line []byte) (r reply, ok bool) {
	if len(line) > 0 && line[0] == '+' {
		return reply{tag: "+"}, true // some leave out the space behind it
	}
	tag, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || len(tag) == 0 || len(rest) == 0 {
		return reply{}, false
	}
	status, text, _ := strings.Cut(string(rest), " ")
	r = reply{tag: string(tag), status: strings.ToUpper(status), args: text}
	switch r.status {
	case "OK", "NO", "BAD", "BYE", "PREAUTH":
		r.args = ""
		if inner, found := strings.CutPrefix(text, "["); found {
			if inner, _, found = strings.Cut(inner, "]"); found {
				name, args, _ := strings.Cut(inner, " ")
				r.code, r.args = strings.ToUpper(name), args
			}
		}
	}
	return r, true
}

// capabilities is the list that the line carries, nil when it has none.
func (r reply) capabilities() []string {
	if r.status == "CAPABILITY" || r.code == "CAPABILITY" {
		return strings.Fields(strings.ToUpper(r.args))
	}
	return nil
}

// kind tells by the response code what a NO means (RFC 5530 section 3). Without one it was the password, as ever.
func (r reply) kind() prelogin.Kind {
	switch r.code {
	case "UNAVAILABLE", "LIMIT":
		return prelogin.Unavailable
	case "INUSE":
		return prelogin.InUse
	case "SERVERBUG", "CORRUPTION":
		return prelogin.TempFail
	case "AUTHORIZATIONFAILED", "EXPIRED", "PRIVACYREQUIRED", "CONTACTADMIN", "NOPERM":
		return prelogin.PermFail
	default:
		return prelogin.AuthFailed
	}
}
