package steer

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"usher/director"
	"usher/steer/auth"
	"usher/steer/route"
	"usher/steer/secure"
	"usher/testenv/backend"
	"usher/testenv/client"
	"usher/testenv/pki"
)

// site is a server with backends on loopback addresses, without a kernel.
type site struct {
	*Server
	t        *testing.T
	ca       *pki.Authority
	backends []*backend.Server
}

// siteConfig is what a test wants of its site.
type siteConfig struct {
	protocol         string
	backends         int // 0: one
	client, upstream TLSMode
	backend          backend.Options
	certificate      string // in the backends' certificates instead of their addresses
	driver           auth.Driver
	listener         func(*Listener)
	server           func(*Config)
}

var authority = sync.OnceValues(pki.New)

func newSite(t *testing.T, sc siteConfig) *site {
	t.Helper()
	ca, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	x := &site{t: t, ca: ca}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := ca.Write(file("cert.pem"), file("key.pem"), "usher.test", "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file("ca.pem"), ca.PEM, 0o644); err != nil {
		t.Fatal(err)
	}
	log := zerolog.New(zerolog.NewTestWriter(t))
	d := director.New(director.Config{})
	// The first backend's ports are everybody's.
	ports := map[string]int{}
	for _, p := range []string{"imap", "pop3", "submission", "sieve", "lmtp"} {
		ports[p] = backend.AnyPort
	}
	for i := range max(sc.backends, 1) {
		addr := netip.AddrFrom4([4]byte{127, 0, 0, byte(2 + i)})
		o := sc.backend
		o.IMAPPort, o.POP3Port, o.SubmissionPort, o.SievePort, o.LMTPPort = ports["imap"], ports["pop3"], ports["submission"], ports["sieve"], ports["lmtp"]
		if sc.upstream != TLSNone && sc.upstream != "" {
			name := sc.certificate
			if name == "" {
				name = addr.String()
			}
			cert, err := ca.Certificate(name)
			if err != nil {
				t.Fatal(err)
			}
			o.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			o.Implicit = sc.upstream == TLSImplicit
		}
		b, err := backend.Start(nil, addr, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		x.backends = append(x.backends, b)
		ports["imap"], ports["pop3"] = int(b.IMAP().Port()), int(b.POP3().Port())
		for _, p := range []string{"submission", "sieve", "lmtp"} {
			ports[p] = int(b.Port(p))
		}
		d.Step(time.Now(), director.HostPut{Host: director.Host{Addr: addr, Weight: 100}})
	}
	l := Listener{
		Protocol: sc.protocol, Address: netip.MustParseAddrPort("127.0.0.1:0"), BackendPort: uint16(ports[sc.protocol]),
		TLS: sc.client, BackendTLS: sc.upstream,
	}
	if sc.listener != nil {
		sc.listener(&l)
	}
	cfg := Config{
		Listeners: []Listener{l}, Auth: sc.driver, UserMode: ModeSplice, Log: log,
		Route: route.Config{Director: d, Store: route.Forgetful{}, Log: log},
		Quiet: func() time.Duration { return 5 * time.Millisecond },
	}
	if cfg.Auth == nil {
		cfg.Auth = auth.Static{NoPassword: true}
	}
	cfg.Certificates, err = secure.OpenCertificates(secure.CertificatesConfig{
		Pairs: []secure.Pair{{Certificate: file("cert.pem"), Key: file("key.pem")}}, ClientCA: file("ca.pem"), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Backends, err = secure.OpenBackends(secure.BackendsConfig{CA: file("ca.pem")}); err != nil {
		t.Fatal(err)
	}
	if sc.server != nil {
		sc.server(&cfg)
	}
	if x.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := x.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return x
}

func (x *site) addr() netip.AddrPort {
	return x.listeners[0].socket.Addr().(*net.TCPAddr).AddrPort()
}

// dial logs in, or says why not.
func (x *site) dial(cfg client.Config) (*client.Session, error) {
	cfg.Server = x.addr()
	cfg.Protocol = client.Protocol(x.listeners[0].Protocol)
	if mode := x.listeners[0].TLS; mode == TLSStart || mode == TLSImplicit {
		if cfg.TLS == nil {
			cfg.TLS = &tls.Config{RootCAs: x.ca.Pool, ServerName: "usher.test"}
		}
		cfg.StartTLS = mode == TLSStart
	}
	if cfg.User == "" {
		cfg.User = "fred"
	}
	return client.Dial(x.t.Context(), cfg)
}

// wait waits for something that must become true soon.
func wait(t *testing.T, what string, true func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !true(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
