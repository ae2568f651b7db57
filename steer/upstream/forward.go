package upstream

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Forward is what a backend is told about the client before the login, if it says that it wants to know. It believes it
// when the proxy is among its login_trusted_networks (Dovecot), and ignores it otherwise.
type Forward struct {
	Client  netip.AddrPort    // who it is
	Local   netip.AddrPort    // the address that it connected to
	Session string            // the session's name in the logs of all who take part; may be empty
	Fields  map[string]string // forward_* of the passdb
}

// ID is the parameter list of the IMAP command (RFC 2971) with the names that Dovecot gave them; a list of quoted strings.
func (f *Forward) ID() string {
	pairs := []string{
		"x-originating-ip", f.Client.Addr().Unmap().String(), "x-originating-port", fmt.Sprint(f.Client.Port()),
		"x-connected-ip", f.Local.Addr().Unmap().String(), "x-connected-port", fmt.Sprint(f.Local.Port()),
	}
	if f.Session != "" {
		pairs = append(pairs, "x-session-id", f.Session)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Fields)) {
		pairs = append(pairs, "x-forward-"+name, f.Fields[name])
	}
	for i, s := range pairs {
		pairs[i] = `"` + quoter.Replace(s) + `"`
	}
	return "(" + strings.Join(pairs, " ") + ")"
}

var quoter = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\r", "?", "\n", "?", "\x00", "?")

// XCLIENT is the arguments of the command in POP3 and ManageSieve (Dovecot's); empty when none of the attributes, in upper
// case, is wanted.
func (f *Forward) XCLIENT(wanted func(attribute string) bool) string {
	return f.attributes(f.Client.Addr().Unmap().String(), wanted)
}

// MailXCLIENT is that of submission and LMTP (Postfix's), where IPv6 addresses are marked.
func (f *Forward) MailXCLIENT(wanted func(attribute string) bool) string {
	client := f.Client.Addr().Unmap()
	if client.Is6() {
		return f.attributes("IPV6:"+client.String(), wanted)
	}
	return f.attributes(client.String(), wanted)
}

func (f *Forward) attributes(addr string, wanted func(attribute string) bool) string {
	var pairs []string
	for _, p := range [][2]string{{"ADDR", addr}, {"PORT", fmt.Sprint(f.Client.Port())}, {"SESSION", f.Session}} {
		if p[1] != "" && wanted(p[0]) {
			pairs = append(pairs, p[0]+"="+xtext(p[1]))
		}
	}
	return strings.Join(pairs, " ")
}

// xtext is the encoding of RFC 3461 section 4.
func xtext(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '+' || c == '=' {
			fmt.Fprintf(&b, "+%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
