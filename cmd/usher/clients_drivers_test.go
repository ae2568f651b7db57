package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/testenv/backend"
	"usher/testenv/dovecot"
	"usher/testenv/lab"
)

// driverSite is a site whose backends know no user's password: the proxy verifies, and logs in as the master user.
func driverSite(t *testing.T, auth string) *clientSite {
	t.Helper()
	x := &clientSite{dir: t.TempDir()}
	master := x.file("master")
	if err := os.WriteFile(master, []byte("key of the master\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	x.Site = newSite(t, site.Options{NoBackends: true, Lab: lab.Options{Family: 4}, Auth: fmt.Sprintf("%s\nmaster_user = \"usher\"\nmaster_password_file = %q", auth, master)})
	x.host = x.Lab.Net(4).Service.String()
	for _, a := range x.Hosts {
		b, err := backend.Start(x.Lab.Backend, a, backend.Options{
			Password: "nobody knows", Master: "usher", MasterPassword: "key of the master", LMTPPort: 24,
		})
		if err != nil {
			t.Fatal(err)
		}
		x.Backends = append(x.Backends, b)
	}
	f, err := os.OpenFile(x.ConfigFile(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "\n[[listener]]\nprotocol = \"lmtp\"\naddress = \"%s:24\"\ntls = \"none\"\n", x.host)
	return x
}

// logIn logs a user in by imaplib, and returns how its session is carried.
func (x *clientSite) logIn(t *testing.T, form, name string) *program {
	t.Helper()
	r := x.command(t, nil, "python3", script(t, "auth.py"), x.host, "143", form, name, "secret")
	r.ready(t)
	return r
}

// deliver sends a mail by LMTP and returns what swaks says.
func (x *clientSite) deliver(t *testing.T, to string) string {
	t.Helper()
	return x.command(t, strings.NewReader(""), "swaks", "--server", x.host, "--port", "24", "--protocol", "LMTP", "--helo", "mx.example",
		"--from", "anna@example.org", "--to", to, "--suppress-data").end(t)
}

// delivered counts the mails at the backend where the user belongs, which must be all there are.
func (x *clientSite) delivered(t *testing.T, name string) (n int) {
	t.Helper()
	for i, b := range x.Backends {
		if here := len(b.Mails()); here > 0 {
			if at := user(t, x.Site, name).Host; at != x.Hosts[i] {
				t.Errorf("%d mails at %v, but user %s belongs to %v", here, x.Hosts[i], name, at)
			}
			n += here
		}
	}
	return n
}

// The passdb and the mechanisms of a real Dovecot.
func TestDriverDovecot(t *testing.T) {
	if err := dovecot.Available(); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "usher-auth-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	x := driverSite(t, fmt.Sprintf("driver = \"dovecot\"\nsocket = %q", filepath.Join(dir, "run/auth-userdb")))
	start(t, x.Site) // before the Dovecot: it may come later
	d, err := dovecot.Start(x.Lab.Director, dir, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, dovecot.Options{
		Password: "secret proxy=y", Extra: "auth_mechanisms = plain login cram-md5\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Dovecot's log:\n%s", d.Log())
		}
		// A process of Dovecot's auth lives for as long as somebody is connected to it.
		if err := errors.Join(x.Stop(), d.Stop()); err != nil {
			t.Error(err)
		}
	})
	for _, form := range []string{"login", "plain", "cram-md5"} {
		t.Run(form, func(t *testing.T) {
			name := form + "@example.org"
			r := x.logIn(t, form, name)
			x.session(t, name, "imap", "kernel")
			r.end(t)
		})
	}
	t.Run("lmtp", func(t *testing.T) {
		x.deliver(t, "mail@example.org")
		if n := x.delivered(t, "mail@example.org"); n != 1 {
			t.Errorf("%d mails, want 1", n)
		}
	})
	for _, b := range x.Backends {
		for _, s := range b.Sessions() {
			if s.Master != "usher" {
				t.Errorf("user %s was logged in at a backend by %q, want the master user", s.User, s.Master)
			}
		}
	}
}

// An endpoint for nginx's auth_http.
func TestDriverHTTP(t *testing.T) {
	key := filepath.Join(t.TempDir(), "header")
	if err := os.WriteFile(key, []byte("# for the endpoint\nX-Auth-Key: sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	x := driverSite(t, fmt.Sprintf("driver = \"http\"\nurl = \"http://127.0.0.1:9000/auth\"\nheader_file = %q\nfailure_delay = \"100ms\"", key))
	l, err := x.Lab.Director.Listen("tcp", "127.0.0.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	fixed := x.Hosts[1].String()
	endpoint := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		name := r.Header.Get("Auth-User")
		switch {
		case r.Header.Get("X-Auth-Key") != "sesame" || r.URL.Path != "/auth":
			w.WriteHeader(http.StatusForbidden)
		case r.Header.Get("Auth-Method") != "none" && r.Header.Get("Auth-Pass") != "secret":
			h.Set("Auth-Status", "Invalid login or password")
			h.Set("Auth-Wait", "1")
		case name == "fixed@example.org":
			h.Set("Auth-Status", "OK")
			h.Set("Auth-Server", fixed)
			h.Set("Auth-Port", "143")
		default:
			h.Set("Auth-Status", "OK")
		}
	})}
	go func() { _ = endpoint.Serve(l) }()
	t.Cleanup(func() { endpoint.Close() })
	start(t, x.Site)
	for _, form := range []string{"login", "plain"} {
		t.Run(form, func(t *testing.T) {
			name := form + "@example.org"
			began := time.Now()
			r := x.logIn(t, form, name)
			if took := time.Since(began); took < time.Second { // Auth-Wait of the wrong password
				t.Errorf("logged in after %v", took)
			}
			x.session(t, name, "imap", "kernel")
			r.end(t)
		})
	}
	t.Run("fixed host", func(t *testing.T) {
		x.logIn(t, "login", "fixed@example.org").end(t)
		eventually(t, "the session has ended", func() bool {
			for _, e := range endings(t, x.Site) {
				if e.User == "fixed@example.org" {
					return e.Mode == "splice" && e.Reason == "bypassed"
				}
			}
			return false
		})
	})
	t.Run("metrics", func(t *testing.T) {
		m := metrics(t, x.Site)
		if n := m["usher_penalty_failed_total"]; n != 3 {
			t.Errorf("usher_penalty_failed_total is %v, want 3", n)
		}
	})
}
