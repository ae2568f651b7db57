package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// good is a small file without any problem, the ground of most tests below.
const good = `[[backend]]
hosts = ["10.2.0.11-10.2.0.13"]
[[listener]]
protocol = "imap"
address = "127.0.0.1:143"
tls = "none"
`

func parse(t *testing.T, text string, environ ...string) *Config {
	t.Helper()
	cfg, err := Parse("usher.toml", []byte(text), environ)
	if err != nil {
		t.Fatalf("unexpected problems:\n%v", err)
	}
	return cfg
}

func TestReferenceFile(t *testing.T) {
	cfg, err := Load("testdata/usher.toml")
	if err != nil {
		t.Fatalf("the reference file must be valid:\n%v", err)
	}
	if host, _ := os.Hostname(); cfg.Director.Name != host {
		t.Errorf("director.name is %q, want the host name %q", cfg.Director.Name, host)
	}
	if got := cfg.Director.UserExpire.Std(); got != 15*time.Minute {
		t.Errorf("director.user_expire is %v", got)
	}
	if cfg.Director.OutputBufferSize != 10<<20 {
		t.Errorf("director.output_buffer_size is %d", cfg.Director.OutputBufferSize)
	}
	if cfg.Backends[0].Health == nil || cfg.Backends[0].Health.Fall != 3 {
		t.Errorf("backend.health is %+v", cfg.Backends[0].Health)
	}
	if ps := cfg.Unbuilt(); len(ps) > 0 {
		t.Errorf("not built: %v", ps)
	}
}

// Every default of the reference file that is a default here, too, must be the same one.
func TestReferenceFileStatesTheDefaults(t *testing.T) {
	reference, err := os.ReadFile("testdata/usher.toml")
	if err != nil {
		t.Fatal(err)
	}
	cfg := parse(t, string(reference))
	want := Default()
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"director", cfg.Director, want.Director},
		{"tls", cfg.TLS, want.TLS},
		{"auth", cfg.Auth, want.Auth},
		{"steer", cfg.Steer, want.Steer},
		{"dovecot", cfg.Dovecot, want.Dovecot},
		{"admin", cfg.Admin, want.Admin},
	} {
		opts := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
			cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
			cmp.Transformer("empty", func(s []string) int { return len(s) }),
			cmp.Transformer("empty", func(s []RingServer) int { return len(s) }),
			cmp.Transformer("empty", func(s []Network) int { return len(s) }),
			cmp.Transformer("empty", func(s []netip.Addr) int { return len(s) }),
			cmp.Transformer("empty", func(s []Pair) int { return len(s) })}
		if diff := cmp.Diff(c.want, c.got, opts); diff != "" {
			t.Errorf("[%s] (-default +reference):\n%s", c.name, diff)
		}
	}
	if diff := cmp.Diff(want.Limits, cfg.Limits); diff != "" {
		t.Errorf("[limits] (-default +reference):\n%s", diff)
	}
	var health Health
	health.setDefaults()
	if diff := cmp.Diff(health, *cfg.Backends[0].Health); diff != "" {
		t.Errorf("[backend.health] (-default +reference):\n%s", diff)
	}
	var l Listener
	l.setDefaults()
	if got := cfg.Listeners[0]; l.TLS != got.TLS || l.BackendTLS != got.BackendTLS || l.MaxConnections != got.MaxConnections || l.DisablePlaintextAuth != got.DisablePlaintextAuth {
		t.Errorf("[[listener]]: default %+v, reference %+v", l, got)
	}
}

func TestSmallFile(t *testing.T) {
	cfg := parse(t, good)
	if got := cfg.Listeners[0].BackendPort; got != 143 {
		t.Errorf("backend_port is %d, want the listener's", got)
	}
	if got := cfg.Backends[0].Weight; got != 100 {
		t.Errorf("weight is %d", got)
	}
	if ps := cfg.Unbuilt(); len(ps) > 0 {
		t.Errorf("not built: %v", ps)
	}
	if ps := cfg.Warnings(); len(ps) > 0 {
		t.Errorf("warnings: %v", ps)
	}
	if ps := cfg.Missing(); len(ps) > 0 {
		t.Errorf("missing files: %v", ps)
	}
}

func TestNoPasswordDependsOnTheDriver(t *testing.T) {
	if !parse(t, good).Auth.NoPassword {
		t.Error("static: nopassword is false by default")
	}
	if parse(t, good+"[auth]\ndriver = \"passwd-file\"\nfile = \"/x\"\n").Auth.NoPassword {
		t.Error("passwd-file: nopassword is true by default")
	}
}

func TestLoginSocketIsBesideTheOther(t *testing.T) {
	for text, want := range map[string]string{
		"socket = \"/run/dovecot/auth-userdb\"":                                              "/run/dovecot/auth-login",
		"socket = \"/run/dovecot/auth-userdb\"\nlogin_socket = \"/run/dovecot/login/login\"": "/run/dovecot/login/login",
		"login_socket = \"/x\"":                                                              "/x",
	} {
		if got := parse(t, good+"[auth]\ndriver = \"dovecot\"\n"+text+"\n").Auth.LoginSocket; got != want {
			t.Errorf("%s: login_socket is %q, want %q", text, got, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	cfg := parse(t, good,
		"USHER_DIRECTOR_NAME=mail1", "USHER_STEER_MODE=copy", "USHER_STEER_MAX_FLOWS=64",
		"USHER_DIRECTOR_USER_EXPIRE=1h", "USHER_STEER_CLSACT=true", "USHER_ADMIN_HTTP=", "USHER_LIMITS_LINE=4K",
		"USHER_SOCKET=/elsewhere", "USHER_UNRELATED_THING=1", "PATH=/bin")
	got := []any{cfg.Director.Name, cfg.Steer.Mode, cfg.Steer.MaxFlows, cfg.Director.UserExpire.String(), cfg.Steer.ClsAct, cfg.Admin.HTTP.IsValid(), cfg.Limits.Line}
	want := []any{"mail1", "copy", 64, "1h", true, false, Size(4096)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMissingFiles(t *testing.T) {
	dir := t.TempDir()
	users := filepath.Join(dir, "users")
	text := strings.Replace(good, `"none"`, `"implicit"`, 1) + `[tls]
certificate = "` + filepath.Join(dir, "cert.pem") + `"
key = "` + users + `"
[[tls.pair]]
certificate = "` + users + `"
key = "` + filepath.Join(dir, "key.pem") + `"
[auth]
driver = "passwd-file"
file = "` + users + `"
`
	if err := os.WriteFile(users, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, p := range parse(t, text).Missing() {
		keys = append(keys, p.Key)
	}
	if diff := cmp.Diff([]string{"tls.certificate", "tls.pair[0].key"}, keys); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	_, err := Load("testdata/not-there.toml")
	if err == nil || !strings.Contains(err.Error(), "testdata/not-there.toml") {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	reference, err := os.ReadFile("testdata/usher.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(reference))
	f.Add(good)
	f.Add("backend = [{hosts = [[1], {a=1}], weight = 1e9}]\n[[backend.health]]\n")
	f.Add("[backend.health]\n[director]\n\"a.b\" = 1\nname.x = 2\n")
	f.Fuzz(func(t *testing.T, text string) {
		cfg, err := Parse("f", []byte(text), nil)
		if (cfg == nil) == (err == nil) {
			t.Fatalf("config %v and error %v", cfg, err)
		}
		if err != nil {
			for _, p := range err.(Problems) {
				if p.Line > 1+strings.Count(text, "\n") {
					t.Fatalf("no such line: %v", p)
				}
			}
			return
		}
		cfg.Unbuilt()
		cfg.Warnings()
	})
}
