package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
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
	socket := daemon(t, newSite())
	for _, args := range []string{
		"status", "map", "map --host be1.example", "map idle", "user alice@example", "user idle", "flows", "host list", "ring list", "dump",
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

func TestHelp(t *testing.T) {
	var all strings.Builder
	for _, args := range []string{
		"", "serve", "status", "map", "user", "user move", "user kick", "flows",
		"host", "host list", "host add", "host update", "host remove", "host up", "host down", "host drain", "flush",
		"ring", "ring list", "ring add", "ring remove", "dump", "man", "probe", "config", "config check", "unpin", "demo", "version",
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
	socket := daemon(t, newSite())
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
		{"user move u 10.9.9.9", socket, 1, "usher: unknown host: 10.9.9.9"},
		{"user move u be9.example", socket, 1, `usher: unknown host: "be9.example"`},
		{"map idle nobody", socket, 1, "usher: 1 of 2 users without an entry"},
		{"ring remove 10.1.0.99", socket, 1, "usher: unknown director: 10.1.0.99:0"},
		{"serve --config testdata/not-there.toml", socket, 1, "testdata/not-there.toml"},
		{"config check testdata/not-there.toml", socket, 1, "testdata/not-there.toml"},
		{"unpin", socket, 1, "usher: a daemon answers on " + socket + ": stop it first"},
		{"", socket, 2, "which command?"},
		{"stauts", socket, 2, `unknown command "stauts"`},
		{"status now", socket, 2, `unknown command "now"`},
		{"--loud", socket, 2, "unknown flag: --loud"},
		{"status --json=perhaps", socket, 2, "invalid argument"},
		{"user move u", socket, 2, "accepts 2 arg(s), received 1"},
		{"host", socket, 2, "usher host list|add|update|remove|up|down|drain"},
		{"host explode", socket, 2, `unknown command "explode"`},
		{"host update h", socket, 2, "accepts 2 arg(s), received 1"},
		{"host update h much", socket, 2, `"much" is no weight`},
		{"host add 10.2.0.19 --weight -1", socket, 2, "must not be negative"},
		{"host add 10.2.0.300", socket, 2, `"10.2.0.300" is no host`},
		{"host drain h --rate fast", socket, 2, `"fast" is no rate`},
		{"host drain h --wait --stop", socket, 2, "wait stop"},
		{"demo --for 0s", socket, 2, "must be more than nothing"},
		{"status", nobody, 3, "usher: the daemon cannot be reached on " + nobody},
		{"user kick u", nobody, 3, "usher: the daemon cannot be reached on " + nobody},
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
		"future.toml":  "testdata/future.toml:4: listener[0].protocol: not built yet: \"doveadm\"",
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
