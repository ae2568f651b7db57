package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
)

// tlsHandshake is the first byte of a TLS connection.
const tlsHandshake = 0x16

// LoadTLS makes the TLS configuration of a ring from PEM files: our certificate, its key, and those who sign
// the certificates of the ring. The certificate must be good for both sides of a connection. It is read again
// for each connection, so it may be renewed at any time.
func LoadTLS(certificate, key, ca string) (*tls.Config, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("ring_tls: ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ring_tls: ca: %s has no certificate", ca)
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, fmt.Errorf("ring_tls: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		RootCAs:              pool,
		ClientCAs:            pool,
		ClientAuth:           tls.RequireAndVerifyClientCert,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return load() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() },
	}, nil
}

// forPeer is the configuration for one connection: the certificate at the other end must be valid for its
// address, whoever connected. Otherwise the certificate of any member would do for the place of any other.
func forPeer(config *tls.Config, remote netip.Addr) *tls.Config {
	c := config.Clone()
	c.ServerName = remote.Unmap().String()
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("no certificate")
		}
		return state.PeerCertificates[0].VerifyHostname(remote.Unmap().String())
	}
	return c
}
