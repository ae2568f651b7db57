package dovecot

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"usher/steer/auth"
	"usher/steer/upstream"
)

// discard is a connection that takes everything.
type discard struct{ net.Conn }

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// real is Dovecot 2.3 with nothing but its auth.
type real struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	done chan struct{}
}

const realConf = `
base_dir = DIR/run
state_dir = DIR/state
log_path = DIR/log
protocols =
ssl = no
auth_mechanisms = plain login cram-md5 scram-sha-256 external
auth_master_user_separator = *
auth_failure_delay = 0 secs
auth_ssl_username_from_cert = yes
passdb {
  driver = passwd-file
  master = yes
  pass = yes
  args = DIR/masters
}
passdb {
  driver = passwd-file
  args = DIR/users
}
passdb {
  driver = static
  args = proxy=y nopassword=y
  username_filter = anybody-*
}
userdb {
  driver = passwd-file
  args = DIR/userdb
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
service auth {
  unix_listener auth-userdb {
    mode = 0600
  }
  unix_listener auth-client {
    mode = 0600
  }
}
`

const realUsers = `fred:{PLAIN}x::::::proxy=y
tagged:{PLAIN}x::::::proxy=y director_tag=fast user_uid=4711 forward_foo=bar
fixed:{PLAIN}x::::::proxy=y host=10.2.0.11 port=1143
byname:{PLAIN}x::::::proxy=y host=localhost
dest:{PLAIN}x::::::proxy=y destuser=other@y.test pass=y
maybe:{PLAIN}x::::::proxy_maybe=y
dmaybe:{PLAIN}x::::::proxy_maybe=y director_proxy_maybe=y
withmaster:{PLAIN}x::::::proxy=y master=adm pass=mp
local:{PLAIN}x::::::
disabled:{PLAIN}x::::::proxy=y nologin=y reason=gone
odd:{PLAIN}x::::::proxy=y source_ip=10.0.0.1
certificate:::::::nopassword=y proxy=y pass=y
scram:{PLAIN}x::::::proxy=y pass=y
`

// startReal skips the test where Dovecot 2.3 cannot be started.
func startReal(t *testing.T) *real {
	t.Helper()
	if testing.Short() {
		t.Skip("real Dovecot takes seconds")
	}
	if os.Geteuid() != 0 {
		t.Skip("real Dovecot needs root")
	}
	version, err := exec.Command("/usr/sbin/dovecot", "--version").Output()
	if err != nil || !bytes.HasPrefix(version, []byte("2.3.")) {
		t.Skipf("needs Dovecot 2.3: %s, %v", version, err)
	}
	dir, err := os.MkdirTemp("", "dovecot-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"conf": strings.ReplaceAll(realConf, "DIR", dir), "users": realUsers,
		"masters": "boss:{PLAIN}bp\n", "userdb": "onlyuserdb::1:1::/home\nfred::1:1::/home\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := &real{t: t, dir: dir}
	r.start()
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("dovecot's log:\n%s", log)
		}
	})
	return r
}

func (r *real) start() {
	r.t.Helper()
	r.cmd = exec.Command("/usr/sbin/dovecot", "-F", "-c", filepath.Join(r.dir, "conf"))
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	// A file and no pipe: the end of a pipe would be waited for, and auth outlives its master.
	out, err := os.Create(filepath.Join(r.dir, "out"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	said := func() []byte {
		text, _ := os.ReadFile(out.Name())
		return text
	}
	r.cmd.Stdout, r.cmd.Stderr = out, out
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.done = make(chan struct{})
	go func() {
		r.cmd.Wait()
		close(r.done)
	}()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", r.socket("auth-login"))
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-r.done:
			r.t.Fatalf("dovecot ended: %s", said())
		default:
		}
		if time.Since(begin) > 10*time.Second {
			r.t.Fatalf("dovecot does not start: %v\n%s", err, said())
		}
	}
}

// stop ends the process that start started.
func (r *real) stop() {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.done:
	case <-time.After(10 * time.Second):
		_ = r.cmd.Process.Kill()
		<-r.done
	}
}

// auth returns the number of the auth process, which is in its handshake.
func (r *real) auth() int {
	r.t.Helper()
	c, err := net.Dial("unix", r.socket("auth-userdb"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 256)
	var text string
	for !strings.Contains(text, "SPID") || !strings.HasSuffix(text, "\n") {
		n, err := c.Read(b)
		if err != nil {
			r.t.Fatal(err)
		}
		text += string(b[:n])
	}
	_, number, _ := strings.Cut(text, "SPID\t")
	pid, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil || pid < 2 {
		r.t.Fatalf("handshake %q", text)
	}
	return pid
}

func (r *real) socket(name string) string { return filepath.Join(r.dir, "run", name) }

// realRequest is from a machine whose address auth can look up nothing about.
func realRequest(user, password string) auth.Request {
	r := request23(user, password)
	r.Client, r.Local = netip.MustParseAddrPort("192.0.2.1:5555"), netip.MustParseAddrPort("192.0.2.2:143")
	return r
}

func TestRealDovecot(t *testing.T) {
	t.Parallel()
	dovecot := startReal(t)
	var log bytes.Buffer
	a := driver(t, Config{
		LoginSocket: dovecot.socket("auth-login"), UserSocket: dovecot.socket("auth-userdb"), Timeout: 10 * time.Second, Parallel: 100,
		Master: auth.Master{Separator: "*"}, Log: zerolog.New(&syncWriter{w: &log}),
	})

	t.Run("logins", func(t *testing.T) {
		for _, tt := range []struct {
			user, password, authzid string
			want                    auth.Answer
			err                     error
			text                    string
		}{
			{user: "fred", password: "x", want: auth.Answer{User: "fred", Upstream: own("fred", "x")}},
			{user: "FRED", password: "x", want: auth.Answer{User: "fred", Upstream: own("fred", "x")}},
			{user: "tagged", password: "x", want: auth.Answer{User: "tagged", Tag: "fast", Upstream: own("tagged", "x"), Alt: map[string]string{"uid": "4711"}, Forward: map[string]string{"foo": "bar"}}},
			{user: "fixed", password: "x", want: auth.Answer{User: "fixed", Host: netip.MustParseAddr("10.2.0.11"), Port: 1143, Upstream: own("fixed", "x")}},
			{user: "dest", password: "x", want: auth.Answer{User: "other@y.test", Upstream: own("other@y.test", "y")}},
			{user: "maybe", password: "x", want: auth.Answer{User: "maybe", Upstream: own("maybe", "x")}},
			{user: "dmaybe", password: "x", want: auth.Answer{User: "dmaybe", Upstream: own("dmaybe", "x")}},
			{user: "withmaster", password: "x", want: auth.Answer{User: "withmaster", Upstream: upstream.Credentials{User: "withmaster", Password: "mp", Tag: "a", MasterUser: "adm", MasterPassword: "mp", Separator: "*"}}},
			{user: "odd", password: "x", want: auth.Answer{User: "odd", Upstream: own("odd", "x")}},
			{user: "anybody-1", password: "any\tthing\x01", err: auth.ErrCredentials}, // auth allows no control characters
			{user: "anybody-2", password: "any thing ü%", want: auth.Answer{User: "anybody-2", Upstream: own("anybody-2", "any thing ü%")}},
			// The master user of the login is the one at the backend: auth says so by itself.
			{user: "fred*boss", password: "bp", want: auth.Answer{User: "fred", Upstream: upstream.Credentials{User: "fred", Password: "bp", Tag: "a", MasterUser: "boss", MasterPassword: "bp", Separator: "*"}}},
			{user: "boss", authzid: "fred", password: "bp", want: auth.Answer{User: "fred", Upstream: upstream.Credentials{User: "fred", Password: "bp", Tag: "a", MasterUser: "boss", MasterPassword: "bp", Separator: "*"}}},

			{user: "fred", password: "wrong", err: auth.ErrCredentials},
			{user: "nobody", password: "x", err: auth.ErrCredentials},
			{user: "fred*boss", password: "x", err: auth.ErrCredentials},
			{user: "tagged", authzid: "fred", password: "x", err: auth.ErrCredentials},
			{user: "a\x01\tb\nc", password: "x", err: auth.ErrCredentials},
			{user: "local", password: "x", err: auth.ErrDisabled},
			{user: "disabled", password: "x", err: auth.ErrDisabled, text: "gone"},
			{user: strings.Repeat("x", maxLine), password: "x", err: auth.ErrCredentials},
			{user: strings.Repeat("x", 7<<10), password: "x", err: auth.ErrCredentials},
		} {
			r := realRequest(tt.user, tt.password)
			r.Login.Authzid = tt.authzid
			got, err := a.Authenticate(t.Context(), r)
			if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Errorf("%.20s: got %v, want %v", tt.user, err, tt.err)
				continue
			}
			if err != nil {
				tt.want = auth.Answer{}
			}
			tt.want.Verified = err == nil
			if diff := cmp.Diff(tt.want, got, compareAddr); diff != "" {
				t.Errorf("%.20s: answer (-want +got):\n%s", tt.user, diff)
			}
			var refused *auth.Refused
			if errors.As(err, &refused); refused != nil && refused.Text != tt.text {
				t.Errorf("%.20s: text %q", tt.user, refused.Text)
			}
		}
		if n := strings.Count(log.String(), "source_ip"); n != 1 {
			t.Errorf("source_ip is named %d times in the log: %s", n, log.String())
		}
	})

	t.Run("host by name", func(t *testing.T) {
		got, err := a.Authenticate(t.Context(), realRequest("byname", "x"))
		if err != nil || !got.Host.IsLoopback() || got.HostName != "localhost" {
			t.Errorf("got %+v, %v", got, err)
		}
	})

	// The proxy says that there was a certificate, and whose; auth has the fields of the user.
	t.Run("certificate", func(t *testing.T) {
		r := realRequest("certificate", "")
		r.Login.Mechanism, r.TLS = "EXTERNAL", verified
		got, err := a.Authenticate(t.Context(), r)
		if diff := cmp.Diff(auth.Answer{User: "certificate", Verified: true, Upstream: own("certificate", "y")}, got, compareAddr); err != nil || diff != "" {
			t.Errorf("%v, answer (-want +got):\n%s", err, diff)
		}
	})

	t.Run("look-ups", func(t *testing.T) {
		for user, want := range map[string]any{
			"fred": auth.Answer{User: "fred"}, "tagged": auth.Answer{User: "tagged", Tag: "fast"}, "anybody-3": auth.Answer{User: "anybody-3"},
			"onlyuserdb": auth.Answer{User: "onlyuserdb"}, "fixed": auth.Answer{User: "fixed", Host: netip.MustParseAddr("10.2.0.11"), Port: 1143},
			"nobody": auth.ErrUnknown, "disabled": auth.ErrDisabled, "local": auth.ErrDisabled, "a\tb\nc": auth.ErrUnknown,
			strings.Repeat("x", 2000): auth.ErrUnknown,
		} {
			r := realRequest(user, "")
			r.Protocol = "lmtp"
			got, err := a.Find(t.Context(), r)
			switch want := want.(type) {
			case error:
				if !errors.Is(err, want) {
					t.Errorf("%.20q: got %v, want %v", user, err, want)
				}
			case auth.Answer:
				if err != nil || got.User != want.User || got.Tag != want.Tag || got.Host != want.Host || got.Port != want.Port || got.Upstream.Password != "" {
					t.Errorf("%.20q: got %+v, %v, want %+v", user, got, err, want)
				}
			}
		}
	})

	t.Run("mechanisms", func(t *testing.T) {
		all, err := a.Mechanisms(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]bool{"PLAIN": true, "LOGIN": true, "CRAM-MD5": false, "SCRAM-SHA-256": false, "EXTERNAL": false}
		for _, m := range all {
			if plaintext, ok := want[m.Name]; !ok || plaintext != m.Plaintext {
				t.Errorf("%+v", m)
			}
			delete(want, m.Name)
		}
		if len(want) > 0 {
			t.Errorf("missing: %v", want)
		}
	})
	t.Run("relayed", func(t *testing.T) { relayed(t, a) })

	// All at once, on few connections; then again while auth is restarted.
	t.Run("many", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				user := fmt.Sprintf("anybody-%d", i)
				if got, err := a.Authenticate(t.Context(), realRequest(user, "x")); err != nil || got.User != user {
					t.Errorf("%s: %+v, %v", user, got, err)
				}
				r := realRequest(user, "")
				if got, err := a.Find(t.Context(), r); err != nil || got.User != user {
					t.Errorf("%s: %+v, %v", user, got, err)
				}
			})
		}
		wg.Wait()
	})
	// After a reload the old auth stays for those who are connected.
	t.Run("reload", func(t *testing.T) {
		conf := filepath.Join(dovecot.dir, "conf")
		text, err := os.ReadFile(conf)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.Replace(text, []byte("args = proxy=y"), []byte("args = director_tag=new proxy=y"), 1)
		if err := os.WriteFile(conf, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := dovecot.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		a.login.maxAge = 100 * time.Millisecond
		tag := ""
		for begin := time.Now(); tag != "new" && time.Since(begin) < 5*time.Second; time.Sleep(50 * time.Millisecond) {
			got, err := a.Authenticate(t.Context(), realRequest("anybody-4", "x"))
			if err != nil {
				t.Errorf("during a reload: %v", err)
			}
			tag = got.Tag
		}
		if tag != "new" {
			t.Error("the old auth still answers")
		}
	})
	t.Run("restart", func(t *testing.T) {
		pid := dovecot.auth()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for range 10 { // whatever was on its way, and the master starts another one
			if _, err := a.Authenticate(t.Context(), realRequest("fred", "x")); err != nil {
				t.Errorf("auth was killed: %v", err)
			}
		}
		if now := dovecot.auth(); now == pid {
			t.Error("auth was not killed")
		}
		a.Close() // Dovecot waits for half a minute until all have left
		dovecot.stop()
		if _, err := a.Authenticate(t.Context(), realRequest("fred", "x")); !errors.Is(err, auth.ErrTemporary) {
			t.Errorf("without Dovecot: %v", err)
		}
		dovecot.start()
		time.Sleep(dialTime)
		if _, err := a.Authenticate(t.Context(), realRequest("fred", "x")); err != nil {
			t.Errorf("Dovecot is back: %v", err)
		}
		if _, err := a.Find(t.Context(), realRequest("fred", "")); err != nil {
			t.Errorf("Dovecot is back: %v", err)
		}
	})
}

// On a socket for auth alone, Dovecot gives no password for the backend: the client's own one is used.
func TestRealAuthOnly(t *testing.T) {
	t.Parallel()
	dovecot := startReal(t)
	a := driver(t, Config{LoginSocket: dovecot.socket("auth-client")})
	got, err := a.Authenticate(t.Context(), realRequest("fred", "x"))
	if err != nil || got.Upstream != own("fred", "x") {
		t.Errorf("got %+v, %v", got, err)
	}
}
