package config

import (
	"fmt"
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
	no(len(c.Director.Servers) > 0, "director.servers", yet+"there is no ring of directors; leave it empty")
	no(c.Director.RingListen.IsValid(), "director.ring_listen", yet+"there is no ring of directors; leave it empty")
	no(c.Director.FlushSocket != "", "director.flush_socket", yet+"leave it empty")
	for i, b := range c.Backends {
		no(b.Health != nil, fmt.Sprintf("backend[%d].health", i), yet+"there are no health checks; leave the table out")
	}
	for i, l := range c.Listeners {
		key := fmt.Sprintf("listener[%d]", i)
		no(l.Protocol != "imap" && l.Protocol != "pop3", key+".protocol", yet+"%q; write \"imap\" or \"pop3\"", l.Protocol)
		no(l.Address.Systemd != "", key+".address", yet+"sockets from systemd; write an address and port")
		no(l.TLS != "none", key+".tls", yet+"%q%s; write tls = \"none\"", l.TLS, c.byDefault(key+".tls"))
		no(l.BackendTLS != "none", key+".backend_tls", yet+"%q; write backend_tls = \"none\"", l.BackendTLS)
		no(len(l.ProxyProtocolFrom) > 0, key+".proxy_protocol_from", yet+"leave it empty")
	}
	drivers := []string{"static", "passwd-file"}
	no(!slices.Contains(drivers, c.Auth.Driver), "auth.driver", yet+"%q; write %s", c.Auth.Driver, alternatives(drivers))
	no(c.Dovecot.BaseDir != "", "dovecot.base_dir", yet+"leave it empty")
	no(c.Dovecot.IPC != "", "dovecot.ipc", yet+"leave it empty")
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
	var tls, backendTLS bool
	for _, l := range c.Listeners {
		tls = tls || l.TLS != "none"
		backendTLS = backendTLS || l.BackendTLS != "none"
	}
	// The defaults of [tls] need not exist as long as nobody listens with TLS.
	file(tls, "tls.certificate", c.TLS.Certificate)
	file(tls, "tls.key", c.TLS.Key)
	file(backendTLS && c.TLS.BackendCA != "insecure", "tls.backend_ca", c.TLS.BackendCA)
	file(true, "auth.file", c.Auth.File)
	file(true, "auth.master_password_file", c.Auth.MasterPasswordFile)
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
		if l.TLS == "none" && l.DisablePlaintextAuth && len(c.Auth.TrustedNetworks) == 0 && !a.IsLoopback() {
			key := fmt.Sprintf("listener[%d].disable_plaintext_auth", i)
			ps = append(ps, c.problem(key, "true%s without TLS: only clients on this machine can log in, as auth.trusted_networks is empty", c.byDefault(key)))
		}
	}
	if h := c.Admin.HTTP; h.IsValid() && !h.Addr().IsLoopback() {
		ps = append(ps, c.problem("admin.http", "%v can be reached from other machines, and shows the names of users to everybody", h))
	}
	if c.TLS.BackendCA == "insecure" {
		ps = append(ps, c.problem("tls.backend_ca", "the certificates of the backends are not verified"))
	}
	ps.sort(c.file)
	return ps
}

// byDefault tells people about a value that they did not write.
func (c *Config) byDefault(key string) string {
	if c.isSet(key) {
		return ""
	}
	return " (the default)"
}
