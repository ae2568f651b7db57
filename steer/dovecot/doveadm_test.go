package dovecot

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"usher/director/ring"
)

var update = flag.Bool("update", false, "write the golden files anew")

// doveadm runs the real doveadm 2.3 against a socket.
type doveadm struct{ conf, socket string }

func newDoveadm(t *testing.T, socket string) doveadm {
	t.Helper()
	version, err := exec.Command("doveadm", "-c", "/dev/null", "help").CombinedOutput()
	if err != nil && errors.Is(err, exec.ErrNotFound) || !bytes.Contains(version, []byte("director")) {
		t.Skip("there is no doveadm of Dovecot 2.3 here")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "dovecot.conf")
	if err := os.WriteFile(conf, []byte("base_dir = "+dir+"\nlog_path = /dev/stderr\nssl = no\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return doveadm{conf, socket}
}

// run returns what was printed, and the exit code. The socket comes after the command, which is one word
// or, for ring, two.
func (d doveadm) run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var global []string
	for len(args) > 1 && strings.HasPrefix(args[0], "-") {
		n := 1
		if args[0] == "-f" {
			n = 2
		}
		global, args = append(global, args[:n]...), args[n:]
	}
	words := 1
	if args[0] == "ring" {
		words = 2
	}
	all := append(append(append([]string{"-c", d.conf}, global...), "director"), args[:words]...)
	cmd := exec.Command("doveadm", append(append(all, "-a", d.socket), args[words:]...)...)
	cmd.Env = append(os.Environ(), "TZ=UTC", "COLUMNS=80")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestDoveadmShows compares what people and scripts see with what doveadm printed about a real
// director (admin.md section 3).
func TestDoveadmShows(t *testing.T) {
	d := newToy("127.0.2.1", "127.0.2.2")
	d.user(704933450, "127.0.2.2", 1795435612)
	d.hosts[mustIP("127.0.2.9")] = Host{Host: hostOf("127.0.2.9", "fast", 30), Up: true}
	delete(d.hosts, mustIP("127.0.2.1"))
	d.ring = ringOfTheTranscript(0, [2][5]int64{{0, 91, 413, 162, 1795434608}, {}})
	d.ring.Conns = d.ring.Conns[:1]
	x := newDoveadm(t, listen(t, d))
	users := filepath.Join(t.TempDir(), "users.txt")
	if err := os.WriteFile(users, []byte("user1@x.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, args := range [][]string{
		{"status"}, {"-f", "tab", "status"}, {"-f", "flow", "status"}, {"-f", "json", "status"}, {"-f", "pager", "status"},
		{"status", "user1@x.test"}, {"status", "nobody@x.test"}, {"-f", "tab", "status", "user1@x.test"},
		{"map", "-f", users}, {"map", "-f", users, "127.0.2.2"}, {"-f", "tab", "map", "-f", users}, {"map", "-f", users, "127.0.2.9"},
		{"ring", "status"}, {"-f", "tab", "ring", "status"}, {"dump"},
	} {
		stdout, stderr, code := x.run(t, args...)
		if stderr != "" || code != 0 {
			t.Errorf("%q: exit code %d, stderr %q", args, code, stderr)
		}
		all.WriteString("$ doveadm director " + strings.ReplaceAll(strings.Join(args, " "), users, "users.txt") + "\n")
		all.WriteString(strings.ReplaceAll(stdout, x.socket, "SOCKET") + "\n")
	}
	const path = "testdata/doveadm.txt"
	if *update {
		if err := os.WriteFile(path, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), all.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// TestDoveadmOrders: what doveadm says and returns, and what it makes the director do.
func TestDoveadmOrders(t *testing.T) {
	d := newToy("127.0.2.1", "127.0.2.2")
	d.members[ring9090("127.0.1.2")] = true
	x := newDoveadm(t, listen(t, d))
	for _, c := range []struct {
		args   string
		code   int
		stderr string // without the prefix
		call   string
	}{
		{"-v add 127.0.2.9 30", 0, "Info: 127.0.2.9: OK", "put 127.0.2.9@ 30"},
		{"-v add -t fast 127.0.2.8", 0, "Info: 127.0.2.8: OK", "put 127.0.2.8@fast 100"},
		{"add -t slow 127.0.2.8", 75, "Error: 127.0.2.8: host tag can't be changed", ""},
		{"add 127.0.2.9 1001", 75, "Error: 127.0.2.9: vhost count too large", ""},
		{"update 127.0.2.9 40", 0, "", "put 127.0.2.9@ 40"},
		{"update 127.0.2.99 40", 75, "Error: 127.0.2.99: doesn't exist", ""},
		{"-v down 127.0.2.9", 0, "Info: 127.0.2.9: down", "up 127.0.2.9 false"},
		{"-v up 127.0.2.9", 0, "Info: 127.0.2.9: up", "up 127.0.2.9 true"},
		{"up 127.0.2.99", 68, "Error: 127.0.2.99: doesn't exist", ""},
		{"-v remove 127.0.2.9", 0, "Info: 127.0.2.9: removed", "remove 127.0.2.9"},
		{"remove 127.0.2.9", 68, "Error: 127.0.2.9: doesn't exist", ""},
		{"-v move user1@x.test 127.0.2.1", 0, "Info: User hash 704933450 moved to 127.0.2.1", "move 704933450 127.0.2.1"},
		{"move user1@x.test 127.0.2.2", 75, "Error: User is already being moved, wait a while for it to be finished", ""},
		{"move user1@x.test 127.0.2.99", 68, "Error: Host '127.0.2.99' doesn't exist", ""},
		{"-v kick user1@x.test", 0, "Info: User user1@x.test kicked", "kick user1@x.test"},
		{"kick -f user_uid 4711", 0, "", "kick user_uid=4711"},
		{"-v flush 127.0.2.1", 0, "Info: 127.0.2.1: flushed", "flush 127.0.2.1 0"},
		{"flush --max-parallel 5 127.0.2.1", 0, "", "flush 127.0.2.1 5"},
		{"flush 127.0.2.99", 68, "Warning: 127.0.2.99: doesn't exist", ""},
		{"-v flush all", 0, "Info: flushed", "flush invalid IP 0"},
		{"flush -F 127.0.2.1", 0, "", "forget 127.0.2.1"},
		{"flush -F all", 0, "", "forget invalid IP"},
		{"ring add 127.0.1.9", 0, "", "ring add 127.0.1.9:9090"},
		{"ring remove 127.0.1.2 9090", 0, "", "ring remove 127.0.1.2:9090"},
		{"ring remove 127.0.1.77", 68, "Error: Not found", ""},
	} {
		t.Run(c.args, func(t *testing.T) {
			before := len(d.done())
			_, stderr, code := x.run(t, strings.Fields(c.args)...)
			if _, text, ok := strings.Cut(stderr, "doveadm: "); ok {
				stderr = text // log_path gives the lines a time and a name
			}
			if code != c.code || strings.TrimSpace(stderr) != c.stderr {
				t.Errorf("exit code %d, stderr %q", code, stderr)
			}
			if got := strings.Join(d.done()[before:], "\n"); got != c.call {
				t.Errorf("did %q, want %q", got, c.call)
			}
		})
	}
}

// TestDoveadmHearsOfSilence: the operator is told at once what keeps the ring from agreeing.
func TestDoveadmHearsOfSilence(t *testing.T) {
	d := newToy("127.0.2.1")
	d.unsync = true
	d.ring = ring.Status{Handshaked: true, Synced: true, Silent: ringSilent("127.0.1.2")}
	_, stderr, code := newDoveadm(t, listen(t, d)).run(t, "down", "127.0.2.1")
	if code != 75 || !strings.Contains(stderr, "127.0.2.1: Ring sync timed out: director 127.0.1.2:9090 does not answer; the change has been made here") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}
