package dovecot

import (
	"bytes"
	"net/netip"
	"strconv"

	"usher/director"
)

// answer is what a director must know of a line with which auth says who a user is: "OK <id> <fields>" on a
// login socket, "PASS <id> <fields>" on a user socket (auth-client.md section 3, auth-master.md).
type answer struct {
	id       string
	login    string // user=: the name that the login process has for the session
	user     string // the name that is routed: destuser=, or user=
	tag      string // director_tag=
	proxy    bool   // the session goes to a backend
	maybe    bool   // director_proxy_maybe: unless this machine is the backend
	hasHost  bool   // the passdb has named the backend: the director is bypassed
	lip      netip.Addr
	lport    string
	destport string // port=
}

// parseAnswer reads a line without its LF; ok is false for one of another kind, which is passed on as it is.
func parseAnswer(line []byte, kind string) (a answer, ok bool) {
	command, rest, ok := bytes.Cut(line, []byte("\t"))
	if !ok || string(command) != kind {
		return a, false
	}
	id, rest, _ := bytes.Cut(rest, []byte("\t"))
	a.id = string(id)
	if a.id == "" {
		return a, false
	}
	destuser := ""
	for len(rest) > 0 {
		var field []byte
		field, rest, _ = bytes.Cut(rest, []byte("\t"))
		key, value, _ := bytes.Cut(field, []byte("="))
		switch string(key) {
		case "user":
			a.login = unescape(string(value))
		case "destuser":
			destuser = unescape(string(value))
		case "director_tag":
			a.tag = unescape(string(value))
		case "proxy":
			a.proxy = true
		case "director_proxy_maybe":
			a.maybe = true
		case "host":
			a.hasHost = true
		case "lip":
			a.lip, _ = netip.ParseAddr(string(value))
		case "lport":
			a.lport = string(value)
		case "port":
			a.destport = string(value)
		}
	}
	a.user = a.login
	if destuser != "" {
		a.user = destuser
	}
	return a, true
}

// routed reports whether the director has to say where the user goes.
func (a answer) routed() bool { return (a.proxy || a.maybe) && !a.hasHost && a.user != "" }

// local reports whether this machine is the backend, and the passdb wants such users to stay here.
func (a answer) local(host netip.Addr) bool {
	return a.maybe && a.lip.IsValid() && a.lip.Unmap() == host &&
		(a.lport == "" || a.destport == "" || a.lport == a.destport)
}

// hashField is the field that login processes of Dovecot 2.4 are given to be kicked by: 2.4 has no kick by hash, but
// one by the value of any field that begins so (proxy-notify-ipc.md section 3).
const hashField = "user_director_hash"

// appendHost appends to a line, with its LF, where the user goes: what Dovecot's director appends, in its order.
// refresh is in seconds.
func appendHost(line []byte, host director.Host, refresh int) []byte {
	line = append(bytes.TrimSuffix(line, []byte("\n")), "\tproxy_refresh="...)
	line = strconv.AppendInt(line, int64(refresh), 10)
	if host.Name == "" {
		line = append(line, "\thost="...)
	} else {
		line = append(line, "\thost="...)
		line = append(line, escape(host.Name)...)
		line = append(line, "\thostip="...)
	}
	return append(host.Addr.AppendTo(line), '\n')
}

// appendHash appends the field for kicks in Dovecot 2.4 to a line with its LF.
func appendHash(line []byte, key director.Key) []byte {
	line = append(bytes.TrimSuffix(line, []byte("\n")), "\t"+hashField+"="...)
	return append(strconv.AppendUint(line, uint64(key.Hash), 10), '\n')
}

// temporary is the answer for a user whom the director has no host for.
func temporary(id string) []byte { return []byte("FAIL\t" + id + "\tcode=temp_fail\n") }

// canceled returns the request that a line of a login process takes back.
func canceled(line []byte) (id string, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte("CANCEL\t"))
	if !ok {
		return "", false
	}
	rest, _, _ = bytes.Cut(bytes.TrimSuffix(rest, []byte("\n")), []byte("\t"))
	return string(rest), true
}

// minorVersion returns the minor version that a line of a handshake says, and false for other lines.
func minorVersion(line []byte) (minor int, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte("VERSION\t1\t"))
	if !ok {
		return 0, false
	}
	rest, _, _ = bytes.Cut(bytes.TrimSuffix(rest, []byte("\n")), []byte("\t"))
	minor, err := strconv.Atoi(string(rest))
	return minor, err == nil
}
