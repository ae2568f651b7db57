package httphook

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"usher/steer/auth"
)

func TestTLS(t *testing.T) {
	var got http.Header
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		w.Header().Set("Auth-Status", "OK")
	}))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	h := hook(t, server, func(c *Config) { c.CA, c.PassClientCert = ca, true })
	r := request("fred", "x")
	r.TLS = &tls.ConnectionState{
		Version: tls.VersionTLS12, CipherSuite: tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		PeerCertificates: []*x509.Certificate{server.Certificate()}, VerifiedChains: [][]*x509.Certificate{{server.Certificate()}},
	}
	if _, err := h.Authenticate(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	cert, err := url.PathUnescape(got.Get("Auth-Ssl-Cert"))
	if err != nil || cert != string(block) {
		t.Errorf("certificate %q, %v", cert, err)
	}
	for name, want := range map[string]string{
		"Auth-Ssl": "on", "Auth-Ssl-Protocol": "TLSv1.2", "Auth-Ssl-Cipher": "ECDHE-RSA-AES128-GCM-SHA256", "Auth-Ssl-Verify": "SUCCESS",
		"Auth-Ssl-Subject": server.Certificate().Subject.String(),
	} {
		if got.Get(name) != want {
			t.Errorf("%s: got %q, want %q", name, got.Get(name), want)
		}
	}
	if f := got.Get("Auth-Ssl-Fingerprint"); len(f) != 40 {
		t.Errorf("fingerprint %q", f)
	}

	stranger := hook(t, httptest.NewTLSServer(http.NotFoundHandler()), nil)
	if _, err := stranger.Authenticate(t.Context(), request("fred", "x")); !errors.Is(err, auth.ErrTemporary) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody signed: %v", err)
	}
}

func TestOpenSSL(t *testing.T) {
	for id, want := range map[uint16]string{
		tls.TLS_RSA_WITH_AES_128_CBC_SHA:                  "AES128-SHA",
		tls.TLS_RSA_WITH_AES_256_GCM_SHA384:               "AES256-GCM-SHA384",
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA:          "ECDHE-ECDSA-AES256-SHA",
		tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256:         "ECDHE-RSA-AES128-SHA256",
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:   "ECDHE-RSA-CHACHA20-POLY1305",
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: "ECDHE-ECDSA-CHACHA20-POLY1305",
		tls.TLS_AES_128_GCM_SHA256:                        "TLS_AES_128_GCM_SHA256",
	} {
		if got := openSSL(tls.CipherSuiteName(id)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
