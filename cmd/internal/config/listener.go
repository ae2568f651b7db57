package config

import (
	"fmt"
	"time"
)

// Listener is one [[listener]]: a listening socket.
type Listener struct {
	Protocol             string    `toml:"protocol" oneof:"imap pop3 submission lmtp sieve doveadm"`
	Address              Listen    `toml:"address"`
	TLS                  string    `toml:"tls" oneof:"none starttls implicit"`
	BackendPort          int       `toml:"backend_port"` // the listener's own port when it was left out
	BackendTLS           string    `toml:"backend_tls" oneof:"none starttls implicit"`
	ProxyProtocolFrom    []Network `toml:"proxy_protocol_from"`
	DisablePlaintextAuth bool      `toml:"disable_plaintext_auth"`
	MaxConnections       int       `toml:"max_connections"` // before login

	// MaxConnectionsPerAddress is the same for each IPv4 address and IPv6 /64; 0: no limit. Trusted networks and those that
	// send a PROXY header have none.
	MaxConnectionsPerAddress int `toml:"max_connections_per_address"`
	// ForwardClient tells backends the address of the client, if they say that they want to know it (ID, XCLIENT).
	ForwardClient bool `toml:"forward_client"`
	// BackendProxyProtocol sends every backend a PROXY header, version 2, before anything else.
	BackendProxyProtocol bool `toml:"backend_proxy_protocol"`

	// For lmtp alone.
	RecipientDelimiter string `toml:"recipient_delimiter"` // between user and detail, "user+detail@domain"; empty: names are not cut
	MaxMail            Size   `toml:"max_mail"`            // 0: the backends decide
}

func (l *Listener) setDefaults() {
	// StartTLS and no plain passwords are the reference's values: whoever forgets a line must
	// not end up with passwords in the clear.
	*l = Listener{
		TLS: "starttls", BackendTLS: "none", DisablePlaintextAuth: true, MaxConnections: 100000, MaxConnectionsPerAddress: 1000,
		ForwardClient: true, RecipientDelimiter: "+",
	}
}

// TLS is [tls]: for the listeners and for the way to the backends.
type TLS struct {
	Certificate string `toml:"certificate"`
	Key         string `toml:"key"`
	MinVersion  string `toml:"min_version" oneof:"1.2 1.3"`
	BackendCA   string `toml:"backend_ca"` // "": the system's, "insecure", or a file

	Staple   string `toml:"staple"`    // file with an OCSP response for Certificate, DER; empty: none
	ClientCA string `toml:"client_ca"` // signs the certificates of clients; empty: they are not asked for any
	Pairs    []Pair `toml:"pair"`      // further certificates, for clients that name another server
}

// Pair is one [[tls.pair]].
type Pair struct {
	Certificate string `toml:"certificate"`
	Key         string `toml:"key"`
	Staple      string `toml:"staple"`
}

// Limits is [limits]: what a client may cost before it is logged in.
type Limits struct {
	Line     Size     `toml:"line"`     // longest line, and SASL response
	Literal  Size     `toml:"literal"`  // longest literal of IMAP
	Bytes    Size     `toml:"bytes"`    // all bytes
	Commands int      `toml:"commands"` // failed logins included
	Invalid  int      `toml:"invalid"`  // commands that are not understood
	Attempts int      `toml:"attempts"` // to log in
	Idle     Duration `toml:"idle"`     // for one command
	Whole    Duration `toml:"whole"`    // from the greeting to the last attempt
}

func defaultLimits() Limits {
	return Limits{
		Line: 8 << 10, Literal: 4 << 10, Bytes: 64 << 10, Commands: 64, Invalid: 3, Attempts: 10,
		Idle: Duration(time.Minute), Whole: Duration(3 * time.Minute),
	}
}

// hasTLS reports whether anybody listens with TLS, and who is the first.
func (c *Config) hasTLS() (i int, ok bool) {
	for i, l := range c.Listeners {
		if l.TLS != "none" {
			return i, true
		}
	}
	return 0, false
}

func (k *checker) listeners() {
	if len(k.Listeners) == 0 && k.Dovecot.BaseDir == "" && !k.isSet("listener") {
		k.bad("listener", "missing: at least one [[listener]] with protocol and address is needed")
	}
	for i, l := range k.Listeners {
		key := fmt.Sprintf("listener[%d]", i)
		k.needs(!k.isSet(key+".protocol"), key+".protocol", "missing: write \"imap\", \"pop3\", \"submission\", \"sieve\" or \"lmtp\"")
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
		k.between(key+".max_connections_per_address", l.MaxConnectionsPerAddress, 0, 10000000)
		k.words(key+".recipient_delimiter", l.RecipientDelimiter)
		for _, name := range []string{"recipient_delimiter", "max_mail"} {
			k.needs(l.Protocol != "lmtp" && l.Protocol != "" && k.isSet(key+"."+name), key+"."+name, "belongs to protocol = \"lmtp\", but protocol is %q", l.Protocol)
		}
	}
}

func (k *checker) tls() {
	if i, ok := k.hasTLS(); ok {
		k.needs(k.TLS.Certificate == "", "tls.certificate", "missing: listener[%d] has tls = %q", i, k.Listeners[i].TLS)
		k.needs(k.TLS.Key == "", "tls.key", "missing: listener[%d] has tls = %q", i, k.Listeners[i].TLS)
	}
	k.path("tls.certificate", k.TLS.Certificate)
	k.path("tls.key", k.TLS.Key)
	k.path("tls.staple", k.TLS.Staple)
	k.path("tls.client_ca", k.TLS.ClientCA)
	for i, p := range k.TLS.Pairs {
		key := fmt.Sprintf("tls.pair[%d]", i)
		k.needs(p.Certificate == "", key+".certificate", "missing")
		k.needs(p.Key == "", key+".key", "missing")
		k.path(key+".certificate", p.Certificate)
		k.path(key+".key", p.Key)
		k.path(key+".staple", p.Staple)
	}
	if k.TLS.BackendCA != "insecure" {
		k.path("tls.backend_ca", k.TLS.BackendCA)
	}
}

// limits keeps away from values with which no honest client could log in, or with which there is no limit any more.
func (k *checker) limits() {
	l := k.Limits
	size := func(key string, n, least, most Size) {
		if n < least || n > most {
			k.bad(key, "%d bytes are out of range, want %d to %d", n, least, most)
		}
	}
	size("limits.line", l.Line, 512, 1<<20)
	size("limits.literal", l.Literal, 256, 1<<20)
	size("limits.bytes", l.Bytes, 4<<10, 16<<20)
	k.between("limits.commands", l.Commands, 8, 100000)
	k.between("limits.invalid", l.Invalid, 1, 1000)
	k.between("limits.attempts", l.Attempts, 1, 1000)
	k.atLeast("limits.idle", l.Idle, Duration(time.Second))
	k.atLeast("limits.whole", l.Whole, Duration(time.Second))
}
