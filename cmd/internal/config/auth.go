package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"usher/steer/sasl"
)

// Auth is [auth]: who verifies the password, and how the proxy logs in at the backend.
type Auth struct {
	Driver             string     `toml:"driver" oneof:"static passwd-file dovecot http"`
	NoPassword         bool       `toml:"nopassword"`   // the backend verifies; default: true for static, false for the others
	Host               netip.Addr `toml:"host"`         // static: one fixed host for everybody; the director is not asked
	File               string     `toml:"file"`         // passwd-file
	Socket             string     `toml:"socket"`       // dovecot: auth-userdb, for users without a password (LMTP)
	LoginSocket        string     `toml:"login_socket"` // dovecot: for logins; default: auth-login beside Socket
	URL                string     `toml:"url"`          // http
	MasterUser         string     `toml:"master_user"`
	MasterPasswordFile string     `toml:"master_password_file"`
	UserSeparator      string     `toml:"user_separator"` // one character, or empty: names are not cut
	TrustedNetworks    []Network  `toml:"trusted_networks"`

	CA             string   `toml:"ca"`               // http: signs the server's certificate; empty: the system's
	HeaderFile     string   `toml:"header_file"`      // http: lines "Name: value", added to each request
	PassClientCert bool     `toml:"pass_client_cert"` // http: the certificate of the client, whole
	Timeout        Duration `toml:"timeout"`          // http, dovecot: for one answer; 0: the driver's own

	Mechanisms   []string     `toml:"mechanisms"`    // of SASL, beside those of driver dovecot; empty: PLAIN, and LOGIN for submission
	FailureDelay Duration     `toml:"failure_delay"` // from an attempt with a wrong password to its refusal; 0: no delays and no penalties
	UnknownUsers UnknownUsers `toml:"unknown_users"`
}

// UnknownUsers is [auth.unknown_users]: how many logins with names that have no entry may fail, where the backend verifies.
type UnknownUsers struct {
	PerAddress      int `toml:"per_address"`       // each second
	PerAddressBurst int `toml:"per_address_burst"` // at once
	Total           int `toml:"total"`
	TotalBurst      int `toml:"total_burst"`
}

func defaultAuth() Auth {
	return Auth{
		Driver: "static", NoPassword: true, UserSeparator: "*", FailureDelay: Duration(2 * time.Second),
		UnknownUsers: UnknownUsers{PerAddress: 2, PerAddressBurst: 200, Total: 200, TotalBurst: 5000},
	}
}

// fillIn sets the defaults that depend on other keys.
func (a *Auth) fillIn(isSet func(key string) bool) {
	if a.Driver != "static" && !isSet("auth.nopassword") {
		a.NoPassword = false
	}
	if a.Driver == "dovecot" && a.Socket != "" && !isSet("auth.login_socket") {
		a.LoginSocket = filepath.Join(filepath.Dir(a.Socket), "auth-login")
	}
}

func (c *Config) listens(wanted func(Listener) bool) bool {
	return slices.ContainsFunc(c.Listeners, wanted)
}

// finds reports whether a listener asks for users without a password; all others log users in.
func finds(l Listener) bool { return l.Protocol == "lmtp" || l.Protocol == "doveadm" }

func (k *checker) auth() {
	a := k.Auth
	k.ofDriver()
	for _, file := range []struct{ key, path string }{
		{"file", a.File}, {"socket", a.Socket}, {"login_socket", a.LoginSocket}, {"master_password_file", a.MasterPasswordFile},
		{"ca", a.CA}, {"header_file", a.HeaderFile},
	} {
		k.path("auth."+file.key, file.path)
	}
	if a.URL != "" {
		// A URL with a password in it is not repeated.
		u, err := url.Parse(a.URL)
		switch {
		case err == nil && u.User != nil:
			k.bad("auth.url", "must not have a password in it: write a header to header_file")
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			k.bad("auth.url", "%q is no address of a web server, write \"http://127.0.0.1:9000/auth\"", a.URL)
		}
	}
	if a.Driver == "static" {
		if !a.NoPassword && !a.Host.IsValid() && !k.isSet("auth.host") {
			k.bad("auth.nopassword", "driver = \"static\" verifies no password: write nopassword = true (the backend does) or name a fixed host")
		}
		if a.MasterUser != "" {
			k.bad("auth.master_user", "with a master user the proxy must verify the user itself, which driver = \"static\" does not: anybody could be anybody")
		}
	} else {
		k.needs(a.NoPassword, "auth.nopassword", "driver = %q verifies the password itself", a.Driver)
		k.needs(a.Host.IsValid(), "auth.host", "belongs to driver = \"static\", but driver is %q", a.Driver)
	}
	if a.Host.IsValid() {
		if err := checkHostAddr(a.Host); err != nil {
			k.bad("auth.host", "%v", err)
		}
	}
	k.needs(a.MasterUser != "" && a.MasterPasswordFile == "", "auth.master_password_file", "missing: master_user is set")
	k.needs(a.MasterUser == "" && a.MasterPasswordFile != "", "auth.master_user", "missing: master_password_file is set")
	if utf8.RuneCountInString(a.UserSeparator) > 1 || strings.ContainsFunc(a.UserSeparator, unicode.IsControl) {
		k.bad("auth.user_separator", "%q is no separator, write one character or nothing", a.UserSeparator)
	}
	k.mechanisms()
	if a.FailureDelay > Duration(15*time.Second) {
		k.bad("auth.failure_delay", "%v is too long, at most 15s", a.FailureDelay)
	}
	u := a.UnknownUsers
	for _, n := range []struct {
		key string
		n   int
	}{{"per_address", u.PerAddress}, {"per_address_burst", u.PerAddressBurst}, {"total", u.Total}, {"total_burst", u.TotalBurst}} {
		k.between("auth.unknown_users."+n.key, n.n, 1, 10000000)
	}
}

// ofDriver looks at the keys that belong to some drivers: they are wrong elsewhere, and some are needed.
func (k *checker) ofDriver() {
	a := k.Auth
	logsIn := k.listens(func(l Listener) bool { return !finds(l) })
	for _, own := range []struct {
		key     string
		drivers []string
		set     bool
		needed  bool
	}{
		{"file", []string{"passwd-file"}, a.File != "", true},
		{"socket", []string{"dovecot"}, a.Socket != "", k.listens(finds) || a.LoginSocket == ""},
		{"login_socket", []string{"dovecot"}, a.LoginSocket != "", logsIn && a.Socket != ""},
		{"url", []string{"http"}, a.URL != "", true},
		{"ca", []string{"http"}, a.CA != "", false},
		{"header_file", []string{"http"}, a.HeaderFile != "", false},
		{"pass_client_cert", []string{"http"}, a.PassClientCert, false},
		{"timeout", []string{"http", "dovecot"}, a.Timeout != 0, false},
	} {
		key := "auth." + own.key
		switch mine := slices.Contains(own.drivers, a.Driver); {
		case !mine && own.set:
			k.bad(key, "belongs to driver = %s, but driver is %q", alternatives(own.drivers), a.Driver)
		case mine && own.needed && !own.set:
			k.bad(key, "missing: driver = %q needs it", a.Driver)
		}
	}
}

func (k *checker) mechanisms() {
	// EXTERNAL is offered to whoever showed a certificate.
	known := slices.DeleteFunc(slices.Clone(sasl.Mechanisms), func(m string) bool { return m == "EXTERNAL" })
	for i, m := range k.Auth.Mechanisms {
		key := fmt.Sprintf("auth.mechanisms[%d]", i)
		switch {
		case m == "EXTERNAL":
			k.bad(key, "EXTERNAL is offered to those who show a certificate of tls.client_ca, without being listed")
		case !slices.Contains(known, m):
			k.bad(key, "%q is not known, want %s; others are those of driver = \"dovecot\", without being listed", m, alternatives(known))
		}
		k.needs(slices.Contains(k.Auth.Mechanisms[:i], m), key, "%s is listed twice", m)
	}
}
