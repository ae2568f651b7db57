package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"
	"unicode"

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
	k.limits()
	k.steer()
	k.path("dovecot.base_dir", c.Dovecot.BaseDir)
	k.path("dovecot.ipc", c.Dovecot.IPC)
	k.needs(c.Dovecot.IPC != "" && c.Dovecot.BaseDir == "", "dovecot.base_dir", "missing: ipc is where the sessions of its processes are kicked")
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
	k.path("director.state_file", d.StateFile)
	if d.RingListen.IsValid() && d.RingListen.Port() == 0 {
		k.bad("director.ring_listen", "%v has no port, write \"10.1.0.2:9090\"", d.RingListen)
	}
	k.needs(d.RingListen.IsValid() && len(d.Servers) == 0, "director.servers", "missing: with ring_listen, list every director of the ring, this one included")
	if d.RingTLS != nil {
		k.ringTLS("director.ring_tls", *d.RingTLS)
	}
}

func (k *checker) ringTLS(key string, t RingTLS) {
	k.needs(len(k.Director.Servers) == 0, key, "there is no ring: director.servers is empty")
	for _, file := range []struct{ name, path string }{{"certificate", t.Certificate}, {"key", t.Key}, {"ca", t.CA}} {
		k.needs(file.path == "", key+"."+file.name, "missing: each director shows a certificate of the ring's CA")
		k.path(key+"."+file.name, file.path)
	}
	seen := map[netip.Addr]bool{}
	for i, a := range t.Plain {
		key := fmt.Sprintf("%s.plain[%d]", key, i)
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			k.bad(key, "want the address of a director")
			continue
		}
		k.needs(seen[a.Unmap()], key, "%v is listed twice", a)
		seen[a.Unmap()] = true
	}
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
	k.between(key+".drain_rate", h.DrainRate, 0, maxMoves)
	k.between(key+".flap_limit", h.FlapLimit, 0, 1000)
	k.atLeast(key+".flap_window", h.FlapWindow, Duration(time.Second))
	login := h.Check == "login"
	k.needs(login && h.User == "", key+".user", "missing: check = \"login\" logs in with it")
	k.needs(login && h.PasswordFile == "", key+".password_file", "missing: check = \"login\" logs in with it")
	k.needs(!login && h.User != "", key+".user", "only check = \"login\" has a use for it")
	k.needs(!login && h.PasswordFile != "", key+".password_file", "only check = \"login\" has a use for it")
	k.path(key+".password_file", h.PasswordFile)
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
