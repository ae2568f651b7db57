package lab

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"usher/loader/netns"
)

func build(t *testing.T, o Options) *Lab {
	t.Helper()
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// reach connects from one namespace to an address of another, and returns the source address seen there.
func reach(t *testing.T, from, to *netns.NS, addr, local netip.Addr) (netip.Addr, error) {
	t.Helper()
	ln, err := to.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := from.Dialer()
	d.Timeout = 200 * time.Millisecond
	if local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	c, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(), nil
}

func TestTopologies(t *testing.T) {
	for _, topology := range Topologies {
		t.Run(topology.String(), func(t *testing.T) {
			l := build(t, Options{Topology: topology, Backends: 4, Clients: 3})
			if (l.ClientLink == l.BackendLink) != (topology == OneArm) {
				t.Errorf("director's interfaces %s and %s", l.ClientLink, l.BackendLink)
			}
			for _, n := range l.Nets() {
				if len(n.Backends) != 4 || len(n.Clients) != 3 {
					t.Fatalf("%d backends, %d clients; want 4 and 3", len(n.Backends), len(n.Clients))
				}
				if got, err := reach(t, l.Client, l.Director, n.Service, netip.Addr{}); err != nil || got != n.Clients[0] {
					t.Errorf("service: seen from %s, %v; want %s", got, err, n.Clients[0])
				}
				for _, c := range n.Clients {
					if got, err := reach(t, l.Client, l.Director, n.Service, c); err != nil || got != c {
						t.Errorf("service from %s: seen from %s, %v", c, got, err)
					}
				}
				for _, b := range n.Backends {
					if got, err := reach(t, l.Director, l.Backend, b, netip.Addr{}); err != nil || got != n.DirectorBackend {
						t.Errorf("backend %s: seen from %s, %v; want %s", b, got, err, n.DirectorBackend)
					}
				}
				if _, err := reach(t, l.Director, l.Director, n.Service, netip.Addr{}); err != nil {
					t.Errorf("service from the director's own host: %v", err)
				}
			}
			if len(l.Nets()) != 2 {
				t.Errorf("%d families, want 2", len(l.Nets()))
			}
		})
	}
}

func TestForwarding(t *testing.T) {
	for _, topology := range Topologies {
		t.Run(topology.String(), func(t *testing.T) {
			l := build(t, Options{Topology: topology})
			for _, on := range []bool{false, true, false} {
				if err := l.SetForwarding(on); err != nil {
					t.Fatal(err)
				}
				for _, n := range l.Nets() {
					got, err := reach(t, l.Client, l.Backend, n.Backends[0], netip.Addr{})
					if (err == nil) != on || on && got != n.Clients[0] {
						t.Errorf("forwarding %t: backend sees %s, %v", on, got, err)
					}
				}
			}
		})
	}
}

func TestOptions(t *testing.T) {
	l := build(t, Options{
		Family: 6, MTU: 1400,
		ClientSysctl:  map[string]string{"net.ipv4.tcp_timestamps": "0"},
		BackendSysctl: map[string]string{"net.ipv4.tcp_sack": "0"},
	})
	if l.V4.Service.IsValid() || len(l.Nets()) != 1 {
		t.Errorf("IPv4 exists although only IPv6 was asked for: %+v", l.V4)
	}
	for _, s := range []struct {
		ns         *netns.NS
		name, want string
	}{
		{l.Client, "net.ipv4.tcp_timestamps", "0"}, {l.Director, "net.ipv4.tcp_timestamps", "1"},
		{l.Backend, "net.ipv4.tcp_sack", "0"}, {l.Client, "net.ipv4.tcp_sack", "1"},
	} {
		if got, err := s.ns.Sysctl(s.name); err != nil || got != s.want {
			t.Errorf("%s = %q, %v; want %s", s.name, got, err, s.want)
		}
	}
	link, err := l.Director.Netlink().LinkByName(l.ClientLink)
	if err != nil || link.Attrs().MTU != 1400 {
		t.Errorf("%s: MTU %d, %v; want 1400", l.ClientLink, link.Attrs().MTU, err)
	}
	if _, err := New(Options{Backends: 201}); err == nil {
		t.Error("built 201 backends")
	}
	if _, err := New(Options{ClientSysctl: map[string]string{"net.ipv4.no_such": "1"}}); err == nil {
		t.Error("set a sysctl that does not exist")
	}
}

func TestXDPReady(t *testing.T) {
	for _, topology := range Topologies {
		t.Run(topology.String(), func(t *testing.T) {
			l := build(t, Options{Topology: topology})
			state := func() string {
				var b strings.Builder
				for _, e := range slices.Concat(l.senders, l.peers) {
					for _, f := range []netns.Feature{netns.TxChecksum, netns.TSO, netns.GSO, netns.GRO} {
						on, err := e.ns.Feature(e.name, f)
						if err != nil {
							t.Fatal(err)
						}
						fmt.Fprintf(&b, "%s %s %t\n", e.name, f, on)
					}
				}
				return b.String()
			}
			before := state()
			if err := l.XDPReady(true); err != nil {
				t.Fatal(err)
			}
			during := state()
			for _, e := range l.senders {
				for _, f := range []netns.Feature{netns.TxChecksum, netns.TSO, netns.GSO} {
					if want := fmt.Sprintf("%s %s false", e.name, f); !strings.Contains(during, want) {
						t.Errorf("want %q in:\n%s", want, during)
					}
				}
			}
			for _, e := range l.peers {
				if want := fmt.Sprintf("%s %s true", e.name, netns.GRO); !strings.Contains(during, want) {
					t.Errorf("want %q in:\n%s", want, during)
				}
			}
			for _, n := range l.Nets() {
				if _, err := reach(t, l.Client, l.Director, n.Service, netip.Addr{}); err != nil {
					t.Error(err)
				}
			}
			if err := l.XDPReady(false); err != nil {
				t.Fatal(err)
			}
			if after := state(); after != before {
				t.Errorf("not put back:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// holders are the files of /proc, of all processes, that refer to one of the namespaces.
func holders(inodes []string) (found []string) {
	for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		paths, _ := filepath.Glob(pattern)
		for _, p := range paths {
			to, err := os.Readlink(p)
			if err != nil {
				continue
			}
			for _, i := range inodes {
				if to == "net:["+i+"]" {
					found = append(found, p)
				}
			}
		}
	}
	return found
}

func (l *Lab) inodes() (s []string) {
	for _, ns := range l.nodes {
		s = append(s, fmt.Sprint(ns.Inode()))
	}
	return s
}

func hostLinks(t *testing.T) string {
	t.Helper()
	var host *netns.NS
	names, err := host.Links()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

func gone(t *testing.T, inodes []string, links string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); len(holders(inodes)) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("namespaces %v still held by %v", inodes, holders(inodes))
		}
	}
	if now := hostLinks(t); now != links {
		t.Errorf("the machine's interfaces are %s now, were %s", now, links)
	}
	if _, err := os.Stat("/run/netns"); err == nil {
		names, _ := os.ReadDir("/run/netns")
		t.Logf("note: /run/netns holds %d names; none is made here", len(names))
	}
}

func TestCloseRemovesEverything(t *testing.T) {
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
	for _, topology := range Topologies {
		links := hostLinks(t)
		l, err := New(Options{Topology: topology})
		if err != nil {
			t.Fatal(err)
		}
		inodes := l.inodes()
		if len(holders(inodes)) == 0 {
			t.Fatal("this test would not see a namespace that is left over")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		gone(t, inodes, links)
	}
}

// childEnv makes the test binary build a lab, print its namespaces and wait to be killed.
const childEnv = "USHER_LAB_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	l, err := New(Options{Topology: OneArm})
	if err != nil {
		panic(err)
	}
	if err := l.Director.StartProcess(exec.Command("sleep", "1000")); err != nil {
		panic(err)
	}
	fmt.Println(strings.Join(l.inodes(), " "))
	time.Sleep(time.Hour)
}

func TestKilledProcessLeavesNothing(t *testing.T) {
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
	links := hostLinks(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	inodes := strings.Fields(line)
	if err != nil || len(inodes) != 4 || len(holders(inodes)) == 0 {
		t.Errorf("child: %q, %v; want four namespaces that exist", line, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	gone(t, inodes, links)
}
