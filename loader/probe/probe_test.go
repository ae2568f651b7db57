package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"usher/loader"
	"usher/loader/netns"
)

// childEnv makes the test binary a probe: it prints the result as JSON.
const childEnv = "USHER_PROBE_CHILD"

// ample: many tests may share the machine.
const ample = time.Minute

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := Print(context.Background(), os.Stdout, true, Options{Timeout: ample}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
}

// state is what a probe must not change: what hangs on the machine's interfaces. (Other tests may run meanwhile,
// on interfaces of their own.)
func state(t *testing.T) string {
	t.Helper()
	links, err := loader.RoutedLinks()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, l := range links {
		a := l.Attrs()
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, a.Name, a.MTU, a.Flags, a.Xdp != nil && a.Xdp.Attached, qdiscs)
		for _, f := range []netns.Feature{netns.TSO, netns.GSO, netns.TxChecksum, netns.GRO} {
			on, err := (*netns.NS)(nil).Feature(a.Name, f)
			fmt.Fprintln(&b, f, on, err)
		}
	}
	return b.String()
}

// kept counts what namespaces and private file systems are held by.
func kept() int {
	n := 0
	for _, pattern := range []string{"/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
		own, _ := os.Readlink("/proc/self/ns/net")
		paths, _ := filepath.Glob(pattern)
		for _, p := range paths {
			to, err := os.Readlink(p)
			if err == nil && to != own && (strings.HasPrefix(to, "net:") || strings.Contains(to, "bpf")) {
				n++
			}
		}
	}
	return n
}

func TestEveryModeWorks(t *testing.T) {
	needRoot(t)
	before := state(t)
	r := Run(t.Context(), Options{Timeout: ample})
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d ms\n%s", r.TookMS, text.String())
	if len(r.Modes) != 5 {
		t.Fatalf("%d modes, want 5", len(r.Modes))
	}
	for _, m := range r.Modes {
		if !m.Works || m.State != Works || m.Reason != "" {
			t.Errorf("mode %s %s: %s: %s", m.Mode, m.Attach, m.State, m.Reason)
			continue
		}
		kernel := m.Attach != ""
		if kernel && len(m.Trials) != 2 || len(m.Trials) == 0 {
			t.Errorf("mode %s %s: trials %+v, want both IP versions", m.Mode, m.Attach, m.Trials)
		}
		for _, x := range m.Trials {
			if x.Bytes != 2*through || kernel != (x.Packets > 0) {
				t.Errorf("mode %s %s: trial %+v, want %d bytes", m.Mode, m.Attach, x, 2*through)
			}
		}
	}
	for _, c := range r.Checks {
		if c.State != Works && len(c.Needed) > 0 {
			t.Errorf("check %s: %s: %s", c.Name, c.State, c.Detail)
		}
	}
	if r.Load.State != Works || len(r.Load.Programs) != 4 || r.Load.MS <= 0 {
		t.Errorf("load: %+v", r.Load)
	}
	for _, p := range r.Load.Programs {
		if p.Verified == 0 || p.Verified > 1_000_000 {
			t.Errorf("program %s: %d verified instructions", p.Name, p.Verified)
		}
	}
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	// Only a machine with a routed Ethernet interface can have the kernel path.
	if slices.ContainsFunc(r.Interfaces, func(i Interface) bool { return i.Used }) && (r.Auto.Mode != ModeTC || r.Auto.Attach == "") {
		t.Errorf("auto: %+v, want tc", r.Auto)
	}
	if after := state(t); after != before {
		t.Errorf("the machine was changed: before\n%s\nafter\n%s", before, after)
	}
	for end := time.Now().Add(5 * time.Second); kept() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d namespaces or file systems are still held", kept())
		}
	}
}

// A trial that cannot fail proves nothing: without its settings, veth loses what XDP redirects.
func TestTrialFails(t *testing.T) {
	needRoot(t)
	s, err := newSite(false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	m := s.try(t.Context(), Mode{Mode: ModeXDP, Attach: AttachDriver})
	if m.State != Fails || !strings.Contains(m.Reason, "through the kernel") {
		t.Errorf("XDP on plain veth: %+v, want a failure in the kernel's part", m)
	}
	t.Log(m.Reason)
}

// flip is a connection that changes one byte of what is read from it.
type flip struct {
	net.Conn
	at int
}

func (f *flip) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if f.at >= 0 && f.at < n {
		b[f.at] ^= 1
	}
	f.at -= n
	return n, err
}

func TestExchangeCompares(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pair := func() (net.Conn, net.Conn) {
		a, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close(); b.Close() })
		return a, b
	}
	a, b := pair()
	if n, err := exchange(a, b, 1<<20); n != 2<<20 || err != nil {
		t.Errorf("plain: %d, %v", n, err)
	}
	a, b = pair()
	if _, err := exchange(a, &flip{b, 70_000}, 1<<20); err == nil || !strings.Contains(err.Error(), "to the backend: 1048576 bytes arrived, but other ones") {
		t.Errorf("one bit changed: %v", err)
	}
	a, b = pair()
	if err := b.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := exchange(a, b, 1<<10); !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "to the client: 0 of 1024") {
		t.Errorf("cut: %v", err)
	}
}

// child runs the probe in a process of another user with the given capabilities.
func child(t *testing.T, caps ...uintptr) *Result {
	t.Helper()
	needRoot(t)
	// Where the test binary is, nobody else may look.
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "probe.test")
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir = "/"
	cmd.Env = []string{childEnv + "=1"}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: caps}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var r Result
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d ms\n%s", r.TookMS, text.String())
	if r.UID != 65534 {
		t.Errorf("uid %d", r.UID)
	}
	return &r
}

func TestWithoutRoot(t *testing.T) {
	r := child(t)
	for _, m := range r.Modes {
		if m.Attach == "" {
			if !m.Works {
				t.Errorf("mode %s: %s", m.Mode, m.Reason)
			}
			continue
		}
		if m.State != Fails {
			t.Errorf("mode %s %s: %s", m.Mode, m.Attach, m.State)
		}
		for _, want := range []string{"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"} {
			if !strings.Contains(m.Reason, want) || !slices.Contains(m.Missing, want) {
				t.Errorf("mode %s %s: reason %q, missing %v: want %s in both", m.Mode, m.Attach, m.Reason, m.Missing, want)
			}
		}
	}
	if r.Load.State != Fails || !strings.Contains(r.Load.Reason, "not permitted") {
		t.Errorf("load: %+v", r.Load)
	}
	if r.Auto.Mode != ModeSplice || !r.Auto.Works || r.Auto.Reason == "" {
		t.Errorf("auto: %+v, want splice with a reason", r.Auto)
	}
	i := slices.IndexFunc(r.Checks, func(c Check) bool { return c.Name == "CAP_SYS_ADMIN" })
	if i < 0 || r.Checks[i].State != Fails {
		t.Errorf("CAP_SYS_ADMIN is not told: %+v", r.Checks)
	}
}

// The rights of a daemon that systemd has made a user of its own for.
func TestWithoutNamespaces(t *testing.T) {
	r := child(t, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN)
	if r.Load.State != Works {
		t.Errorf("load: %+v", r.Load)
	}
	m, _ := r.Mode(ModeTC, AttachTCX)
	if slices.Contains(m.Missing, "pin-path") {
		t.Skip(m.Reason) // root's alone, here
	}
	if m.State != Untried || !slices.Contains(m.Missing, "CAP_SYS_ADMIN") || !strings.Contains(m.Reason, "CAP_SYS_ADMIN") {
		t.Errorf("tc by tcx: %+v, want it untried for CAP_SYS_ADMIN", m)
	}
	if err := r.Err(); err != nil {
		t.Errorf("what could not be tried is an error: %v", err)
	}
}

func TestInTime(t *testing.T) {
	r := Run(t.Context(), Options{Timeout: time.Nanosecond})
	if len(r.Modes) != 5 {
		t.Fatalf("%d modes", len(r.Modes))
	}
	for _, m := range r.Modes {
		if m.State != Untried || m.Reason != late {
			t.Errorf("mode %s %s without time: %s, %s", m.Mode, m.Attach, m.State, m.Reason)
		}
	}
	if r.TookMS > 2000 {
		t.Errorf("took %d ms", r.TookMS)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Print(ctx, io.Discard, false, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
