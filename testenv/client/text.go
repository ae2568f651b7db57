package client

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// textLogin are the steps of a login by submission or ManageSieve.
func textLogin(cfg Config, initial string) []string {
	encoded := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	literal := fmt.Sprintf("{%d+}\r\n%s", len(initial), initial)
	if cfg.Protocol == Sieve {
		switch cfg.Method {
		case PlainInitial:
			return []string{`AUTHENTICATE "PLAIN" "` + initial + `"`}
		case LoginLiteral:
			return []string{`AUTHENTICATE "PLAIN" ` + literal}
		case Plain:
			return []string{`AUTHENTICATE "PLAIN"`, literal}
		}
		return []string{`AUTHENTICATE "PLAIN"`, `"` + initial + `"`}
	}
	switch cfg.Method {
	case Plain:
		return []string{"AUTH PLAIN", initial}
	case PlainInitial:
		return []string{"AUTH PLAIN " + initial}
	case LoginLiteral:
		return []string{"AUTH LOGIN " + encoded(cfg.User), encoded(cfg.Password)}
	}
	return []string{"AUTH LOGIN", encoded(cfg.User), encoded(cfg.Password)}
}

// textStatus takes a line of an answer: last is false for those before the last one.
func textStatus(l string, p Protocol) (text string, last bool, err error) {
	if p == Sieve {
		switch word, text, _ := strings.Cut(l, " "); {
		case strings.HasPrefix(l, `"`):
			return "", false, nil
		case word == "OK":
			return text, true, nil
		case word == "NO":
			return "", true, fail(Refused, "%s", l)
		case word == "BYE":
			return "", true, fail(Bye, "%s", l)
		}
		return "", true, fail(Nonsense, "waiting for OK, got %q", l)
	}
	if len(l) < 4 || l[3] != ' ' && l[3] != '-' {
		return "", true, fail(Nonsense, "waiting for a reply, got %q", l)
	}
	switch {
	case strings.HasPrefix(l, "421"):
		return "", true, fail(Bye, "%s", l)
	case l[0] == '2':
		return l[4:], l[3] == ' ', nil
	}
	return "", true, fail(Refused, "%s", l)
}
