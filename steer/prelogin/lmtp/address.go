package lmtp

import (
	"strings"

	"usher/steer/sasl"
)

// path takes "<address>" and the parameters behind it (RFC 5321 section 4.1.2). Text is the path as it was written.
func path(argument string) (text, address string, parameters []string, ok bool) {
	argument = strings.TrimLeft(argument, " ")
	if !strings.HasPrefix(argument, "<") || !sasl.Allowed(argument) {
		return "", "", nil, false
	}
	end := -1
	for i, quoted := 1, false; i < len(argument) && end < 0; i++ {
		switch c := argument[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '>':
			end = i
		case c == '<' || c == ' ':
			return "", "", nil, false
		}
	}
	if end < 0 {
		return "", "", nil, false
	}
	text, address = argument[:end+1], argument[1:end]
	rest := argument[end+1:]
	if rest != "" && rest[0] != ' ' {
		return "", "", nil, false
	}
	if strings.HasPrefix(address, "@") { // a source route (RFC 5321 appendix C), which nobody needs
		return "", "", nil, false
	}
	return text, address, strings.Fields(rest), true
}

// user is whose mail an address means: without quotes, and without the detail behind the delimiter.
func user(address, delimiter string) string {
	local, domain := address, ""
	if at := strings.LastIndexByte(address, '@'); at >= 0 {
		local, domain = address[:at], address[at:]
	}
	if len(local) >= 2 && local[0] == '"' && local[len(local)-1] == '"' {
		var plain strings.Builder
		inner := local[1 : len(local)-1]
		for i := 0; i < len(inner); i++ {
			if inner[i] == '\\' && i+1 < len(inner) {
				i++
			}
			plain.WriteByte(inner[i])
		}
		local = plain.String()
	}
	// An address that begins with the delimiter is a name, and not the detail of nobody.
	if i := strings.Index(local, delimiter); delimiter != "" && i > 0 {
		local = local[:i]
	}
	return local + domain
}
