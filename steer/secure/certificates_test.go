package secure

import (
	"bytes"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"usher/testenv/pki"
)

// shown returns the certificate that a client of a server name gets.
func shown(t *testing.T, c *Certificates, name string) string {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		s := tls.Server(far, c.Server("imap"))
		_ = s.Handshake()
		far.Close()
	}()
	client := tls.Client(near, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	return client.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func TestCertificates(t *testing.T) {
	ca, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	write := func(pair string, names ...string) {
		t.Helper()
		if err := ca.Write(file(pair+".pem"), file(pair+".key"), names...); err != nil {
			t.Fatal(err)
		}
	}
	write("a", "a.test", "*.a.test")
	write("b", "b.test")
	var log bytes.Buffer
	c, err := OpenCertificates(CertificatesConfig{
		Pairs: []Pair{{Certificate: file("a.pem"), Key: file("a.key")}, {Certificate: file("b.pem"), Key: file("b.key")}},
		Log:   zerolog.New(&log),
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"": "a.test", "b.test": "b.test", "x.a.test": "a.test", "other.test": "a.test"} {
		if got := shown(t, c, name); got != want {
			t.Errorf("%q is shown %s, want %s", name, got, want)
		}
	}

	// The first file of a pair alone does not match; with the second one it does.
	cert, key, err := ca.Issue(time.Now().Add(time.Hour), "new.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file("a.pem"), cert, 0o644); err != nil {
		t.Fatal(err)
	}
	c.look()
	c.look()
	if got := shown(t, c, ""); got != "a.test" {
		t.Errorf("half of a pair: %s", got)
	}
	if n := strings.Count(log.String(), "new certificate is broken"); n != 1 {
		t.Errorf("the fault was logged %d times:\n%s", n, log.String())
	}
	// Others may replace a file by renaming a new one.
	if err := os.WriteFile(file("tmp"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file("tmp"), file("a.key")); err != nil {
		t.Fatal(err)
	}
	c.look()
	if got := shown(t, c, ""); got != "new.test" {
		t.Errorf("both halves: %s", got)
	}
	if left := time.Until(c.Expiry()); left > time.Hour || left < 59*time.Minute {
		t.Errorf("the first certificate ends in %v", left)
	}

	if err := os.Remove(file("b.key")); err != nil {
		t.Fatal(err)
	}
	c.look()
	if err := c.Reload(); err == nil || !strings.Contains(err.Error(), "b.key") {
		t.Errorf("got %v", err)
	}
	if got := shown(t, c, "b.test"); got != "b.test" {
		t.Errorf("a key that is gone: %s", got)
	}
}

func TestOpenCertificates(t *testing.T) {
	ca, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, pair := range []string{"a", "b"} {
		if err := ca.Write(file(pair+".pem"), file(pair+".key"), pair+".test"); err != nil {
			t.Fatal(err)
		}
	}
	good := Pair{Certificate: file("a.pem"), Key: file("a.key")}
	for name, tt := range map[string]struct {
		cfg  CertificatesConfig
		want string
	}{
		"none":          {CertificatesConfig{}, "no certificate"},
		"missing":       {CertificatesConfig{Pairs: []Pair{{Certificate: file("x"), Key: file("a.key")}}}, "x: no such file"},
		"mixed":         {CertificatesConfig{Pairs: []Pair{good, {Certificate: file("a.pem"), Key: file("b.key")}}}, "b.key"},
		"too old":       {CertificatesConfig{Pairs: []Pair{good}, MinVersion: tls.VersionTLS11}, "TLS 1.1"},
		"no authority":  {CertificatesConfig{Pairs: []Pair{good}, ClientCA: file("a.key")}, "no certificate in PEM"},
		"no OCSP there": {CertificatesConfig{Pairs: []Pair{{good.Certificate, good.Key, file("x")}}}, "OCSP"},
	} {
		if _, err := OpenCertificates(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	if err := os.WriteFile(file("staple"), []byte("a response"), 0o644); err != nil {
		t.Fatal(err)
	}
	good.Staple = file("staple")
	c, err := OpenCertificates(CertificatesConfig{Pairs: []Pair{good}})
	if err != nil {
		t.Fatal(err)
	}
	if cert, _ := c.choose(&tls.ClientHelloInfo{}); string(cert.OCSPStaple) != "a response" {
		t.Errorf("staple %q", cert.OCSPStaple)
	}
	if _, err := OpenBackends(BackendsConfig{CA: file("a.key")}); err == nil {
		t.Error("a key is no authority")
	}
}

// The library may change what lend and takeBack know of it: then this fails first.
func TestLendable(t *testing.T) {
	if !lendable {
		t.Error("crypto/tls has other fields now: idle sessions keep their buffers")
	}
}
