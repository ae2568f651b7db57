package secure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Pair names the files of one certificate.
type Pair struct {
	Certificate string // PEM, the server's own first, then its chain
	Key         string // PEM
	Staple      string // OCSP response, DER; empty: none is stapled
}

// CertificatesConfig is what Certificates are made of.
type CertificatesConfig struct {
	Pairs      []Pair        // the first one is for clients that name no server or an unknown one
	MinVersion uint16        // tls.VersionTLS12 and so on; 0: TLS 1.2
	ClientCA   string        // PEM: clients may show a certificate of one of these; empty: they are not asked. Read once.
	Poll       time.Duration // between two looks at the files; 0: 5 s
	Log        zerolog.Logger
}

// Certificates are those that clients are shown. They follow their files: a renewed one is used by the next handshake, and
// sessions, tickets included, do not notice. A pair that is broken keeps the old one in use.
type Certificates struct {
	cfg     CertificatesConfig
	clients *x509.CertPool // nil: not asked for certificates
	loaded  atomic.Pointer[[]*tls.Certificate]

	mu    sync.Mutex // of Reload
	seen  []stamp    // of the files at the last look, three per pair
	wrong error      // of the last Reload
}

const pollInterval = 5 * time.Second

// OpenCertificates reads all pairs for the first time. The error names the file, or both of a pair that does not match.
func OpenCertificates(cfg CertificatesConfig) (*Certificates, error) {
	if len(cfg.Pairs) == 0 {
		return nil, errors.New("no certificate")
	}
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS12
	}
	if cfg.MinVersion < tls.VersionTLS12 {
		return nil, fmt.Errorf("minimal version %s: at least TLS 1.2 is wanted", tls.VersionName(cfg.MinVersion))
	}
	if cfg.Poll <= 0 {
		cfg.Poll = pollInterval
	}
	c := &Certificates{cfg: cfg}
	if cfg.ClientCA != "" {
		var err error
		if c.clients, err = readPool(cfg.ClientCA); err != nil {
			return nil, fmt.Errorf("certificates of clients: %w", err)
		}
	}
	if err := c.Reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// Reload reads the files now, all or nothing: with an error the old certificates stay in use.
func (c *Certificates) Reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The stamps come first: what changes behind them is read again at the next look.
	c.seen = c.stamps()
	return c.load()
}

func (c *Certificates) load() error {
	var all []*tls.Certificate
	for _, p := range c.cfg.Pairs {
		cert, err := p.load()
		if err != nil {
			c.wrong = err
			return err
		}
		all = append(all, cert)
	}
	c.loaded.Store(&all)
	c.wrong = nil
	return nil
}

func (p Pair) load() (*tls.Certificate, error) {
	chain, err := os.ReadFile(p.Certificate)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	key, err := os.ReadFile(p.Key)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", p.Certificate, p.Key, err)
	}
	if p.Staple != "" {
		if cert.OCSPStaple, err = os.ReadFile(p.Staple); err != nil {
			return nil, fmt.Errorf("OCSP response: %w", err)
		}
	}
	return &cert, nil
}

// Run follows the files until ctx ends.
func (c *Certificates) Run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			c.look()
		}
	}
}

// look reloads when a file has changed. A certificate is written in two files, one after the other, so that a pair may not
// match for a moment: the same fault is logged once, and the second file is a change of its own.
func (c *Certificates) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.stamps()
	if equal(now, c.seen) {
		return
	}
	c.seen = now
	old := c.wrong
	if err := c.load(); err != nil {
		if old == nil || old.Error() != err.Error() {
			c.cfg.Log.Error().Err(err).Msg("new certificate is broken, the old one stays in use")
		}
		return
	}
	for _, cert := range *c.loaded.Load() {
		c.cfg.Log.Info().Strs("names", cert.Leaf.DNSNames).Time("expires", cert.Leaf.NotAfter).Msg("certificate loaded")
	}
}

// stamp tells one content of a file from the next, without reading it.
type stamp struct {
	info os.FileInfo // nil: it is not there, or may not be looked at
}

func (c *Certificates) stamps() []stamp {
	var all []stamp
	for _, p := range c.cfg.Pairs {
		for _, file := range []string{p.Certificate, p.Key, p.Staple} {
			info, err := os.Stat(file) // through symbolic links, which is how some renew
			if err != nil {
				info = nil
			}
			all = append(all, stamp{info})
		}
	}
	return all
}

func equal(a, b []stamp) bool {
	for i := range a {
		x, y := a[i].info, b[i].info
		if x == nil || y == nil {
			if x != y {
				return false
			}
			continue
		}
		if !os.SameFile(x, y) || x.Size() != y.Size() || !x.ModTime().Equal(y.ModTime()) {
			return false
		}
	}
	return true
}

// Expiry is when the first of the certificates in use ends.
func (c *Certificates) Expiry() time.Time {
	var first time.Time
	for _, cert := range *c.loaded.Load() {
		if at := cert.Leaf.NotAfter; first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// choose is tls.Config.GetCertificate: the first that fits what the client asks for and can verify.
func (c *Certificates) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	all := *c.loaded.Load()
	for _, cert := range all {
		if hello.SupportsCertificate(cert) == nil {
			return cert, nil
		}
	}
	return all[0], nil
}

// alpn are the registered names of the protocols (IANA, TLS ALPN Protocol IDs). A client that offers others only is
// refused: it means another server, and is perhaps made to by somebody in between (ALPACA). Who offers none is welcome.
var alpn = map[string][]string{"imap": {"imap"}, "pop3": {"pop3"}, "sieve": {"managesieve"}}

// Server is the configuration of a listener of one protocol ("imap", "pop3", ...). It may be used by many connections;
// tickets hold for it alone.
func (c *Certificates) Server(protocol string) *tls.Config {
	cfg := &tls.Config{GetCertificate: c.choose, MinVersion: c.cfg.MinVersion, NextProtos: alpn[protocol]}
	if c.clients != nil {
		cfg.ClientCAs, cfg.ClientAuth = c.clients, tls.VerifyClientCertIfGiven
	}
	return cfg
}

func readPool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in PEM", file)
	}
	return pool, nil
}
