package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"usher/steer/prelogin"
	"usher/steer/upstream"
)

// Hashes of "secret", made by doveadm pw of Dovecot 2.3.19.
const (
	hashSHA512   = "{SHA512-CRYPT}$6$5vVUmmpSfZjqIC35$qSike/uxtuZlJMkddZNyYD53JD2qBGpo0dNuHXSdfSiVn.P4iUuY7PdlPdvi1wu2Fg8/c/78V7rLUK6vm0NL5/"
	hashSHA256   = "{SHA256-CRYPT}$5$rounds=5001$k8EV2uk5fpCAnLot$f48X0sngeW.4f2HiGJlGvxCH1FVIpzrBTNlKiBHzvm1"
	hashBlowfish = "{BLF-CRYPT}$2y$05$eBKMK6Lqlm/9QGiZxHLiOuDk73sHqj14rvyWEIkw3.GglqqCsSCOy"
	hashArgon2id = "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$/5vYhRNd5Jf6EWtlxQUVkQ$+jFdBSik3J0UwLUcxtGnEdRqtZRA3frMzABYuzUSPKI"
	hashArgon2i  = "{ARGON2I}$argon2i$v=19$m=32768,t=4,p=1$9NR9sD8rnHYRilFarlMqLA$MdskqdNJk5udtYtDnGYa9CGlW2VICD6fSvjlh2Gsonk"
	hashPBKDF2   = "{PBKDF2}$1$LbtVwU.hh8F.nvuB$5000$5eee27a51389417c3ce63de6e4709c242a4487aa"
	hashCrypt    = "{CRYPT}$2y$05$OEeBpF8hFpRjQ83zZlsnx.jUg4ntc/2Obu9jW5ydSRKVnmXUbOmIS"
)

func TestSchemes(t *testing.T) {
	bare := strings.TrimPrefix(hashSHA512, "{SHA512-CRYPT}")
	for _, field := range []string{hashSHA512, hashSHA256, hashBlowfish, hashArgon2id, hashArgon2i, hashPBKDF2, hashCrypt, bare, "{PLAIN}secret", "{plain}secret"} {
		v, err := parsePassword(field)
		if err != nil {
			t.Errorf("%.20s: %v", field, err)
			continue
		}
		if !v.Match("secret") || v.Match("Secret") {
			t.Errorf("%.20s matches what it should not, or not what it should", field)
		}
	}
	for _, locked := range []string{"", "!", "*", "!" + bare, "{CRYPT}", "{CRYPT}!", "{SHA512-CRYPT}*LK*", "{PBKDF2}"} {
		if v, err := parsePassword(locked); v != nil || err != nil {
			t.Errorf("%.20s: got %v, %v, want a locked account", locked, v, err)
		}
	}
	for _, tt := range []struct{ field, want string }{
		{"secret", "has {PLAIN} in front"},
		{"{PBKDF2}x", "not a password hash"},
		{"{PBKDF2}$2$salt$5000$00", "not a password hash"},
		{strings.Replace(hashPBKDF2, "5000", "2000001", 1), "rounds"},
		{strings.Replace(hashPBKDF2, "5000", "0", 1), "rounds"},
		{hashPBKDF2[:len(hashPBKDF2)-2], "20 bytes"},
		{hashPBKDF2 + "zz", "20 bytes"},
		{"{SSHA}x", "scheme {SSHA} is not supported"},
		{"{PLAIN", "without }"},
		{"{SHA512-CRYPT}" + strings.TrimPrefix(hashBlowfish, "{BLF-CRYPT}"), "not a password hash"},
		{"$1$salt$hash", "not a password hash"},
		{"$y$j9T$salt$hash", "not a password hash"},
		{"$6$salt", "not a password hash"},
		{"$6$salt$", "0 bytes"},
		{"$6$rounds=999$a$b", "from 1000"},
		{"$6$rounds=99999999$a$b", "from 1000"},
		{"$6$rounds=-1$a$b", "from 1000"},
		{strings.Replace(hashBlowfish, "$05$", "$31$", 1), "from 4 to"},
		{strings.Replace(hashBlowfish, "$05$", "$5x$", 1), "from 4 to"},
		{strings.TrimSuffix(hashBlowfish, "y"), "bytes"},
		{strings.Replace(hashArgon2id, "m=65536", "m=99999999", 1), "memory"},
		{strings.Replace(hashArgon2id, "t=3", "t=300", 1), "memory"},
		{strings.Replace(hashArgon2id, "t=3", "t=0", 1), "memory"},
		{strings.Replace(hashArgon2id, "m=65536", "m=0", 1), "memory"},
		{strings.Replace(hashArgon2id, "p=1", "p=0", 1), "memory"},
		{strings.Replace(hashArgon2id, "p=1", "p=999", 1), "memory"},
		{strings.Replace(hashArgon2id, "m=65536,t=3,p=1", "t=3,m=65536,p=1", 1), "want m="},
	} {
		if v, err := parsePassword(tt.field); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.40s: got %v, %v, want an error with %q", tt.field, v, err, tt.want)
		}
	}
}

// open writes a passwd-file and opens it.
func open(t *testing.T, master Master, lines ...string) (*PasswdFile, string, *bytes.Buffer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	save(t, path, lines...)
	var log bytes.Buffer
	p, err := OpenPasswdFile(path, master, zerolog.New(&log))
	if err != nil {
		t.Fatal(err)
	}
	return p, path, &log
}

func save(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

var compareAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func request(user, password string) Request {
	return Request{Protocol: "imap", Login: prelogin.Login{User: user, Password: password, Tag: "a"}}
}

func TestPasswdFile(t *testing.T) {
	master := Master{User: "boss", Password: "m", Separator: "*"}
	own := func(user, password string) upstream.Credentials {
		return upstream.Credentials{User: user, Password: password, Tag: "a"}
	}
	for _, tt := range []struct {
		name   string
		line   string
		user   string
		master Master
		authz  string
		want   Answer
		err    error
	}{
		{name: "plain", line: "fred:{PLAIN}x", want: Answer{User: "fred", Upstream: own("fred", "x")}},
		{name: "name in other case", line: "Fred@Example.org:{PLAIN}x", user: "fREd@example.ORG", want: Answer{User: "Fred@Example.org", Upstream: own("Fred@Example.org", "x")}},
		{name: "all fields", line: "fred:{PLAIN}x:1000:1000:F. R.:/home/fred:/bin/sh:host=fd00::1 port=1143 director_tag=fast userdb_quota=1 proxy=y", want: Answer{User: "fred", Tag: "fast", Host: netip.MustParseAddr("fd00::1"), Port: 1143, Upstream: own("fred", "x")}},
		{name: "another name", line: "fred:{PLAIN}x::::::user=fred@example.org", want: Answer{User: "fred@example.org", Upstream: own("fred@example.org", "x")}},
		{name: "another name at the backend", line: "fred:{PLAIN}x::::::destuser=f user=g pass=y", want: Answer{User: "f", Upstream: own("f", "y")}},
		{name: "master", line: "fred:{PLAIN}x", master: master, want: Answer{User: "fred", Upstream: upstream.Credentials{User: "fred", Password: "x", Tag: "a", MasterUser: "boss", MasterPassword: "m", Separator: "*"}}},
		{name: "maybe means proxy", line: "fred:{PLAIN}x::::::director_proxy_maybe=y proxy_maybe", want: Answer{User: "fred", Upstream: own("fred", "x")}},
		{name: "own master", line: "fred:{PLAIN}x::::::master=admin pass=y", want: Answer{User: "fred", Upstream: upstream.Credentials{User: "fred", Password: "y", Tag: "a", MasterUser: "admin", MasterPassword: "y"}}},
		{name: "own master before the site's", line: "fred:{PLAIN}x::::::master=admin pass=y", master: master, want: Answer{User: "fred", Upstream: upstream.Credentials{User: "fred", Password: "y", Tag: "a", MasterUser: "admin", MasterPassword: "y", Separator: "*"}}},
		{name: "the site's master by name", line: "fred:{PLAIN}x::::::master=boss destuser=f", master: master, want: Answer{User: "f", Upstream: upstream.Credentials{User: "f", Password: "x", Tag: "a", MasterUser: "boss", MasterPassword: "m", Separator: "*"}}},
		{name: "towards the backend", line: "fred:{PLAIN}x::::::host=mail1.example.org hostip=10.2.0.11 ssl=any-cert proxy_timeout=500ms proxy_not_trusted user_uid=7 forward_a=b", want: Answer{
			User: "fred", Upstream: own("fred", "x"), Host: netip.MustParseAddr("10.2.0.11"), HostName: "mail1.example.org",
			TLS: BackendTLS{Mode: "implicit", AnyCert: true}, Timeout: 500 * time.Millisecond, NotTrusted: true,
			Alt: map[string]string{"uid": "7"}, Forward: map[string]string{"a": "b"},
		}},
		{name: "own authzid", line: "fred:{PLAIN}x", authz: "fred", want: Answer{User: "fred", Upstream: own("fred", "x")}},

		{name: "wrong password", line: "fred:{PLAIN}y", err: ErrCredentials},
		{name: "unknown user", line: "anna:{PLAIN}x", err: ErrCredentials},
		{name: "no users", line: "# nobody yet", err: ErrCredentials},
		{name: "locked", line: "fred::::::: \nanna:{PLAIN}x", err: ErrCredentials},
		{name: "nologin", line: "fred:{PLAIN}x::::::nologin", err: ErrDisabled},
		{name: "nologin and wrong password", line: "fred:{PLAIN}y::::::nologin", err: ErrCredentials},
		{name: "for another by separator", line: "fred:{PLAIN}x\nanna:{PLAIN}x", user: "fred*anna", master: master, err: ErrCredentials},
		{name: "separator and nobody", line: "fred:{PLAIN}x", user: "fred*", master: master, err: ErrCredentials},
		{name: "the proxy itself", line: "fred:{PLAIN}x::::::host=10.1.0.1", err: ErrTemporary},
		{name: "for another", line: "fred:{PLAIN}x\nanna:{PLAIN}x", authz: "anna", err: ErrCredentials},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, _, _ := open(t, tt.master, tt.line)
			r := request("fred", "x")
			r.Local = netip.MustParseAddrPort("10.1.0.1:143")
			if tt.user != "" {
				r.Login.User = tt.user
			}
			r.Login.Authzid = tt.authz
			got, err := p.Authenticate(t.Context(), r)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			tt.want.Verified = tt.err == nil
			if diff := cmp.Diff(tt.want, got, compareAddr); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

// Everything wrong is reported at once, by line and name; the passwords are not repeated.
func TestPasswdFileFaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	for _, tt := range []struct{ name, line, want string }{
		{"no password field", "fred", `:1: user "fred": no password field`},
		{"no name", ":{PLAIN}x", `:1: user "": no user name`},
		{"control character", "fred:{PLAIN}x\x01", "control character"},
		{"twice", "fred:{PLAIN}x\n\nFred:{PLAIN}y", `:3: user "Fred": the user was in an earlier line`},
		{"clear text", "fred:topsecret", "{PLAIN} in front"},
		{"master without password", "fred:{PLAIN}x::::::master=boss", "extra field master without pass"},
		{"hostip alone", "fred:{PLAIN}x::::::hostip=10.2.0.11", "extra field hostip without host"},
		{"address of nobody", "fred:{PLAIN}x::::::host=0.0.0.0", "extra field host=0.0.0.0"},
		{"ssl=no", "fred:{PLAIN}x::::::ssl=no", "only yes and any-cert"},
		{"ssl and starttls", "fred:{PLAIN}x::::::ssl=yes starttls=yes", "both ssl and starttls"},
		{"proxy_timeout", "fred:{PLAIN}x::::::proxy_timeout=1day", "no time"},
		{"no timeout", "fred:{PLAIN}x::::::proxy_timeout=0", "not from 1ms"},
		{"director_proxy_maybe=n", "fred:{PLAIN}x::::::director_proxy_maybe=n", "only y is a value"},
		{"unknown proxy field", "fred:{PLAIN}x::::::source_ip=10.0.0.1", "extra field source_ip is not built yet"},
		{"empty pass", "fred:{PLAIN}x::::::pass=", "extra field pass: no value"},
		{"unknown field", "fred:{PLAIN}x::::::allow_nets=10.0.0.0/8", "extra field allow_nets is not built yet"},
		{"field twice", "fred:{PLAIN}x::::::port=1 port=2", "extra field port twice"},
		{"host name", "fred:{PLAIN}x::::::host=mail1", "extra field host=mail1"},
		{"port", "fred:{PLAIN}x::::::port=65536", "extra field port=65536"},
		{"port 0", "fred:{PLAIN}x::::::port=0", "no port"},
		{"nologin=n", "fred:{PLAIN}x::::::nologin=n", "only y is a value"},
		{"empty destuser", "fred:{PLAIN}x::::::destuser=", "no value"},
		{"several", "a:x\nb:{PLAIN}x\nc", ":3:"},
		{"many", strings.Repeat("x\n", 100), ":10:"},
		{"line too long", "fred:{PLAIN}" + strings.Repeat("x", 1<<16), "too long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			save(t, path, tt.line)
			_, err := OpenPasswdFile(path, Master{}, zerolog.Nop())
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), ":11:") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := OpenPasswdFile(path+"x", Master{}, zerolog.Nop()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestPasswdFileReload(t *testing.T) {
	p, path, log := open(t, Master{}, "fred:{PLAIN}x")
	expect := func(step, password string, want error, logged string) {
		t.Helper()
		for range 2 { // the second time nothing may be logged
			if _, err := p.Authenticate(t.Context(), request("fred", password)); !errors.Is(err, want) {
				t.Errorf("%s: got %v, want %v", step, err, want)
			}
		}
		if n := strings.Count(log.String(), "\n"); (n == 1) != (logged != "") || !strings.Contains(log.String(), logged) {
			t.Errorf("%s: log %q", step, log)
		}
		log.Reset()
	}
	expect("as opened", "x", nil, "")
	save(t, path, "fred:{PLAIN}longer")
	expect("another size", "longer", nil, "read again")
	save(t, path, "fred:{PLAIN}lunger")
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	expect("another time", "lunger", nil, "read again")
	save(t, path, "fred:broken")
	expect("broken", "lunger", nil, "not used")
	save(t, path+".new", "fred:{PLAIN}x")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	expect("another file", "x", nil, "read again")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect("gone", "x", nil, "not used")
	save(t, path, "anna:{PLAIN}x")
	expect("back again", "x", ErrCredentials, "read again")
}

// Hashing more at once than there are cores waits, and a login whose time is over stops waiting.
func TestPasswdFileBusy(t *testing.T) {
	p, _, _ := open(t, Master{}, "fred:{PLAIN}x")
	for range cap(p.hashing) {
		p.hashing <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Authenticate(ctx, request("fred", "x")); !errors.Is(err, ErrTemporary) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-p.hashing
	if _, err := p.Authenticate(t.Context(), request("fred", "x")); err != nil {
		t.Error(err)
	}
}

// counter is a verifier that counts how often it had to work.
type counter struct{ calls int }

func (c *counter) Match(string) bool { c.calls++; return false }

// Nobody can tell by the time whether a user exists or is locked: a hash is computed each time.
func TestPasswdFileConstantWork(t *testing.T) {
	p, _, _ := open(t, Master{}, "plain:{PLAIN}x", "locked:!", "fred:"+hashBlowfish, "anna:"+hashSHA512, "pia:"+hashPBKDF2)
	table := p.users.Load()
	if _, cheap := table.decoy.(plain); cheap || table.decoy == nil {
		t.Fatalf("decoy %T, want a hash", table.decoy)
	}
	work := &counter{}
	table.decoy = work
	for i, user := range []string{"unknown", "locked", ""} {
		if _, err := p.Authenticate(t.Context(), request(user, "x")); !errors.Is(err, ErrCredentials) || work.calls != i+1 {
			t.Errorf("%q: %v after %d comparisons", user, err, work.calls)
		}
	}
	if _, err := p.Authenticate(t.Context(), request("fred", strings.Repeat("x", maxPassword+1))); !errors.Is(err, ErrCredentials) {
		t.Errorf("very long password: %v", err)
	}
}

func TestStatic(t *testing.T) {
	host := netip.MustParseAddr("10.2.0.11")
	r := request("boss", "x")
	r.Login.Authzid = "fred"
	got, err := Static{NoPassword: true, Host: host}.Authenticate(t.Context(), r)
	want := Answer{User: "fred", Host: host, Upstream: upstream.Credentials{User: "boss", Password: "x", Authzid: "fred", Tag: "a"}}
	if diff := cmp.Diff(want, got, compareAddr); err != nil || diff != "" {
		t.Errorf("%v, answer (-want +got):\n%s", err, diff)
	}
	if got, err := (Static{NoPassword: true}).Authenticate(t.Context(), request("anna", "x")); err != nil || got.User != "anna" || got.Verified {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := (Static{}).Authenticate(t.Context(), r); !errors.Is(err, ErrTemporary) {
		t.Errorf("without nopassword: %v", err)
	}
}

func TestKind(t *testing.T) {
	for err, want := range map[error]prelogin.Kind{
		ErrCredentials:                   prelogin.AuthFailed,
		fmt.Errorf("x: %w", ErrDisabled): prelogin.PermFail,
		ErrTemporary:                     prelogin.TempFail,
		errors.New("anything"):           prelogin.TempFail,
	} {
		if got := Kind(err); got != want {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
	}
}

// costly finds the hashes that are allowed and would slow down fuzzing.
var costly = regexp.MustCompile(`rounds=\d{5}|PBKDF2|\$2.\$(0[6-9]|1)|m=\d{4}|t=\d{2}`)

// A line either has a fault or gives a user that can be routed and sent to a backend.
func FuzzLine(f *testing.F) {
	for _, line := range []string{
		"fred:{PLAIN}x", "fred:" + hashSHA256, "fred:" + hashBlowfish, "fred:" + hashArgon2i, "fred::1:2:g:h:s:nologin host=::1 port=1 pass=x destuser=f user=g",
		"fred:{PLAIN}x::::::host=a hostip=[::1] ssl=yes proxy_timeout=1min master=m pass=p user_a=b forward_c=d proxy_maybe",
		"fred:" + hashPBKDF2, "fred:$6$rounds=1000$a$b", "fred:$5$$b", "a:$argon2id$v=19$m=8,t=1,p=1$$", ":", "a:{", "a:{PLAIN}::::::proxy=n",
	} {
		f.Add(line, "secret")
	}
	f.Fuzz(func(t *testing.T, line, password string) {
		name, e, err := parseLine(line, "")
		if err != nil {
			return
		}
		answer, err := e.fields.Answer(request(name, "x"), Master{}, e.name)
		switch {
		case err != nil && !errors.Is(err, ErrDisabled):
			t.Errorf("%q was taken, but: %v", line, err)
		case err == nil && (name == "" || answer.User == ""):
			t.Errorf("no user in %q", line)
		case err == nil && answer.Upstream.Check() != nil:
			t.Errorf("%q: %v", line, answer.Upstream.Check())
		}
		if e.password != nil && len(password) < 64 && !costly.MatchString(line) {
			e.password.Match(password) // must not panic, whatever the salt and key are
		}
	})
}
