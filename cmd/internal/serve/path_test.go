package serve

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"usher/cmd/internal/config"
	"usher/steer/auth"
	authdovecot "usher/steer/auth/dovecot"
	"usher/steer/auth/httphook"
	"usher/steer/auth/penalty"
	"usher/steer/prelogin"
	"usher/steer/sasl"
	"usher/testenv/pki"
)

// The defaults stand in the configuration, for people, and where they are used.
func TestDefaultsAgree(t *testing.T) {
	cfg := config.Default()
	if diff := cmp.Diff(prelogin.DefaultLimits(), limits(cfg.Limits)); diff != "" {
		t.Errorf("limits (-prelogin +config):\n%s", diff)
	}
	u := cfg.Auth.UnknownUsers
	got := []penalty.Rate{{PerSecond: float64(u.PerAddress), Burst: u.PerAddressBurst}, {PerSecond: float64(u.Total), Burst: u.TotalBurst}}
	if diff := cmp.Diff([]penalty.Rate{penalty.DefaultPerAddress, penalty.DefaultTotal}, got); diff != "" {
		t.Errorf("unknown users (-penalty +config):\n%s", diff)
	}
	if got := cfg.Auth.FailureDelay.Std(); got != penalty.DefaultFailureDelay {
		t.Errorf("failure_delay is %v, want %v", got, penalty.DefaultFailureDelay)
	}
}

// No delay is 0 in the configuration, and not the default.
func TestFailureDelayOff(t *testing.T) {
	cfg := config.Default().Auth
	cfg.FailureDelay = 0
	a, err := newPenalty(cfg).Begin(t.Context(), netip.MustParseAddr("192.0.2.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.End()
	began := time.Now()
	if err := a.Failed(t.Context(), prelogin.Login{User: "fred", Mechanism: sasl.Mechanisms[0]}, prelogin.AuthFailed, 0); err != nil || time.Since(began) > time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestNewAuth(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	users, header := write("users", "fred:{PLAIN}x\n"), write("header", "# key\n\nX-Auth-Key: a b \nX-Other:c\n")
	for _, c := range []struct {
		name string
		cfg  config.Auth
		want auth.Driver // of this type
		err  string
	}{
		{"static", config.Auth{Driver: "static", NoPassword: true}, auth.Static{}, ""},
		{"passwd-file", config.Auth{Driver: "passwd-file", File: users}, &auth.PasswdFile{}, ""},
		{"dovecot", config.Auth{Driver: "dovecot", LoginSocket: "/l"}, &authdovecot.Auth{}, ""},
		{"http", config.Auth{Driver: "http", URL: "http://127.0.0.1/", HeaderFile: header}, &httphook.Hook{}, ""},
		{"no file", config.Auth{Driver: "passwd-file", File: dir + "/none"}, nil, "none"},
		{"no header", config.Auth{Driver: "http", URL: "http://127.0.0.1/", HeaderFile: dir + "/none"}, nil, "auth.header_file"},
		{"header that is none", config.Auth{Driver: "http", URL: "http://127.0.0.1/", HeaderFile: write("bad", "a: b\nsesame\n")}, nil, "line 2"},
		{"reserved header", config.Auth{Driver: "http", URL: "http://127.0.0.1/", HeaderFile: write("reserved", "Auth-User: joe\n")}, nil, "Auth-User"},
		{"no master password", config.Auth{Driver: "passwd-file", File: users, MasterUser: "m", MasterPasswordFile: dir + "/none"}, nil, "auth.master_password_file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := newAuth(c.cfg, zerolog.Nop())
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "sesame") {
					t.Errorf("error %v, want one with %q and without the secret", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if have, want := fmt.Sprintf("%T", got), fmt.Sprintf("%T", c.want); have != want {
				t.Errorf("driver %s, want %s", have, want)
			}
		})
	}
	got, err := readHeader(header)
	if diff := cmp.Diff(map[string][]string{"X-Auth-Key": {"a b"}, "X-Other": {"c"}}, map[string][]string(got)); err != nil || diff != "" {
		t.Errorf("header %v (-want +got):\n%s", err, diff)
	}
}

// A client that asks for another name is shown its certificate, and one with an old TLS is refused.
func TestOpenTLS(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	ca, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one.example", "two.example"} {
		if err := ca.Write(file(name+".pem"), file(name+".key"), name); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config.Default()
	cfg.TLS = config.TLS{
		Certificate: file("one.example.pem"), Key: file("one.example.key"), MinVersion: "1.3", BackendCA: "insecure",
		Pairs: []config.Pair{{Certificate: file("two.example.pem"), Key: file("two.example.key")}},
	}
	certificates, backends, err := openTLS(cfg, zerolog.Nop())
	if err != nil || certificates != nil || backends == nil {
		t.Fatalf("without a listener: %v, %v, %v; want backends alone", certificates, backends, err)
	}
	cfg.Listeners = []config.Listener{{Protocol: "imap", TLS: "starttls"}}
	if certificates, _, err = openTLS(cfg, zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	handshake := func(name string, most uint16) error {
		client, server := net.Pipe()
		defer client.Close()
		go func() {
			defer server.Close()
			_ = tls.Server(server, certificates.Server("imap")).Handshake()
		}()
		return tls.Client(client, &tls.Config{RootCAs: ca.Pool, ServerName: name, MaxVersion: most}).Handshake()
	}
	for _, name := range []string{"one.example", "two.example"} {
		if err := handshake(name, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := handshake("one.example", tls.VersionTLS12); err == nil {
		t.Error("TLS 1.2 is spoken although min_version is 1.3")
	}
	cfg.TLS.Key = file("two.example.key")
	if _, _, err := openTLS(cfg, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "one.example.pem") {
		t.Errorf("a key of another certificate: %v", err)
	}
}
