package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"usher/steer/prelogin"
	"usher/steer/upstream"
)

func TestIdentify(t *testing.T) {
	for _, tt := range []struct {
		name, user, authzid, separator string
		want, master                   string
		err                            bool
	}{
		{name: "alone", user: "fred", separator: "*", want: "fred"},
		{name: "own authzid", user: "fred", authzid: "fred", separator: "*", want: "fred"},
		{name: "authzid", user: "boss", authzid: "fred", separator: "*", want: "fred", master: "boss"},
		{name: "separator", user: "fred*boss", separator: "*", want: "fred", master: "boss"},
		{name: "the first one cuts", user: "fred*boss*x", separator: "*", want: "fred", master: "boss*x"},
		{name: "separator and the same authzid", user: "fred*boss", authzid: "fred", separator: "*", want: "fred", master: "boss"},
		{name: "no separator", user: "fred*boss", want: "fred*boss"},
		{name: "two users", user: "fred*boss", authzid: "anna", separator: "*", err: true},
		{name: "no user", user: "*boss", separator: "*", err: true},
		{name: "no user but an authzid", user: "*boss", authzid: "fred", separator: "*", err: true},
		{name: "no master", user: "fred*", separator: "*", err: true},
		{name: "separator in the authzid", user: "boss", authzid: "fred*anna", separator: "*", err: true},
		{name: "only a separator", user: "*", separator: "*", err: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			user, master, err := Identify(prelogin.Login{User: tt.user, Authzid: tt.authzid}, tt.separator)
			if user != tt.want || master != tt.master || tt.err != errors.Is(err, ErrCredentials) {
				t.Errorf("got %q by %q, %v", user, master, err)
			}
		})
	}
}

// The static driver routes the user before the separator, and the backend gets the name as it came: it has the masters.
func TestStaticSeparator(t *testing.T) {
	s := Static{NoPassword: true, Separator: "*"}
	got, err := s.Authenticate(t.Context(), request("fred*boss", "x"))
	if err != nil || got.User != "fred" || got.Upstream.User != "fred*boss" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := s.Authenticate(t.Context(), request("*boss", "x")); !errors.Is(err, ErrCredentials) {
		t.Errorf("nobody: %v", err)
	}
}

func TestFind(t *testing.T) {
	p, _, _ := open(t, Master{}, "fred:{PLAIN}x::::::director_tag=fast pass=y", "locked:!", "off:{PLAIN}x::::::nologin reason=gone")
	if got, err := p.Find(t.Context(), request("Fred", "")); err != nil || got.User != "fred" || got.Tag != "fast" || got.Upstream.Password != "" {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := p.Find(t.Context(), request("locked", "")); err != nil || got.User != "locked" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := p.Find(t.Context(), request("anna", "")); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
	var refused *Refused
	if _, err := p.Find(t.Context(), request("off", "")); !errors.Is(err, ErrDisabled) || !errors.As(err, &refused) || refused.Text != "gone" {
		t.Errorf("nologin: %v", err)
	}
	if got, err := (Static{}).Find(t.Context(), request("anna", "")); err != nil || got.User != "anna" || got.Verified {
		t.Errorf("static: %+v, %v", got, err)
	}
}

func TestLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                        "",
		"Go away":                 "Go away",
		"a\r\nb OK\x00":           "a??b OK?",
		"caf\xc3\xa9":             "caf??",
		strings.Repeat("x", 1000): strings.Repeat("x", maxText),
	} {
		if got := Line(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestAddress(t *testing.T) {
	for text, want := range map[string]string{
		"10.2.0.11": "10.2.0.11", "fd00::1": "fd00::1", "[fd00::1]": "fd00::1", "::ffff:10.2.0.11": "10.2.0.11",
		"[10.2.0.11]": "", "[fd00::1": "", "fd00::1]": "", "0.0.0.0": "", "::": "", "224.0.0.1": "", "255.255.255.255": "",
		"fe80::1%eth0": "", "mail1": "", "": "", "10.2.0.11:143": "", " 10.2.0.11": "",
	} {
		got, err := Address(text)
		if (err != nil) != (want == "") || err == nil && got.String() != want {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
}

// A site has no limit on names a user may have, a reply does.
func TestFieldsBounded(t *testing.T) {
	var f Fields
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = f.Set("user_"+strings.Repeat("x", i+1), "y")
	}
	if err == nil || len(f.alt) != maxNamed {
		t.Errorf("%d fields, %v", len(f.alt), err)
	}
	if err := f.Set("user", "a\r\nb"); err == nil {
		t.Error("a line end in a name was taken")
	}
}

func TestCredentials(t *testing.T) {
	token := request("fred", "token")
	token.Login.Mechanism, token.Login.Message = "XOAUTH2", "user=fred\x01auth=Bearer token\x01\x01"
	certificate := request("fred", "")
	certificate.Login.Mechanism = "EXTERNAL"
	for _, tt := range []struct {
		name   string
		r      Request
		master Master
		pass   string
		want   upstream.Credentials
		err    bool
	}{
		{name: "the client's", r: request("fred", "x"), want: upstream.Credentials{User: "f", Password: "x", Tag: "a"}},
		{name: "another", r: request("fred", "x"), pass: "y", want: upstream.Credentials{User: "f", Password: "y", Tag: "a"}},
		{name: "token", r: token, want: upstream.Credentials{User: "f", Password: "token", Tag: "a", Mechanism: "XOAUTH2", Message: token.Login.Message}},
		{name: "token as the password", r: token, pass: "token", want: upstream.Credentials{User: "f", Password: "token", Tag: "a", Mechanism: "XOAUTH2", Message: token.Login.Message}},
		{name: "token here, password there", r: token, pass: "y", want: upstream.Credentials{User: "f", Password: "y", Tag: "a"}},
		{name: "certificate", r: certificate, err: true},
		{name: "certificate and password", r: certificate, pass: "y", want: upstream.Credentials{User: "f", Password: "y", Tag: "a"}},
		{name: "certificate and master", r: certificate, master: Master{User: "m", Password: "p"}, want: upstream.Credentials{User: "f", Tag: "a", MasterUser: "m", MasterPassword: "p"}},
		{name: "cannot be said", r: request("fred", "x"), pass: "y\r\n", err: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.master.Credentials(tt.r, "f", tt.pass)
			if tt.err {
				if !errors.Is(err, ErrTemporary) {
					t.Errorf("got %v", err)
				}
			} else if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// A verified certificate stands for the password; one that nobody verified, or none, does not.
func TestCertificate(t *testing.T) {
	p, _, _ := open(t, Master{User: "m", Password: "p"}, "fred:{PLAIN}x", "locked:!")
	r := request("fred", "")
	r.Login.Mechanism = "EXTERNAL"
	for name, tt := range map[string]struct {
		user string
		tls  *tls.ConnectionState
		want error
	}{
		"verified":   {"fred", &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{}}}, nil},
		"unverified": {"fred", &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}}, ErrCredentials},
		"no TLS":     {"fred", nil, ErrCredentials},
		"unknown":    {"anna", &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{}}}, ErrCredentials},
		"locked":     {"locked", &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{}}}, ErrCredentials},
	} {
		r.Login.User, r.TLS = tt.user, tt.tls
		if _, err := p.Authenticate(t.Context(), r); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	if _, err := (Static{NoPassword: true}).Authenticate(t.Context(), r); !errors.Is(err, ErrTemporary) {
		t.Errorf("static: %v", err)
	}
}
