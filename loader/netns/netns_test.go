package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newNS(t *testing.T) *NS {
	t.Helper()
	if err := Available(); err != nil {
		t.Skip(err)
	}
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// strangers lists the namespaces other than the process's own that its threads and descriptors hold.
func strangers(t *testing.T) map[string]string {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, pattern := range []string{"/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
		paths, _ := filepath.Glob(pattern)
		for _, p := range paths {
			if to, err := os.Readlink(p); err == nil && strings.HasPrefix(to, "net:") && to != own {
				found[p] = to
			}
		}
	}
	return found
}

// eventually waits for what the kernel does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestDoRunsInside(t *testing.T) {
	ns := newNS(t)
	inside := fmt.Sprintf("net:[%d]", ns.Inode())
	for range 3 {
		var got string
		err := ns.Do(func() (err error) {
			got, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
		if err != nil || got != inside {
			t.Fatalf("inside Do: %s, %v; want %s", got, err, inside)
		}
	}
	want := errors.New("refused")
	if err := ns.Do(func() error { return want }); err != want {
		t.Errorf("Do returned %v, want the function's error", err)
	}
	names, err := ns.Links()
	if err != nil || len(names) != 1 || names[0] != "lo" {
		t.Errorf("links of a new namespace: %v, %v; want only lo", names, err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	newNS(t).Close() // skips when it must
	before := strangers(t)
	for range 20 {
		ns, err := New()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(ns.Close(), ns.Close()); err != nil {
			t.Fatal(err)
		}
		if err := ns.Do(func() error { return nil }); err != ErrClosed {
			t.Fatalf("Do after Close: %v, want ErrClosed", err)
		}
	}
	eventually(t, "threads and descriptors are gone", func() bool { return len(strangers(t)) <= len(before) })
	if _, err := os.Stat("/run/netns"); err == nil {
		if files, _ := os.ReadDir("/run/netns"); len(files) > 0 {
			t.Logf("note: /run/netns is not empty: %v (not made here)", files)
		}
	}
}

// A worker must not settle on the process's first thread: the runtime cannot end that one.
func TestFirstThreadIsNotUsed(t *testing.T) {
	newNS(t)
	var all []*NS
	for range 50 {
		ns, err := New()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ns)
		ns.Do(func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("the worker sits on the first thread")
			}
			return nil
		})
		runtime.Gosched()
	}
	for _, ns := range all {
		ns.Close()
	}
}

func TestFunctionThatLeaves(t *testing.T) {
	ns := newNS(t)
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); err != errLeft {
		t.Fatalf("Do: %v, want %v", err, errLeft)
	}
	if err := ns.Do(func() error { return nil }); err != ErrClosed {
		t.Errorf("Do afterwards: %v, want ErrClosed", err)
	}
}

func pair(t *testing.T) (a, b *NS) {
	t.Helper()
	a, b = newNS(t), newNS(t)
	if err := Veth(a, b, "left", "right", 1400); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []*NS{a, b} {
		if err := ns.SetSysctl("net.ipv6.conf.all.accept_dad", "0"); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		a.AddAddr("left", netip.MustParsePrefix("192.0.2.1/24")), b.AddAddr("right", netip.MustParsePrefix("192.0.2.2/24")),
		a.AddAddr("left", netip.MustParsePrefix("2001:db8::1/64")), b.AddAddr("right", netip.MustParsePrefix("2001:db8::2/64")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

func TestSocketsStayInside(t *testing.T) {
	a, b := pair(t)
	for _, address := range []string{"192.0.2.2:0", "[2001:db8::2]:0"} {
		t.Run(address, func(t *testing.T) {
			ln, err := b.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			var served sync.WaitGroup
			served.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					served.Go(func() { io.Copy(c, c); c.Close() })
				}
			})
			const n = 300
			var clients sync.WaitGroup
			for i := range n {
				clients.Go(func() {
					c, err := a.Dial(t.Context(), "tcp", nil, ln.Addr().String())
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					want := fmt.Sprintf("guest %d", i)
					io.WriteString(c, want)
					c.(*net.TCPConn).CloseWrite()
					if got, err := io.ReadAll(c); err != nil || string(got) != want {
						t.Errorf("echo: %q, %v; want %q", got, err, want)
					}
				})
			}
			clients.Wait()
			if _, err := net.DialTimeout("tcp", ln.Addr().String(), 50*time.Millisecond); err == nil {
				t.Error("the listener can be reached from outside the namespace")
			}
			ln.Close()
			served.Wait()
		})
	}
}

// While one connect waits for an answer that never comes, the namespace stays usable.
func TestDialDoesNotHoldTheWorker(t *testing.T) {
	a, b := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	slow := make(chan error)
	go func() {
		// The neighbour does not exist: the SYN waits for it.
		_, err := a.Dial(ctx, "tcp", nil, "192.0.2.99:143")
		slow <- err
	}()
	ln, err := b.Listen("tcp", "192.0.2.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := a.Dial(t.Context(), "tcp", &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	cancel()
	if err := <-slow; err == nil {
		t.Error("connected to nobody")
	}
}

func TestSettings(t *testing.T) {
	a, _ := pair(t)
	const name = "net.ipv4.tcp_timestamps"
	var outside *NS
	host, err := outside.Sysctl(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.SetSysctl(name, "0"); err != nil {
		t.Fatal(err)
	}
	if v, err := a.Sysctl(name); err != nil || v != "0" {
		t.Errorf("inside: %q, %v; want 0", v, err)
	}
	if v, err := outside.Sysctl(name); err != nil || v != host {
		t.Errorf("outside: %q, %v; want %q as before", v, err, host)
	}
	if err := a.SetSysctl("net.ipv4.no_such_thing", "1"); err == nil {
		t.Error("set a sysctl that does not exist")
	}
	for _, f := range []Feature{TxChecksum, TSO, GSO, GRO} {
		for _, on := range []bool{false, true} {
			if err := a.SetFeature("left", f, on); err != nil {
				t.Error(err)
			}
			if got, err := a.Feature("left", f); err != nil || got != on {
				t.Errorf("%s: %t, %v; want %t", f, got, err, on)
			}
		}
	}
	if _, err := a.Feature("nobody", GRO); err == nil {
		t.Error("read a feature of an interface that does not exist")
	}
}

func TestBridge(t *testing.T) {
	sw, a, b := newNS(t), newNS(t), newNS(t)
	for _, err := range []error{
		Veth(sw, a, "port0", "eth0", 0), Veth(sw, b, "port1", "eth0", 0), sw.Bridge("switch", "port0", "port1"),
		a.AddAddr("eth0", netip.MustParsePrefix("192.0.2.1/24")), b.AddAddr("eth0", netip.MustParsePrefix("192.0.2.2/24")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ln, err := b.Listen("tcp", "192.0.2.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := a.Dial(t.Context(), "tcp", nil, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestProcessLivesInsideAndDiesWithIt(t *testing.T) {
	ns := newNS(t)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("sh", "-c", "readlink /proc/self/ns/net; exec sleep 1000")
	cmd.Stdout = out
	if err := ns.StartProcess(cmd); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process has spoken", func() bool {
		b, _ := os.ReadFile(out.Name())
		return string(b) == fmt.Sprintf("net:[%d]\n", ns.Inode())
	})
	ns.Close()
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("after Close the process ended with %v, want it killed", err)
	}
}

// The nil namespace is the process's own and needs no right at all.
func TestNil(t *testing.T) {
	var ns *NS
	ln, err := ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := ns.Dial(t.Context(), "tcp", nil, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	cmd := exec.Command("true")
	if err := ns.StartProcess(cmd); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Wait(), ns.Close()); err != nil {
		t.Error(err)
	}
}
