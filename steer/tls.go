package steer

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"

	"usher/steer/auth"
	"usher/steer/handover"
	"usher/steer/secure"
)

// TLSMode says when a connection changes to TLS.
type TLSMode string

// The modes, in the words of the configuration.
const (
	TLSNone     TLSMode = "none"
	TLSStart    TLSMode = "starttls" // by a command: in plaintext until then
	TLSImplicit TLSMode = "implicit" // before the first byte
)

// checkTLS refuses a listener that promises what the server has nothing for.
func (c Config) checkTLS(l Listener) error {
	for _, leg := range []struct {
		name string
		mode TLSMode
		has  bool
	}{{"clients", l.TLS, c.Certificates != nil}, {"backends", l.BackendTLS, c.Backends != nil}} {
		switch leg.mode {
		case "", TLSNone:
		case TLSStart, TLSImplicit:
			if !leg.has {
				return fmt.Errorf("listener %v: TLS with %s, but no certificates", l.Address, leg.name)
			}
		default:
			return fmt.Errorf("listener %v: %q is no way to use TLS", l.Address, leg.mode)
		}
	}
	return nil
}

// encrypt does the handshake with the client. Its session will not be handed over, so that nothing needs to be observed.
func (w *walk) encrypt() (net.Conn, error) {
	c, err := secure.Server(w.client, w.listener.tls)
	if err != nil {
		w.Stats.TLSFailed.Add(1)
		return nil, err
	}
	w.secret = c
	w.stays(handover.TLS)
	return c, nil
}

// stays gives up the hand-over before the login.
func (w *walk) stays(why handover.Reason) {
	if w.unseen == handover.Spliced {
		w.cfg.Kernel.Forget(w.from)
	}
	w.unseen = why
}

// state is that of the client's TLS, nil without.
func (w *walk) state() *tls.ConnectionState {
	if w.secret == nil {
		return nil
	}
	s := w.secret.ConnectionState()
	return &s
}

// certified is whom the client's certificate names: its common name, as in Dovecot.
func (w *walk) certified() string {
	s := w.state()
	if s == nil || len(s.VerifiedChains) == 0 {
		return ""
	}
	return s.PeerCertificates[0].Subject.CommonName
}

// backendTLS is how the backend of an answer is spoken to.
func (w *walk) backendTLS(a auth.Answer) (mode TLSMode, anyCert bool) {
	if a.TLS.Mode != "" {
		return TLSMode(a.TLS.Mode), a.TLS.AnyCert
	}
	if w.listener.BackendTLS == "" {
		return TLSNone, false
	}
	return w.listener.BackendTLS, false
}

// certificateName is what a backend's certificate has to name.
func certificateName(host netip.Addr, name string) string {
	if name != "" {
		return name
	}
	return host.Unmap().String()
}
