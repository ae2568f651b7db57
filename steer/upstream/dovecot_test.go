package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"usher/steer/prelogin"
	"usher/steer/secure"
	"usher/steer/upstream"
	"usher/steer/upstream/imap"
	"usher/steer/upstream/internal/dovecottest"
	"usher/steer/upstream/lmtp"
	"usher/steer/upstream/pop3"
	"usher/steer/upstream/sieve"
	"usher/steer/upstream/submission"
	"usher/testenv/pki"
)

// Real Dovecot with TLS, which believes us about the client.
func TestDovecot(t *testing.T) {
	ca, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "certificates-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := ca.Write(file("cert.pem"), file("key.pem"), "backend.test"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file("ca.pem"), ca.PEM, 0o644); err != nil {
		t.Fatal(err)
	}
	dial, log := dovecottest.Run(t, fmt.Sprintf(`ssl = yes
ssl_cert = <%s
ssl_key = <%s
login_trusted_networks = 127.0.0.0/8
`, file("cert.pem"), file("key.pem")))
	backends, err := secure.OpenBackends(secure.BackendsConfig{CA: file("ca.pem")})
	if err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		name  string
		port  uint16
		start func(net.Conn, upstream.Handshake) (net.Conn, error)
		login loginFunc
	}{
		{"imap", 143, nil, imap.Login},
		{"imap by STARTTLS", 143, func(c net.Conn, h upstream.Handshake) (net.Conn, error) {
			return imap.StartTLS(t.Context(), c, upstream.Limits{}, h)
		}, imap.Login},
		{"pop3", 110, nil, pop3.Login},
		{"pop3 by STLS", 110, func(c net.Conn, h upstream.Handshake) (net.Conn, error) {
			return pop3.StartTLS(t.Context(), c, upstream.Limits{}, h)
		}, pop3.Login},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := dial(tt.port)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if tt.start != nil {
				plain := conn.(*net.TCPConn)
				conn, err = tt.start(conn, func() (net.Conn, error) { return backends.Client(plain, "backend.test", false) })
				if err != nil {
					t.Fatal(err)
				}
			}
			client := netip.MustParseAddrPort(fmt.Sprintf("[2001:db8::%d]:1234", 10+i))
			_, err = tt.login(t.Context(), conn, upstream.Credentials{
				User: "fred", Password: dovecottest.Password, Tag: "a",
				Forward: &upstream.Forward{Client: client, Local: netip.MustParseAddrPort("198.51.100.1:143"), Session: "s1"},
			}, upstream.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if tt.name == "pop3 by STLS" {
				return // it says in its greeting that it believes us, and that is not believed from before TLS
			}
			want := fmt.Sprintf("rip=%v", client.Addr())
			for deadline := time.Now().Add(5 * time.Second); !strings.Contains(log(), want); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("Dovecot does not know the client:\n%s", log())
				}
			}
		})
	}
	conn, err := dial(143)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = imap.StartTLS(t.Context(), conn, upstream.Limits{}, func() (net.Conn, error) { return backends.Client(conn.(*net.TCPConn), "other.test", false) })
	if !secure.Untrusted(err) {
		t.Errorf("a certificate for another name: %v", err)
	}
}

// Real Dovecot's submission, ManageSieve and LMTP, with STARTTLS, and with what they are told of the client.
func TestDovecotServices(t *testing.T) {
	for _, binary := range []string{"submission-login", "managesieve-login", "lmtp"} {
		if _, err := os.Stat("/usr/lib/dovecot/" + binary); err != nil {
			t.Skipf("needs the packages dovecot-submissiond, dovecot-managesieved and dovecot-lmtpd: %v", err)
		}
	}
	ca, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := ca.Write(file("cert.pem"), file("key.pem"), "backend.test"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file("ca.pem"), ca.PEM, 0o644); err != nil {
		t.Fatal(err)
	}
	dial, log := dovecottest.Run(t, fmt.Sprintf(`protocols = imap pop3 lmtp submission sieve
ssl = yes
ssl_cert = <%s
ssl_key = <%s
login_trusted_networks = 127.0.0.0/8
submission_relay_host = 127.0.0.1
service lmtp {
  inet_listener lmtp {
    port = 24
  }
}
service submission-login {
  inet_listener submission {
    port = 587
  }
}
service managesieve-login {
  inet_listener sieve {
    port = 4190
  }
}
`, file("cert.pem"), file("key.pem")))
	backends, err := secure.OpenBackends(secure.BackendsConfig{CA: file("ca.pem")})
	if err != nil {
		t.Fatal(err)
	}
	connect := func(t *testing.T, port uint16, start func(context.Context, net.Conn, upstream.Limits, upstream.Handshake) (net.Conn, error)) net.Conn {
		t.Helper()
		conn, err := dial(port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if start == nil {
			return conn
		}
		secret, err := start(t.Context(), conn, upstream.Limits{}, func() (net.Conn, error) {
			return backends.Client(conn.(*net.TCPConn), "backend.test", false)
		})
		if err != nil {
			t.Fatal(err)
		}
		return secret
	}
	said := func(t *testing.T, want string) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); !strings.Contains(log(), want); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("Dovecot did not say %q:\n%s", want, log())
			}
		}
	}
	for i, tt := range []struct {
		name    string
		port    uint16
		start   func(context.Context, net.Conn, upstream.Limits, upstream.Handshake) (net.Conn, error)
		login   loginFunc
		capable string
	}{
		{"submission", 587, nil, submission.Login, "PIPELINING"},
		{"submission by STARTTLS", 587, submission.StartTLS, submission.Login, "PIPELINING"},
		{"sieve", 4190, nil, sieve.Login, `"SIEVE" "fileinto`},
		{"sieve by STARTTLS", 4190, sieve.StartTLS, sieve.Login, `"SIEVE" "fileinto`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := netip.MustParseAddrPort(fmt.Sprintf("[2001:db8::%d]:1234", 30+i))
			credentials := upstream.Credentials{User: "fred", Password: "wrong", Hello: "client.example", Forward: &upstream.Forward{Client: client, Session: "s1"}}
			_, err := tt.login(t.Context(), connect(t, tt.port, tt.start), credentials, upstream.Limits{})
			var rejected *upstream.Rejected
			if !errors.As(err, &rejected) || rejected.Kind != prelogin.AuthFailed {
				t.Errorf("a wrong password: %v", err)
			}
			credentials.Password = dovecottest.Password
			result, err := tt.login(t.Context(), connect(t, tt.port, tt.start), credentials, upstream.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if all := strings.Join(result.Capabilities, "\n"); !strings.Contains(all, tt.capable) || strings.Contains(all, "STARTTLS") {
				t.Errorf("capabilities:\n%s", all)
			}
			said(t, "rip="+client.Addr().String())
		})
	}
	t.Run("lmtp", func(t *testing.T) {
		for _, start := range []func(context.Context, net.Conn, upstream.Limits, upstream.Handshake) (net.Conn, error){nil, lmtp.StartTLS} {
			c, err := lmtp.Open(t.Context(), connect(t, 24, start), "mx.test", &upstream.Forward{Client: netip.MustParseAddrPort("[2001:db8::40]:1234")}, upstream.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				reply, err := c.Mail(t.Context(), "<s@x>", []string{"BODY=8BITMIME", "SIZE=100"})
				if err != nil || reply.Class() != 2 {
					t.Fatalf("MAIL: %q, %v", reply.Raw, err)
				}
				for _, to := range []string{"<fred@x.test>", "<anna@x.test>"} {
					if reply, err = c.Rcpt(t.Context(), to); err != nil || reply.Class() != 2 {
						t.Fatalf("RCPT: %q, %v", reply.Raw, err)
					}
				}
				if reply, err = c.Data(t.Context()); err != nil || reply.Code != 354 {
					t.Fatalf("DATA: %q, %v", reply.Raw, err)
				}
				if err := c.Write(t.Context(), []byte("Subject: x\r\n\r\n..\r\n.\r\n")); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if reply, err = c.Stored(t.Context()); err != nil || reply.Class() != 2 {
						t.Fatalf("stored: %q, %v", reply.Raw, err)
					}
				}
			}
			if err := c.Quit(); err != nil {
				t.Error(err)
			}
		}
		said(t, "saved mail to INBOX")
	})
}
