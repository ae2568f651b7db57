package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
)

// What a valid configuration still says about this version (Unbuilt), this machine (Missing)
// and the intentions behind it (Warnings).

// Unbuilt names every key that asks for something this version cannot do yet; the defaults of
// keys that were left out included. The daemon refuses to start when there is any: ignoring
// such a key would be a promise broken in silence.
func (c *Config) Unbuilt() Problems {
	var ps Problems
	no := func(asked bool, key, format string, args ...any) {
		if asked {
			ps = append(ps, c.problem(key, format, args...))
		}
	}
	const yet = "not built yet: "
	for i, l := range c.Listeners {
		key := fmt.Sprintf("listener[%d]", i)
		no(l.Protocol == "doveadm", key+".protocol", yet+"%q", l.Protocol)
		no(l.Address.Systemd != "", key+".address", yet+"sockets from systemd; write an address and port")
	}
	ps.sort(c.file)
	return ps
}

// Missing names the files which the configuration needs and which cannot be read here.
func (c *Config) Missing() Problems {
	var ps Problems
	file := func(needed bool, key, path string) {
		if !needed || path == "" {
			return
		}
		if err := readable(path); err != nil {
			ps = append(ps, c.problem(key, "%v", err))
		}
	}
	// The defaults of [tls] need not exist as long as nobody listens with TLS.
	_, tls := c.hasTLS()
	file(tls, "tls.certificate", c.TLS.Certificate)
	file(tls, "tls.key", c.TLS.Key)
	file(tls, "tls.staple", c.TLS.Staple)
	file(tls, "tls.client_ca", c.TLS.ClientCA)
	for i, p := range c.TLS.Pairs {
		key := fmt.Sprintf("tls.pair[%d]", i)
		file(tls, key+".certificate", p.Certificate)
		file(tls, key+".key", p.Key)
		file(tls, key+".staple", p.Staple)
	}
	// A user database may want TLS with a backend although no listener does.
	file(c.TLS.BackendCA != "insecure", "tls.backend_ca", c.TLS.BackendCA)
	file(true, "auth.file", c.Auth.File)
	file(true, "auth.master_password_file", c.Auth.MasterPasswordFile)
	file(true, "auth.ca", c.Auth.CA)
	file(true, "auth.header_file", c.Auth.HeaderFile)
	if t := c.Director.RingTLS; t != nil {
		file(true, "director.ring_tls.certificate", t.Certificate)
		file(true, "director.ring_tls.key", t.Key)
		file(true, "director.ring_tls.ca", t.CA)
	}
	for i, b := range c.Backends {
		if b.Health != nil {
			file(true, fmt.Sprintf("backend[%d].health.password_file", i), b.Health.PasswordFile)
		}
	}
	ps.sort(c.file)
	return ps
}

func readable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", path) // opening a FIFO would wait for its writer
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// Warnings names what is allowed and yet seldom meant.
func (c *Config) Warnings() Problems {
	var ps Problems
	for i, l := range c.Listeners {
		a := l.Address.Addr()
		if slices.ContainsFunc(l.ProxyProtocolFrom, func(n Network) bool { return n.Bits() == 0 }) {
			key := fmt.Sprintf("listener[%d].proxy_protocol_from", i)
			ps = append(ps, c.problem(key, "everybody may say who they are: name the networks of the load balancers"))
		}
		if l.Protocol != "lmtp" && l.TLS == "none" && l.DisablePlaintextAuth && len(c.Auth.TrustedNetworks) == 0 && !a.IsLoopback() {
			key := fmt.Sprintf("listener[%d].disable_plaintext_auth", i)
			ps = append(ps, c.problem(key, "true%s without TLS: only clients on this machine can log in, as auth.trusted_networks is empty", c.byDefault(key)))
		}
	}
	if h := c.Admin.HTTP; h.IsValid() && !h.Addr().IsLoopback() {
		ps = append(ps, c.problem("admin.http", "%v can be reached from other machines, and shows the names of users to everybody", h))
	}
	if n := len(c.Director.Servers); n > 1 && c.Director.RingTLS == nil {
		if a := c.Director.RingListen.Addr(); !a.IsLoopback() {
			ps = append(ps, c.problem("director.ring_listen", "the ring is not encrypted, and who can send from the address of a director commands it; see ring_tls"))
		}
	}
	if u, err := url.Parse(c.Auth.URL); err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
		ps = append(ps, c.problem("auth.url", "passwords go there without TLS"))
	}
	if c.TLS.BackendCA == "insecure" {
		ps = append(ps, c.problem("tls.backend_ca", "the certificates of the backends are not verified"))
	}
	ps.sort(c.file)
	return ps
}

// isLoopback goes by what is written; no name is looked up.
func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// byDefault tells people about a value that they did not write.
func (c *Config) byDefault(key string) string {
	if c.isSet(key) {
		return ""
	}
	return " (the default)"
}
