package auth

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"usher/steer/sasl"
	"usher/steer/upstream"
)

// Fields are what a passdb of Dovecot says of a user beside the password: its extra fields, in a passwd-file or in a reply
// of Dovecot's auth (auth-client.md, section 2).
type Fields struct {
	User     string // user=: the user's own name
	DestUser string // destuser=: the name at the backend, which then is what the director routes
	Pass     string // pass=: the password for the backend
	Master   string // master=: who logs in at the backend, with Pass
	Tag      string // director_tag=
	Proxy    bool   // proxy, proxy_maybe or director_proxy_maybe
	NoLogin  bool   // nologin
	Reason   string // reason=: why not, for the client

	host, hostIP string // host=, hostip=
	port         uint16
	tls          BackendTLS
	timeout      time.Duration
	notTrusted   bool
	alt, forward map[string]string
}

// ErrField is returned by Set for a field that has a meaning to Dovecot's proxy and none here.
var ErrField = errors.New("not built yet")

// fieldNames are for people who wrote a wrong one.
const fieldNames = "proxy, proxy_maybe, director_proxy_maybe, host, hostip, port, director_tag, user, destuser, pass, master, " +
	"nologin, reason, ssl, starttls, proxy_timeout, proxy_not_trusted, user_*, forward_*, userdb_*"

// known do not concern this proxy: it never pipelines, has one backend for a user, and keeps entries alive by itself.
var known = []string{
	"proxy_nopipelining", "proxy_host_immediate_failure_after", "proxy_refresh", "proxy_always", "proxy_redirect_reauth",
	"original_user", "auth_user", "anonymous", "lip", "lport", "resp", "nodelay", "event_", "userdb_",
}

// maxNamed bounds user_* and forward_*, each.
const maxNamed = 32

// Set takes one field; a flag has the value "" or "y" (auth-client.md, section 5). The errors name neither field nor
// value; ErrField is in the chain of those for fields without a meaning here.
func (f *Fields) Set(key, value string) (err error) {
	if !sasl.Allowed(key) || !sasl.Allowed(value) {
		return errors.New("control character")
	}
	switch key {
	case "user":
		f.User, err = value, wanted(value)
	case "destuser":
		f.DestUser, err = value, wanted(value)
	case "pass":
		f.Pass, err = value, wanted(value)
	case "master":
		f.Master, err = value, wanted(value)
	case "director_tag":
		f.Tag = value
	case "proxy", "proxy_maybe", "director_proxy_maybe":
		// "Maybe" is for a machine that has mailboxes itself. The proxy has none, so there is only the one way.
		f.Proxy, err = true, flag(value)
	case "nologin":
		f.NoLogin, err = true, flag(value)
	case "reason":
		f.Reason = value
	case "host":
		f.host, err = value, wanted(value)
	case "hostip":
		f.hostIP, err = value, wanted(value)
	case "port":
		f.port, err = parsePort(value)
	case "ssl":
		err = f.tls.set("implicit", value)
	case "starttls":
		err = f.tls.set("starttls", value)
	case "proxy_timeout":
		f.timeout, err = parseTime(value)
	case "proxy_not_trusted":
		f.notTrusted, err = true, flag(value)
	default:
		return f.setNamed(key, value)
	}
	return err
}

// setNamed takes the fields that are known by the beginning of their name.
func (f *Fields) setNamed(key, value string) error {
	if name, ok := strings.CutPrefix(key, "user_"); ok {
		return put(&f.alt, name, value)
	}
	if name, ok := strings.CutPrefix(key, "forward_"); ok {
		return put(&f.forward, name, value)
	}
	if slices.ContainsFunc(known, func(k string) bool { return k == key || strings.HasSuffix(k, "_") && strings.HasPrefix(key, k) }) {
		return nil
	}
	return fmt.Errorf("%w; there are %s", ErrField, fieldNames)
}

func put(m *map[string]string, name, value string) error {
	if name == "" {
		return errors.New("no name")
	}
	if *m == nil {
		*m = make(map[string]string)
	}
	if len(*m) >= maxNamed {
		return fmt.Errorf("more than %d", maxNamed)
	}
	(*m)[name] = value
	return nil
}

func (b *BackendTLS) set(mode, value string) error {
	switch value {
	case "", "y", "yes":
	case "any-cert":
		b.AnyCert = true
	default:
		return errors.New("only yes and any-cert are values; leave the field out for no")
	}
	if b.Mode != "" && b.Mode != mode {
		return errors.New("both ssl and starttls")
	}
	b.Mode = mode
	return nil
}

// address is where host and hostip point; not valid when there are none.
func (f *Fields) address() (netip.Addr, error) {
	switch {
	case f.hostIP != "":
		addr, err := Address(f.hostIP)
		if err != nil {
			err = fmt.Errorf("hostip=%s: %w", f.hostIP, err)
		}
		return addr, err
	case f.host != "":
		addr, err := Address(f.host)
		if err != nil {
			err = fmt.Errorf("host=%s: %w; a name needs hostip beside it", f.host, err)
		}
		return addr, err
	}
	return netip.Addr{}, nil
}

// check says what is wrong with the fields as a whole.
func (f *Fields) check() error {
	if f.hostIP != "" && f.host == "" {
		return errors.New("hostip without host")
	}
	_, err := f.address()
	return err
}

// Answer is what the fields mean for a user whom the driver has verified under the name login. Errors: ErrDisabled for
// nologin, ErrTemporary for fields that make no sense and for those of Master.Credentials.
func (f *Fields) Answer(r Request, m Master, login string) (Answer, error) {
	a, err := f.Found(r, login)
	if err != nil {
		return Answer{}, err
	}
	by := Master{User: f.Master, Password: cmp.Or(f.Pass, r.Login.Password)}
	if f.Master == m.User {
		by.Password = m.Password
	}
	if a.Upstream, err = m.credentials(r, a.User, f.Pass, by); err != nil {
		return Answer{}, err
	}
	return a, nil
}

// Found is what the fields mean for a user who does not log in: Answer without a password for the backend.
func (f *Fields) Found(r Request, login string) (Answer, error) {
	if f.NoLogin {
		return Answer{}, &Refused{Err: fmt.Errorf("%w: nologin", ErrDisabled), Text: Line(f.Reason)}
	}
	if err := f.check(); err != nil {
		return Answer{}, fmt.Errorf("%w: field %w", ErrTemporary, err)
	}
	host, _ := f.address()
	if err := NotSelf(r, host, f.port); err != nil {
		return Answer{}, err
	}
	user := cmp.Or(f.DestUser, f.User, login)
	a := Answer{
		User: user, Verified: true, Tag: f.Tag, Host: host, Port: f.port,
		Upstream: upstream.Credentials{User: user, Tag: r.Login.Tag, Hello: r.Login.Hello},
		TLS:      f.tls, Timeout: f.timeout, NotTrusted: f.notTrusted, Alt: f.alt, Forward: f.forward,
	}
	if f.hostIP != "" && f.hostIP != f.host {
		a.HostName = f.host
	}
	return a, nil
}

// NotSelf refuses a host that is the proxy itself, with ErrTemporary: Dovecot's login processes look at the same.
func NotSelf(r Request, host netip.Addr, port uint16) error {
	if host.IsValid() && host == r.Local.Addr().Unmap() && (port == 0 || port == r.Local.Port()) {
		return fmt.Errorf("%w: the user's host %v is this proxy: a loop", ErrTemporary, host)
	}
	return nil
}

// errAddress is what is wrong with an address; it names none, because the callers do.
var errAddress = errors.New("not the address of a host")

// Address reads the address of a backend, in brackets or not. An IPv4 address in IPv6 form is the IPv4 address.
func Address(text string) (netip.Addr, error) {
	inner := text
	if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
		inner = text[1 : len(text)-1]
	}
	addr, err := netip.ParseAddr(inner)
	if err != nil || inner != text && !addr.Is6() {
		return netip.Addr{}, errAddress
	}
	addr = addr.Unmap()
	if addr.IsUnspecified() || addr.IsMulticast() || addr.Zone() != "" || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Addr{}, errAddress
	}
	return addr, nil
}

func parsePort(value string) (uint16, error) {
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return 0, err
	}
	if port == 0 {
		return 0, errors.New("0 is no port")
	}
	return uint16(port), nil
}

// timeUnits are those of Dovecot's times, in all their spellings; a bare number is seconds.
var timeUnits = map[string]time.Duration{
	"": time.Second, "msec": time.Millisecond, "msecs": time.Millisecond, "ms": time.Millisecond,
	"s": time.Second, "sec": time.Second, "secs": time.Second, "m": time.Minute, "min": time.Minute, "mins": time.Minute,
}

// parseTime reads a time from 1 ms to 1 hour.
func parseTime(value string) (time.Duration, error) {
	digits := strings.TrimRight(value, "abcdefghijklmnopqrstuvwxyz ")
	unit, ok := timeUnits[strings.TrimSpace(value[len(digits):])]
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || !ok {
		return 0, errors.New("no time, as 30 or 500ms")
	}
	if d := time.Duration(n) * unit; d > 0 && d <= time.Hour {
		return d, nil
	}
	return 0, errors.New("not from 1ms to 1h")
}

func wanted(value string) error {
	if value == "" {
		return errors.New("no value")
	}
	return nil
}

// flag takes what a field that is just there may be set to. Dovecot does not look at the value, so that a "no" is a trap.
func flag(value string) error {
	switch value {
	case "", "y", "yes":
		return nil
	}
	return errors.New("only y is a value; leave the field out for no")
}
