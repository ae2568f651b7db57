package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/config"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC)

// site is a fake daemon with two hosts and two users, one of whom is up to no good.
type site struct{ calls []string }

func (*site) Status() admin.Status {
	return admin.Status{
		Director: admin.DirectorStatus{Name: "mail1", UptimeS: 273900, Users: 2, Version: "v0.1.0"},
		Hosts: []admin.HostStatus{
			{Address: netip.MustParseAddr("10.2.0.11"), Name: "be1.example", Weight: 100, Up: true, Users: 1, Sessions: 1204},
			{Address: netip.MustParseAddr("fd00::12"), Tag: "eu", Weight: 50, Users: 1},
		},
		Sessions: admin.SessionCounts{Total: 1210, TC: 1200, Splice: 3, Copy: 1, Prelogin: 6},
		Kernel:   admin.KernelStatus{Mode: "tc", Reason: "xdp: the interface has no native XDP", Flows: 2400, Packets: 987654321, Bytes: 1 << 40, Program: "usher_tc 1f2e3d4c"},
	}
}

func (*site) Map() []admin.MapEntry {
	at := now.Add(12*time.Minute + 30*time.Second)
	return []admin.MapEntry{
		{Hash: 704933450, Users: []string{"alice@example", "ALICE@example"}, Host: netip.MustParseAddr("10.2.0.11"), Sessions: 2},
		{Hash: 5, Users: []string{"evil\x1b[2J"}, Tag: "eu", Host: netip.MustParseAddr("fd00::12"), ExpiresAt: &at},
		{Hash: 4294967295, Host: netip.MustParseAddr("fd00::12"), Moving: true},
	}
}

func (*site) User(name string) (admin.User, error) {
	switch name {
	case "alice@example":
		return admin.User{
			User: name, Hash: 704933450, Host: netip.MustParseAddr("10.2.0.11"), HashedHost: netip.MustParseAddr("fd00::12"),
			Names: []string{"ALICE@example", name}, Epoch: 3, LastRefresh: now,
			Sessions: []admin.Session{
				{Client: netip.MustParseAddrPort("10.1.0.5:50123"), Backend: netip.MustParseAddrPort("10.2.0.11:143"), Protocol: "imap", Mode: "tc",
					Since: now.Add(-90 * time.Minute), BytesIn: 700, BytesOut: 123456789, ID: "a1", User: name, State: "spliced"},
				{Client: netip.MustParseAddrPort("[fd00::5]:40000"), Backend: netip.MustParseAddrPort("10.2.0.11:110"), Protocol: "pop3", Mode: "splice",
					Since: now.Add(-5 * time.Second), ID: "a2", User: "ALICE@example", State: "relaying", Reason: "timestamps on one leg only"},
			},
		}, nil
	case "idle":
		at := now.Add(45 * time.Second)
		return admin.User{User: name, Hash: 7, Tag: "eu", Host: netip.MustParseAddr("10.2.0.11"), HashedHost: netip.MustParseAddr("10.2.0.11"), ExpiresAt: &at}, nil
	}
	return admin.User{}, fmt.Errorf("%w %q", admin.ErrUnknownUser, name)
}

func (*site) Flows() ([]admin.FlowInfo, error) {
	flow := admin.FlowInfo{User: "alice@example", Client: netip.MustParseAddrPort("10.1.0.5:50123"), Backend: netip.MustParseAddrPort("10.2.0.11:143"),
		Mode: "tc", Packets: 12, Bytes: 700, IdleS: 61.5, State: "forward", Direction: "in", Hash: 704933450, Epoch: 3}
	back := flow
	back.Packets, back.Bytes, back.IdleS, back.Direction = 90000, 123456789, 0.25, "out"
	return []admin.FlowInfo{flow, back}, nil
}

func (s *site) Move(_ context.Context, user, host string) error {
	if host == "10.9.9.9" {
		return fmt.Errorf("%w 10.9.9.9", admin.ErrUnknownHost)
	}
	s.calls = append(s.calls, "move "+user+" "+host)
	return nil
}

func (s *site) Kick(_ context.Context, user string) error {
	s.calls = append(s.calls, "kick "+user)
	return nil
}

func (s *site) HostSet(_ context.Context, address string, weight *int, up *bool) error {
	call := "host " + address
	if weight != nil {
		call += fmt.Sprint(" weight ", *weight)
	}
	if up != nil {
		call += fmt.Sprint(" up ", *up)
	}
	s.calls = append(s.calls, call)
	return nil
}

// daemon serves s on a real socket until the test ends.
func daemon(t *testing.T, s *site) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "admin.sock")
	server, err := admin.Listen(admin.Config{Socket: socket, Source: s, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// run runs one command and returns what it said. change may set hooks.
func run(socket string, change func(*Env), args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	env := Env{
		Stdout: &out, Stderr: &errs,
		Getenv: func(name string) string {
			if name == socketEnv {
				return socket
			}
			return ""
		},
		Now:     func() time.Time { return now },
		Version: "v0.1.0",
	}
	if change != nil {
		change(&env)
	}
	code = Run(env, args)
	return code, out.String(), errs.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", path, diff)
	}
}

func TestOutput(t *testing.T) {
	socket := daemon(t, &site{})
	for _, args := range []string{
		"status", "map", "user alice@example", "user idle", "flows",
	} {
		for _, flag := range []string{"", " --json"} {
			t.Run(args+flag, func(t *testing.T) {
				code, stdout, stderr := run(socket, nil, strings.Fields(args+flag)...)
				if code != 0 || stderr != "" {
					t.Errorf("exit code %d, stderr %q", code, stderr)
				}
				extension := ".txt"
				if flag != "" {
					extension = ".json"
				}
				golden(t, strings.ReplaceAll(args, " ", "-")+extension, stdout)
			})
		}
	}
}

func TestCommandsReachTheDaemon(t *testing.T) {
	s := &site{}
	socket := daemon(t, s)
	for _, c := range []struct{ args, stdout string }{
		{"move u h", "u is on h now\n"},
		{"kick u", "the sessions of u are ended\n"},
		{"host set h --weight 0", "h has weight 0 now\n"},
		{"host up h", "h is up now\n"},
		{"host down h --json", "{\n  \"ok\": true\n}\n"},
	} {
		if code, stdout, stderr := run(socket, nil, strings.Fields(c.args)...); code != 0 || stdout != c.stdout {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", c.args, code, stdout, stderr)
		}
	}
	want := []string{"move u h", "kick u", "host h weight 0", "host h up true", "host h up false"}
	if diff := cmp.Diff(want, s.calls); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestHelp(t *testing.T) {
	var all strings.Builder
	for _, args := range []string{
		"", "serve", "status", "map", "user", "flows", "move", "kick", "host", "host set", "host up", "host down",
		"probe", "config", "config check", "unpin", "demo", "version",
	} {
		command := append(strings.Fields(args), "--help")
		code, stdout, stderr := run("/from/the/environment", nil, command...)
		if code != 0 || stderr != "" {
			t.Errorf("%q: exit code %d, stderr %q", command, code, stderr)
		}
		fmt.Fprintf(&all, "==== usher %s\n%s\n", strings.Join(command, " "), stdout)
	}
	golden(t, "help.txt", all.String())
}

func TestExitCodes(t *testing.T) {
	socket := daemon(t, &site{})
	nobody := filepath.Join(t.TempDir(), "admin.sock")
	for _, c := range []struct {
		args   string
		socket string
		code   int
		stderr string
	}{
		{"version", nobody, 0, ""},
		{"status --socket " + socket, nobody, 0, ""},
		{"user nobody", socket, 1, `usher: unknown user "nobody"`},
		{"move u 10.9.9.9", socket, 1, "usher: unknown host 10.9.9.9"},
		{"serve --config testdata/not-there.toml", socket, 1, "testdata/not-there.toml"},
		{"config check testdata/not-there.toml", socket, 1, "testdata/not-there.toml"},
		{"unpin", socket, 1, "usher: a daemon answers on " + socket + ": stop it first"},
		{"", socket, 2, "which command?"},
		{"stauts", socket, 2, `unknown command "stauts"`},
		{"status now", socket, 2, `unknown command "now"`},
		{"--loud", socket, 2, "unknown flag: --loud"},
		{"status --json=perhaps", socket, 2, "invalid argument"},
		{"move u", socket, 2, "accepts 2 arg(s), received 1"},
		{"host", socket, 2, "usher host set|up|down"},
		{"host explode", socket, 2, `unknown command "explode"`},
		{"host set h", socket, 2, `required flag(s) "weight" not set`},
		{"host set h --weight -1", socket, 2, "must not be negative"},
		{"demo --for 0s", socket, 2, "must be more than nothing"},
		{"status", nobody, 3, "usher: the daemon cannot be reached on " + nobody},
		{"kick u", nobody, 3, "usher: the daemon cannot be reached on " + nobody},
	} {
		code, _, stderr := run(c.socket, nil, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stderr, c.stderr) || c.code == 0 && stderr != "" {
			t.Errorf("usher %s: exit code %d, want %d; stderr %q, want %q", c.args, code, c.code, stderr, c.stderr)
		}
		if usage := strings.Contains(stderr, "--help' tells more"); usage != (code == 2) {
			t.Errorf("usher %s: exit code %d, and the way to the help: %v", c.args, code, usage)
		}
	}
}

func TestMissingHooks(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "admin.sock")
	for _, args := range []string{"serve --config testdata/good.toml", "probe", "demo", "unpin"} {
		code, _, stderr := run(nobody, nil, strings.Fields(args)...)
		want := "usher: " + strings.Fields(args)[0] + " is not built into this binary\n"
		if code != 1 || stderr != want {
			t.Errorf("usher %s: exit code %d, stderr %q", args, code, stderr)
		}
	}
}

func TestHooks(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "admin.sock")
	var got []string
	hooks := func(e *Env) {
		e.Serve = func(_ context.Context, cfg *config.Config) error {
			got = append(got, fmt.Sprint("serve ", cfg.Director.Name, " ", cfg.Admin.Socket, " ", cfg.Log.Format))
			return nil
		}
		e.Probe = func(_ context.Context, w io.Writer, asJSON bool) error {
			got = append(got, fmt.Sprint("probe ", asJSON))
			return errors.New("no mode works")
		}
		e.Demo = func(_ context.Context, _ io.Writer, o DemoOptions) error {
			got = append(got, fmt.Sprintf("demo %+v", o))
			return nil
		}
		e.Unpin = func(_ context.Context, path string) error {
			got = append(got, "unpin "+path)
			return nil
		}
	}
	for _, c := range []struct {
		args, call string
		code       int
	}{
		{"serve --config testdata/good.toml", "serve mail1 /run/usher/admin.sock ", 0},
		{"serve --config testdata/good.toml --socket /x/y --json", "serve mail1 /x/y json", 0},
		{"probe --json", "probe true", 1},
		{"demo --for 5s --mode copy", "demo {For:5s Users:200 Sessions:3 Mode:copy Dovecot:false JSON:false}", 0},
		{"unpin --pin-path /p", "unpin /p", 0},
	} {
		got = nil
		code, _, stderr := run(nobody, hooks, strings.Fields(c.args)...)
		if diff := cmp.Diff([]string{c.call}, got); code != c.code || diff != "" {
			t.Errorf("usher %s: exit code %d, stderr %q, calls (-want +got):\n%s", c.args, code, stderr, diff)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	for _, c := range []struct {
		file string
		code int
	}{{"good.toml", 0}, {"bad.toml", 1}, {"future.toml", 0}} {
		for _, flag := range []string{"txt", "json"} {
			args := []string{"config", "check", "testdata/" + c.file}
			if flag == "json" {
				args = append(args, "--json")
			}
			code, stdout, _ := run("/nowhere", nil, args...)
			if code != c.code {
				t.Errorf("%q: exit code %d, want %d", args, code, c.code)
			}
			golden(t, "config-check-"+strings.TrimSuffix(c.file, ".toml")+"."+flag, stdout)
		}
	}
	if code, _, stderr := run("/nowhere", nil, "config", "check", "--strict", "testdata/future.toml"); code != 1 || !strings.Contains(stderr, "cannot be served here") {
		t.Errorf("--strict: exit code %d, stderr %q", code, stderr)
	}
	if code, _, stderr := run("/nowhere", nil, "config", "check", "--strict", "testdata/good.toml"); code != 0 {
		t.Errorf("--strict and a good file: exit code %d, stderr %q", code, stderr)
	}
}

func TestServeRefusesByName(t *testing.T) {
	called := false
	hooks := func(e *Env) {
		e.Serve = func(context.Context, *config.Config) error { called = true; return nil }
	}
	for file, want := range map[string]string{
		"bad.toml":     "testdata/bad.toml:2: director.user_expire: 5s is too low, at least 10s\n",
		"future.toml":  "testdata/future.toml:4: listener[0].protocol: not built yet: \"lmtp\"",
		"missing.toml": "testdata/missing.toml:9: auth.file: stat /not/there: no such file or directory",
	} {
		code, _, stderr := run("/nowhere", hooks, "serve", "--config", "testdata/"+file)
		if code != 1 || called || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, served %v, stderr:\n%s", file, code, called, stderr)
		}
	}
}

func TestText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 900 * time.Millisecond: "0s", 61 * time.Second: "1m 1s", time.Hour: "1h",
		time.Hour + time.Second: "1h", 76 * time.Hour: "3d 4h", 48*time.Hour + time.Minute: "2d",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) is %q, want %q", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 40: "1.0 TiB", 1 << 63: "8192.0 PiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytes(%d) is %q, want %q", n, got, want)
		}
	}
	for s, want := range map[string]string{"jörg@x": "jörg@x", "a\x1b[2J": `"a\x1b[2J"`, "a\nb": `"a\nb"`, "\xff": `"\xff"`, "a\u202eb": `"a\u202eb"`} {
		if got := clean(s); got != want {
			t.Errorf("clean(%q) is %q, want %q", s, got, want)
		}
	}
}
