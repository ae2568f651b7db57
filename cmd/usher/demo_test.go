package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"usher/loader/netns"
	"usher/testenv/dovecot"
)

// demoCommand makes this binary, and what it starts, the usher command. Unlike asCommand it is inherited: the demo
// runs a daemon.
const demoCommand = "USHER_TEST_DEMO"

func init() {
	if os.Getenv(demoCommand) != "" {
		main()
	}
}

// nobody is a user without any right.
const nobody = 65534

// demoRun is one run of `usher demo` in a directory for temporary files of its own.
type demoRun struct {
	t   *testing.T
	cmd *exec.Cmd
	out bytes.Buffer // both outputs
	tmp string
}

// runDemo prepares a run; asNobody without root's rights.
func runDemo(t *testing.T, asNobody bool, args ...string) *demoRun {
	t.Helper()
	// The directories of testing are closed to others, and so is this binary.
	base, err := os.MkdirTemp("", "usher-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	d := &demoRun{t: t, tmp: filepath.Join(base, "tmp")}
	binary := filepath.Join(base, "usher")
	copyFile(t, "/proc/self/exe", binary)
	for _, err := range []error{os.Chmod(base, 0o755), os.Mkdir(d.tmp, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d.cmd = exec.Command(binary, append([]string{"demo"}, args...)...)
	d.cmd.Env = append(os.Environ(), demoCommand+"=1", "TMPDIR="+d.tmp)
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	if asNobody && os.Geteuid() == 0 {
		d.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if err := os.Chown(d.tmp, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// start starts it; it is killed with the test.
func (d *demoRun) start() {
	d.t.Helper()
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), 3*time.Minute)
	stop := context.AfterFunc(ctx, func() { d.cmd.Process.Kill() })
	d.t.Cleanup(func() { stop(); cancel() })
}

// wait waits for its end, compares the exit status, and looks whether anything is left.
func (d *demoRun) wait(exit int) string {
	d.t.Helper()
	d.cmd.Wait()
	out := d.out.String()
	if got := d.cmd.ProcessState.ExitCode(); got != exit {
		d.t.Errorf("exit status %d, want %d; it said:\n%s", got, exit, out)
	}
	files, err := os.ReadDir(d.tmp)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, f := range files {
		d.t.Errorf("file left: %s", f.Name())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		d.t.Fatal(err)
	}
	if strings.Contains(string(mounts), d.tmp) {
		d.t.Errorf("mount left below %s", d.tmp)
	}
	for pid, what := range d.processes() {
		d.t.Errorf("process left: %d %s", pid, what)
	}
	return out
}

// processes finds all that belong to the run: they have its directory in their environment.
func (d *demoRun) processes() map[int]string {
	found := map[int]string{}
	names, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, name := range names {
		env, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(env), "TMPDIR="+d.tmp) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
		found[pid] = strings.ReplaceAll(string(command), "\x00", " ")
	}
	return found
}

// namespaces finds the network namespaces that the run's processes use and we do not.
func (d *demoRun) namespaces() map[string]bool {
	found := map[string]bool{}
	own, _ := os.Readlink("/proc/self/ns/net")
	for pid := range d.processes() {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/net", pid))
		for _, link := range links {
			if ns, err := os.Readlink(link); err == nil && ns != own {
				found[ns] = true
			}
		}
	}
	return found
}

// inOrder looks for parts of the output, one behind the other.
func inOrder(t *testing.T, out string, parts ...string) {
	t.Helper()
	rest := out
	for _, part := range parts {
		_, after, ok := strings.Cut(rest, part)
		if !ok {
			t.Fatalf("no %q in the rest of what it said:\n%s\nThe rest: %s", part, out, rest)
		}
		rest = after
	}
}

func needNamespaces(t *testing.T) {
	t.Helper()
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
}

func TestDemo(t *testing.T) {
	needNamespaces(t)
	d := runDemo(t, false, "--for", "9s", "--users", "40")
	d.start()
	eventually(t, "the namespaces are there", func() bool { return len(d.namespaces()) == 3 })
	// A namespace lives as long as a process or a mount: wait sees that none of either is left. (The numbers
	// of these may be those of another test's by then.)
	out := d.wait(0)
	inOrder(t, out, "network namespaces", "mode tc",
		"▸ log in", "✓ log in", "40 users, 120 sessions", "✓ hand over", "all 120 sessions",
		"▸ move", "✓ move", "3 sessions stopped", "✓ kick", "▸ kill -9", "✓ kill -9", "120 sessions", "no error",
		"✓ restart", "all 120 sessions adopted", "✓ weight 0", "✓ host down", "✓ stop", "✓ unpin", "✓ clean up",
		"packets forwarded", "0 errors", "Everything that was shown was right.")
	if strings.Contains(out, "✗") || strings.Contains(out, "\x1b") {
		t.Errorf("a cross, or an escape sequence though this is no terminal:\n%s", out)
	}
}

// Without any right it is the same show with other endings, and it says why.
func TestDemoUnprivileged(t *testing.T) {
	d := runDemo(t, true, "--for", "8s", "--users", "40")
	d.start()
	out := d.wait(0)
	inOrder(t, out, "loopback interface", "mode splice", "loopback: ", "not permitted", "mode splice: ", "not permitted",
		"✓ log in", "✓ carry", "all 120 sessions in mode splice", "✓ move", "✓ kick",
		"✓ kill -9", "all 120 sessions ended with it", "✓ restart", "same hosts as before, also user007, who was moved",
		"✓ weight 0", "✓ host down", "✓ stop", "✓ clean up", "0 errors", "Everything that was shown was right.")
}

// demoSummary has the fields of --json that scripts are promised.
type demoSummary struct {
	OK       bool   `json:"ok"`
	Mode     string `json:"mode"`
	Reason   string `json:"reason"`
	Sessions int    `json:"sessions"`
	Kernel   struct {
		Packets uint64 `json:"packets"`
	} `json:"kernel"`
	Clients struct {
		Commands uint64 `json:"commands"`
		Errors   int    `json:"errors"`
	} `json:"clients"`
	Acts []struct {
		Name string `json:"name"`
		OK   bool   `json:"ok"`
	} `json:"acts"`
	Error string `json:"error"`
}

func TestDemoJSON(t *testing.T) {
	d := runDemo(t, true, "--for", "4s", "--users", "10", "--sessions", "2", "--json", "--mode", "copy")
	d.start()
	out := d.wait(0)
	var s demoSummary
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v in:\n%s", err, out)
	}
	if !s.OK || s.Mode != "copy" || s.Reason == "" || s.Sessions < 20 || s.Kernel.Packets != 0 ||
		s.Clients.Commands == 0 || s.Clients.Errors != 0 || len(s.Acts) != 10 || s.Error != "" {
		t.Errorf("summary: %+v", s)
	}
}

// A signal in the middle: it says so, fails, and leaves nothing.
func TestDemoInterrupted(t *testing.T) {
	for _, tc := range []struct {
		name     string
		asNobody bool
		signal   syscall.Signal
	}{{"namespaces", false, syscall.SIGINT}, {"loopback", true, syscall.SIGHUP}} {
		t.Run(tc.name, func(t *testing.T) {
			if !tc.asNobody {
				needNamespaces(t)
			}
			d := runDemo(t, tc.asNobody, "--for", "60s", "--users", "20")
			d.start()
			eventually(t, "the daemon serves", func() bool {
				sockets, _ := filepath.Glob(filepath.Join(d.tmp, "usher-site-*", "admin.sock"))
				return len(sockets) == 1
			})
			time.Sleep(500 * time.Millisecond) // so that some act is going on; which one does not matter
			if err := d.cmd.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			inOrder(t, d.wait(1), "stopped by a signal")
		})
	}
}

// What cannot work fails, with a reason, and leaves nothing.
func TestDemoErrors(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"mode", []string{"--mode", "magic"}, `steer.mode: "magic" is not known`},
		{"kernel without rights", []string{"--mode", "tc"}, `steer.mode = "tc"`},
		{"files", []string{"--users", "1000000"}, "open files"},
		{"Dovecot without rights", []string{"--dovecot"}, "real Dovecot needs root"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := runDemo(t, true, append(tc.args, "--for", "5s")...)
			d.start()
			inOrder(t, d.wait(1), tc.want)
		})
	}
}

func TestDemoDovecot(t *testing.T) {
	needNamespaces(t)
	if err := dovecot.Available(); err != nil {
		t.Skip(err)
	}
	d := runDemo(t, false, "--for", "8s", "--users", "20", "--dovecot")
	d.start()
	inOrder(t, d.wait(0), "Dovecot backends", "✓ log in", "✓ move", "✓ kill -9", "✓ restart", "✓ clean up", "Everything that was shown was right.")
}
