package steer

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"usher/steer/handover"
	"usher/testenv/backend"
	"usher/testenv/client"
	"usher/testenv/content"
)

// Every way to log in over every combination of TLS: nothing that is pipelined gets lost, both directions carry bytes, and
// either side may end its own first.
func TestTLS(t *testing.T) {
	modes := []TLSMode{TLSNone, TLSStart, TLSImplicit}
	for _, protocol := range []string{"imap", "pop3", "submission", "sieve"} {
		for _, mode := range modes {
			for _, upstream := range modes {
				t.Run(fmt.Sprintf("%s/%s/%s", protocol, mode, upstream), func(t *testing.T) {
					x := newSite(t, siteConfig{protocol: protocol, client: mode, upstream: upstream})
					for _, method := range client.Methods {
						x.exchange(t, client.Config{Method: method, Pipeline: true})
					}
					x.halves(t)
				})
			}
		}
	}
}

// exchange logs in, checks how the session is carried, and moves bytes both ways.
func (x *site) exchange(t *testing.T, cfg client.Config) {
	t.Helper()
	s, err := x.dial(cfg)
	if err != nil {
		t.Fatalf("%v: %v", cfg.Method, err)
	}
	defer s.Close()
	infos := x.Sessions(nil)
	l := x.listeners[0]
	mode, reason := ModeSplice, handover.ModeOff
	if l.mayEncrypt() {
		mode, reason = ModeCopy, handover.TLS
	}
	if len(infos) != 1 || infos[0].Mode != mode || infos[0].Reason != reason || infos[0].User != "fred" {
		t.Errorf("%v: sessions %+v, want mode %s, reason %s", cfg.Method, infos, mode, reason)
	}
	if counts := x.Counts().ByMode; counts[mode] != 1 {
		t.Errorf("counts %v", counts)
	}
	for _, n := range []int64{1, 1000, 200_000} {
		if err := s.Echo(n, 7); err != nil {
			t.Fatalf("%v: %v", cfg.Method, err)
		}
	}
	if err := s.Source(1<<20, 3); err != nil {
		t.Fatalf("%v: %v", cfg.Method, err)
	}
	if err := s.Logout(); err != nil {
		t.Fatalf("%v: %v", cfg.Method, err)
	}
	wait(t, "the end of the session", func() bool { return x.Counts().Total == 0 })
	if counts := x.Counts().ByMode; counts[ModeCopy] != 0 || counts[ModeSplice] != 0 {
		t.Errorf("counts after the end %v", counts)
	}
}

// halves closes one direction before the other, each of them once.
func (x *site) halves(t *testing.T) {
	t.Helper()
	s, err := x.dial(client.Config{User: "half"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.HalfClose(1<<20, 5); err != nil {
		t.Error(err)
	}
	if s, err = x.dial(client.Config{User: "finish"}); err != nil {
		t.Fatal(err)
	}
	const n = 300_000
	if err := s.Finish(n, 11); err != nil {
		t.Error(err)
	}
	h := sha256.New()
	if _, err := io.CopyN(h, content.Stream(11), n); err != nil {
		t.Fatal(err)
	}
	wait(t, "the record of the finished session", func() bool {
		for _, r := range x.backends[0].Sessions() {
			if r.User == "finish" && r.Ending == backend.FIN && r.Tail == n && r.TailSHA256 == hex.EncodeToString(h.Sum(nil)) {
				return true
			}
		}
		return false
	})
}

// The end of a stream is passed on as it came: a FIN without close_notify is not made one with it, and the reverse.
func TestTLSEnds(t *testing.T) {
	x := newSite(t, siteConfig{protocol: "imap", client: TLSImplicit, upstream: TLSImplicit})
	for _, tt := range []struct {
		name string
		end  func(*client.Session) error
		want backend.Ending
	}{
		{"close_notify", (*client.Session).Close, backend.FIN},
		{"FIN alone", func(s *client.Session) error { return s.Conn().Close() }, backend.FIN},
		{"RST", (*client.Session).Abort, backend.RST},
	} {
		t.Run(tt.name, func(t *testing.T) {
			user := strings.ReplaceAll(tt.name, " ", "-")
			s, err := x.dial(client.Config{User: user})
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.end(s); err != nil {
				t.Fatal(err)
			}
			wait(t, "the end at the backend", func() bool {
				for _, r := range x.backends[0].Sessions() {
					if r.User == user && r.Ending == tt.want {
						return true
					}
				}
				return false
			})
			wait(t, "the end of the session", func() bool { return x.Counts().Total == 0 })
		})
	}
}

// What stands in plaintext behind STARTTLS is not taken for a command under TLS: the connection ends.
func TestPlaintextBehindStartTLS(t *testing.T) {
	for protocol, command := range map[string]string{
		"imap": "a STARTTLS\r\nb LOGIN eve x\r\n", "pop3": "STLS\r\nUSER eve\r\n",
		"submission": "STARTTLS\r\nEHLO eve\r\n", "sieve": "STARTTLS\r\nNOOP\r\n",
	} {
		t.Run(protocol, func(t *testing.T) {
			x := newSite(t, siteConfig{protocol: protocol, client: TLSStart})
			c, err := net.Dial("tcp", x.addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.WriteString(c, command); err != nil {
				t.Fatal(err)
			}
			said, err := io.ReadAll(c)
			if err != nil {
				t.Fatal(err)
			}
			if text := string(said); !strings.Contains(text, "Plaintext behind STARTTLS.") || strings.Contains(text, "Begin TLS") {
				t.Errorf("the server said %q", text)
			}
		})
	}
}

// A backend that cannot prove who it is gets no password, and the client a temporary answer.
func TestBackendCertificates(t *testing.T) {
	for _, tt := range []struct {
		name             string
		certificate      string
		upstream, speaks TLSMode
		good             bool
	}{
		{"its address", "", TLSImplicit, TLSImplicit, true},
		{"its address by STARTTLS", "", TLSStart, TLSStart, true},
		{"another name", "other.test", TLSImplicit, TLSImplicit, false},
		{"another name by STARTTLS", "other.test", TLSStart, TLSStart, false},
		{"no STARTTLS", "", TLSStart, TLSNone, false},
		{"no TLS", "", TLSImplicit, TLSNone, false},
	} {
		for _, protocol := range []string{"imap", "pop3", "submission", "sieve"} {
			t.Run(tt.name+"/"+protocol, func(t *testing.T) {
				x := newSite(t, siteConfig{
					protocol: protocol, upstream: tt.speaks, certificate: tt.certificate,
					listener: func(l *Listener) { l.BackendTLS = tt.upstream },
				})
				s, err := x.dial(client.Config{Timeout: 5 * time.Second})
				if tt.good {
					if err != nil {
						t.Fatal(err)
					}
					s.Close()
					return
				}
				if err == nil || client.KindOf(err) != client.Refused || !strings.Contains(err.Error(), "Try again later") {
					t.Errorf("got %v", err)
				}
				if _, _, logins, refused := x.backends[0].Counts(); logins+refused > 0 {
					t.Error("the backend got a password")
				}
			})
		}
	}
}

// A handshake that fails, or never ends, costs nobody else anything and leaves nothing behind.
func TestBrokenHandshakes(t *testing.T) {
	x := newSite(t, siteConfig{protocol: "imap", client: TLSImplicit, server: func(c *Config) { c.Limits.Idle = 300 * time.Millisecond }})
	for name, words := range map[string]string{"silence": "", "plaintext": "a LOGIN fred x\r\n", "half a record": "\x16\x03\x01\x02\x00\x01"} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", x.addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.WriteString(c, words); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, c)
			wait(t, "the end of the connection", func() bool { return x.Counts().Total == 0 })
		})
	}
	if n := x.Stats.TLSFailed.Load(); n != 3 {
		t.Errorf("%d failed handshakes counted", n)
	}
	old := &tls.Config{RootCAs: x.ca.Pool, ServerName: "usher.test", MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	if _, err := x.dial(client.Config{TLS: old}); err == nil {
		t.Error("TLS 1.1 is too old")
	}
	alpn := &tls.Config{RootCAs: x.ca.Pool, ServerName: "usher.test", NextProtos: []string{"imap"}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for i := range 2 {
		s, err := x.dial(client.Config{TLS: alpn})
		if err != nil {
			t.Fatal(err)
		}
		if state, _ := s.TLS(); state.NegotiatedProtocol != "imap" || state.DidResume != (i == 1) {
			t.Errorf("connection %d: %q, resumed %v", i, state.NegotiatedProtocol, state.DidResume)
		}
		s.Close()
	}
	if _, err := x.dial(client.Config{TLS: &tls.Config{RootCAs: x.ca.Pool, ServerName: "usher.test", NextProtos: []string{"h2"}}}); err == nil {
		t.Error("a client that speaks another protocol is let in")
	}
}
