package secure

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
)

// Insecure is the value of BackendsConfig.CA that turns verification off. It has to be written: nothing leads there by
// leaving something out.
const Insecure = "insecure"

// BackendsConfig is what Backends are made of.
type BackendsConfig struct {
	CA         string // PEM: who may have signed; empty: the system's authorities; or Insecure
	MinVersion uint16 // 0: TLS 1.2
}

// Backends encrypts connections to backends.
type Backends struct {
	base *tls.Config

	mu     sync.Mutex
	byName map[peer]*tls.Config
}

// peer is who is on the other side, and whether that is verified.
type peer struct {
	name    string
	anyCert bool
}

// maxNames bounds the configurations that are kept; names may come from a user database.
const maxNames = 1024

// sessions is how many backends' tickets are kept.
const sessions = 256

// OpenBackends reads the authorities.
func OpenBackends(cfg BackendsConfig) (*Backends, error) {
	base := &tls.Config{MinVersion: max(cfg.MinVersion, tls.VersionTLS12), ClientSessionCache: tls.NewLRUClientSessionCache(sessions)}
	switch cfg.CA {
	case "":
	case Insecure:
		base.InsecureSkipVerify = true
	default:
		var err error
		if base.RootCAs, err = readPool(cfg.CA); err != nil {
			return nil, fmt.Errorf("authorities of backends: %w", err)
		}
	}
	return &Backends{base: base, byName: map[peer]*tls.Config{}}, nil
}

// Client does the handshake with a backend, within the connection's deadline. The name must be in its certificate: the
// backend's host name, or its address where it is configured by that; anyCert leaves that out for this backend. With an
// error the connection is only good for closing.
func (b *Backends) Client(tcp *net.TCPConn, name string, anyCert bool) (*Conn, error) {
	if name == "" {
		return nil, errors.New("TLS with backend: no name to verify")
	}
	c, err := newConn(tcp)
	if err != nil {
		return nil, err
	}
	c.Conn = tls.Client(c.wire, b.config(peer{name, anyCert}))
	if err := c.Handshake(); err != nil {
		return nil, &HandshakeError{name, err}
	}
	return c, nil
}

func (b *Backends) config(p peer) *tls.Config {
	b.mu.Lock()
	defer b.mu.Unlock()
	cfg := b.byName[p]
	if cfg == nil {
		if len(b.byName) >= maxNames {
			clear(b.byName)
		}
		cfg = b.base.Clone()
		cfg.ServerName = p.name
		if p.anyCert {
			// A ticket of a session that nobody verified must not be taken for one that was.
			cfg.InsecureSkipVerify, cfg.ClientSessionCache = true, nil
		}
		b.byName[p] = cfg
	}
	return cfg
}

// HandshakeError is a handshake that failed.
type HandshakeError struct {
	Peer string // the backend's name; empty: a client
	Err  error
}

func (e *HandshakeError) Error() string {
	if e.Peer == "" {
		return fmt.Sprintf("TLS with client: %v", e.Err)
	}
	return fmt.Sprintf("TLS with backend %s: %v", e.Peer, e.Err)
}

// Unwrap returns the error of crypto/tls.
func (e *HandshakeError) Unwrap() error { return e.Err }

// Untrusted reports whether a handshake failed because of the peer's certificate.
func Untrusted(err error) bool {
	var v *tls.CertificateVerificationError
	var a x509.UnknownAuthorityError
	return errors.As(err, &v) || errors.As(err, &a)
}
