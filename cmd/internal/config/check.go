package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"usher/director/placement"
)

// Limits of values. The ones without a source are there to catch a slip of the finger.
const (
	minUserExpire = Duration(10 * time.Second) // config.md section 1: "director_user_expire is too low"
	maxWeight     = 1000                       // admin.md: "vhost count too large"
	maxMoves      = 100000
	minOutput     = 64 << 10
	maxFlows      = 1 << 26
	maxSocketPath = 107 // sun_path of unix(7) without its final zero
)

// checker collects what is wrong about values that could be read, each one by itself and
// against the others.
type checker struct {
	*Config
	problems Problems
}

func (c *Config) check() Problems {
	k := &checker{Config: c}
	k.director()
	k.backends()
	k.listeners()
	k.tls()
	k.auth()
	k.steer()
	k.path("dovecot.base_dir", c.Dovecot.BaseDir)
	k.path("dovecot.ipc", c.Dovecot.IPC)
	k.admin()
	return k.problems
}

func (k *checker) bad(key, format string, args ...any) {
	k.problems = append(k.problems, k.problem(key, format, args...))
}

func (k *checker) director() {
	d := k.Director
	if d.UserExpire < minUserExpire {
		k.bad("director.user_expire", "%v is too low, at least %v", d.UserExpire, minUserExpire)
	}
	if _, err := placement.ParseFormat(d.UsernameHash); err != nil {
		k.bad("director.username_hash", "%v", err)
	}
	k.between("director.max_parallel_moves", d.MaxParallelMoves, 1, maxMoves)
	k.between("director.max_parallel_kicks", d.MaxParallelKicks, 1, maxMoves)
	k.atLeast("director.ping_idle_timeout", d.PingIdleTimeout, Duration(time.Second))
	k.atLeast("director.ping_max_timeout", d.PingMaxTimeout, Duration(time.Second))
	if d.OutputBufferSize < minOutput {
		k.bad("director.output_buffer_size", "%d bytes are too few, at least \"64K\"", d.OutputBufferSize)
	}
	if kind, what, _ := strings.Cut(d.FlushSocket, ":"); d.FlushSocket != "" {
		if what == "" || kind != "exec" && kind != "unix" && kind != "tcp" {
			k.bad("director.flush_socket", "%q is no flush socket, write \"exec:...\", \"unix:...\" or \"tcp:...\"", d.FlushSocket)
		}
	}
	if len(d.Servers) > 0 && !d.RingListen.IsValid() && !k.isSet("director.ring_listen") {
		k.bad("director.ring_listen", "missing: with servers, the address for the other directors is needed, such as \"10.1.0.2:9090\"")
	}
	k.words("director.name", d.Name)
}

func (k *checker) backends() {
	if len(k.Backends) == 0 && !k.Auth.Host.IsValid() && !k.isSet("backend") {
		k.bad("backend", "missing: at least one [[backend]] with hosts is needed")
	}
	addrs, names := map[netip.Addr]string{}, map[string]string{}
	for i, b := range k.Backends {
		key := fmt.Sprintf("backend[%d]", i)
		if len(b.Hosts) == 0 {
			k.bad(key+".hosts", "missing: want a list of addresses, ranges or names, such as [\"10.2.0.11-10.2.0.30\"]")
		}
		k.between(key+".weight", b.Weight, 0, maxWeight)
		k.words(key+".tag", b.Tag)
		for j, h := range b.Hosts {
			k.host(fmt.Sprintf("%s.hosts[%d]", key, j), h, addrs, names)
		}
		if b.Health != nil {
			k.health(key+".health", *b.Health)
		}
	}
}

// host reports the first host of h that was listed before: a host has one weight and one tag.
func (k *checker) host(key string, h HostSpec, addrs map[netip.Addr]string, names map[string]string) {
	if first, ok := names[h.Name]; ok && h.Name != "" {
		k.bad(key, "%s is listed already, by %s", h.Name, first)
	} else {
		names[h.Name] = key
	}
	reported := false
	for a := range h.Addrs() {
		if first, ok := addrs[a]; !ok {
			addrs[a] = key
		} else if !reported {
			k.bad(key, "%s is listed already, by %s", a, first)
			reported = true
		}
	}
}

func (k *checker) health(key string, h Health) {
	k.atLeast(key+".interval", h.Interval, Duration(100*time.Millisecond))
	k.atLeast(key+".timeout", h.Timeout, Duration(10*time.Millisecond))
	k.between(key+".rise", h.Rise, 1, 1000)
	k.between(key+".fall", h.Fall, 1, 1000)
	login := h.Check == "login"
	k.needs(login && h.User == "", key+".user", "missing: check = \"login\" logs in with it")
	k.needs(login && h.PasswordFile == "", key+".password_file", "missing: check = \"login\" logs in with it")
	k.needs(!login && h.User != "", key+".user", "only check = \"login\" has a use for it")
	k.needs(!login && h.PasswordFile != "", key+".password_file", "only check = \"login\" has a use for it")
	k.path(key+".password_file", h.PasswordFile)
}

func (k *checker) listeners() {
	if len(k.Listeners) == 0 && k.Dovecot.BaseDir == "" && !k.isSet("listener") {
		k.bad("listener", "missing: at least one [[listener]] with protocol and address is needed")
	}
	for i, l := range k.Listeners {
		key := fmt.Sprintf("listener[%d]", i)
		k.needs(!k.isSet(key+".protocol"), key+".protocol", "missing: write \"imap\" or \"pop3\"")
		k.needs(!k.isSet(key+".address"), key+".address", "missing: write \"[::]:143\", for example")
		for j, other := range k.Listeners[:i] {
			a, b := l.Address, other.Address
			known := a.IsValid() && b.IsValid() || a.Systemd != "" && b.Systemd != ""
			if known && (a.covers(b) || b.covers(a)) {
				k.bad(key+".address", "%v is taken by listener[%d], %v", a, j, b)
			}
		}
		if k.isSet(key + ".backend_port") {
			k.between(key+".backend_port", l.BackendPort, 1, 65535)
		} else if l.BackendPort == 0 && (l.Address.IsValid() || l.Address.Systemd != "") {
			k.bad(key+".backend_port", "missing: %v does not tell a port", l.Address)
		}
		k.between(key+".max_connections", l.MaxConnections, 1, 10000000)
	}
}

func (k *checker) tls() {
	for i, l := range k.Listeners {
		if l.TLS == "none" {
			continue
		}
		k.needs(k.TLS.Certificate == "", "tls.certificate", "missing: listener[%d] has tls = %q", i, l.TLS)
		k.needs(k.TLS.Key == "", "tls.key", "missing: listener[%d] has tls = %q", i, l.TLS)
		break
	}
	k.path("tls.certificate", k.TLS.Certificate)
	k.path("tls.key", k.TLS.Key)
	if k.TLS.BackendCA != "insecure" {
		k.path("tls.backend_ca", k.TLS.BackendCA)
	}
}

func (k *checker) auth() {
	a := k.Auth
	// Each key that belongs to one driver is needed there (or not), and wrong elsewhere.
	for _, own := range []struct {
		driver, key, value string
		needed             bool
	}{
		{"passwd-file", "file", a.File, true},
		{"dovecot", "socket", a.Socket, true},
		{"dovecot", "login_socket", a.LoginSocket, false},
		{"http", "url", a.URL, true},
	} {
		key := "auth." + own.key
		switch {
		case own.driver != a.Driver && own.value != "":
			k.bad(key, "belongs to driver = %q, but driver is %q", own.driver, a.Driver)
		case own.driver == a.Driver && own.needed && own.value == "":
			k.bad(key, "missing: driver = %q needs it", a.Driver)
		}
	}
	k.path("auth.file", a.File)
	k.path("auth.socket", a.Socket)
	k.path("auth.login_socket", a.LoginSocket)
	k.path("auth.master_password_file", a.MasterPasswordFile)
	if u, err := url.Parse(a.URL); a.URL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		k.bad("auth.url", "%q is no address of a web server, write \"http://127.0.0.1:9000/auth\"", a.URL)
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
}

func (k *checker) steer() {
	s := k.Steer
	seen := map[string]bool{}
	for i, name := range s.Interfaces {
		key := fmt.Sprintf("steer.interfaces[%d]", i)
		// dev_valid_name() of the kernel: up to 15 bytes, no slash, no space.
		if name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n") {
			k.bad(key, "%q is no name of an interface", name)
		}
		k.needs(seen[name], key, "%q is listed twice", name)
		seen[name] = true
	}
	k.needs(s.PinPath == "", "steer.pin_path", "must not be empty, write \"/sys/fs/bpf/usher\"")
	k.path("steer.pin_path", s.PinPath)
	k.between("steer.max_flows", s.MaxFlows, 2, maxFlows)
	k.atLeast("steer.idle_timeout", s.IdleTimeout, Duration(time.Second))
	if s.Quiet > Duration(time.Second) {
		k.bad("steer.quiet", "%v is too long, at most 1s", s.Quiet)
	}
	addrs := map[netip.Addr]bool{}
	for i, a := range s.SourceAddresses {
		key := fmt.Sprintf("steer.source_addresses[%d]", i)
		if !a.IsValid() {
			k.bad(key, "must not be empty")
			continue
		}
		if err := checkHostAddr(a); err != nil {
			k.bad(key, "%v", err)
		}
		k.needs(addrs[a], key, "%v is listed twice", a)
		addrs[a] = true
	}
}

func (k *checker) admin() {
	k.needs(k.Admin.Socket == "", "admin.socket", "must not be empty, write \"/run/usher/admin.sock\"")
	k.path("admin.socket", k.Admin.Socket)
	if n := len(k.Admin.Socket); n > maxSocketPath {
		k.bad("admin.socket", "%d bytes are too many for the path of a socket, at most %d", n, maxSocketPath)
	}
}

func (k *checker) needs(wrong bool, key, format string, args ...any) {
	if wrong {
		k.bad(key, format, args...)
	}
}

func (k *checker) between(key string, n, least, most int) {
	if n < least || n > most {
		k.bad(key, "%d is out of range, want %d to %d", n, least, most)
	}
}

func (k *checker) atLeast(key string, d, least Duration) {
	if d < least {
		k.bad(key, "%v is too low, at least %v", d, least)
	}
}

// path wants absolute paths: a daemon's working directory is nobody's intention.
func (k *checker) path(key, path string) {
	if path != "" && !filepath.IsAbs(path) {
		k.bad(key, "%q must be an absolute path", path)
	}
}

// words keeps names and tags to what the tab-separated protocols can carry.
func (k *checker) words(key, s string) {
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		k.bad(key, "%q must not have spaces in it", s)
	}
}
