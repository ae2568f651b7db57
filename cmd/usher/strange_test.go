package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"usher/cmd/internal/site"
	"usher/testenv/client"
	"usher/testenv/dialogue"
)

// With no room in the flow map sessions stay in user space, and later ones are
// forwarded again when there is.
func TestMapFull(t *testing.T) {
	const flows = 10
	s := newSite(t, site.Options{MaxFlows: flows})
	start(t, s)
	first := login(t, s, flows/2, func(i int) client.Config { return s.Client(fmt.Sprintf("user%d", i%2)) })
	allForwarded(t, s, flows/2)
	rest := login(t, s, 20, func(i int) client.Config { return s.Client(fmt.Sprintf("user%d", i%2)) })
	full := func() float64 { return metrics(t, s)[`usher_steer_stay_sessions{reason="map-full"}`] }
	eventually(t, "the rest stays for map-full", func() bool { return full() == float64(len(rest)) })
	all := slices.Concat(first, rest)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := client.Each(all, func(i int, x *client.Session) error { return x.Hammer(ctx, uint64(i)) }).Err(); err != nil {
		t.Error(err)
	}
	if err := client.Each(first, func(_ int, x *client.Session) error { return x.Logout() }).Err(); err != nil {
		t.Error(err)
	}
	within(t, time.Minute, "room in the map", func() bool { return sum(flowStates(t, s)) == 0 })
	later := login(t, s, flows/2, func(i int) client.Config { return s.Client(fmt.Sprintf("user%d", i%2)) })
	allForwarded(t, s, len(later))
	if err := client.Each(append(rest, later...), func(_ int, x *client.Session) error { return x.Logout() }).Err(); err != nil {
		t.Error(err)
	}
	noErrors(t, s)
}

// A client that offers MPTCP gets plain TCP, and is forwarded.
func TestMPTCPClient(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	var c net.Conn
	err := s.Lab.Client.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "mptcp")
		defer f.Close()
		to := s.Service(client.IMAP)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
			return err
		}
		c, err = net.FileConn(f)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
		t.Skipf("the kernel has no MPTCP: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	d := dialogue.New(t, c)
	d.Expect("* OK *")
	d.Send("a LOGIN multi secret")
	d.ExpectUntil("a OK *")
	allForwarded(t, s, 1)
	d.Send("b X-ECHO 5")
	d.Send("hel")
	d.Expect("hel")
	d.ExpectUntil("b OK *")
	d.Send("c LOGOUT")
	d.ExpectUntil("c OK *")
	d.ExpectEOF()
	noErrors(t, s)
}

// A client that died without a word comes back with the same source port: it gets a
// new session, and the old one ends.
func TestSuperseded(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	const rounds = 20
	for i := range rounds {
		name, next := fmt.Sprintf("old%d", i), fmt.Sprintf("new%d", i)
		old := login(t, s, 1, func(int) client.Config { return s.Client(name) })[0]
		if i%2 == 0 {
			if err := old.Echo(100_000, 1); err != nil {
				t.Fatal(err)
			}
		}
		allForwarded(t, s, 1)
		local := old.Conn().LocalAddr().(*net.TCPAddr).AddrPort()
		if err := vanish(old.Conn()); err != nil {
			t.Fatal(err)
		}
		c := dialFrom(t, s, local)
		d := dialogue.New(t, c)
		d.Expect("* OK *")
		d.Send("a LOGIN " + next + " secret")
		d.ExpectUntil("a OK *")
		eventually(t, "old session is gone, the new one forwarded", func() bool {
			u, err := s.Admin.User(t.Context(), next)
			return err == nil && len(u.Sessions) == 1 && u.Sessions[0].Mode == "tc" && len(user(t, s, name).Sessions) == 0
		})
		d.Send("b X-WHO")
		d.Expect("* X-WHO " + next + " *")
		d.ExpectUntil("b OK *")
		d.Send("c LOGOUT")
		d.ExpectUntil("c OK *")
		d.ExpectEOF()
		c.Close()
		eventually(t, "no session left", func() bool { return status(t, s).Sessions.Total == 0 })
	}
	superseded := 0
	for _, e := range endings(t, s) {
		if strings.HasPrefix(e.User, "old") {
			if e.End != "superseded" {
				t.Errorf("unexpected end: %+v", e)
			}
			superseded++
		}
	}
	if superseded != rounds {
		t.Errorf("%d of %d sessions were superseded", superseded, rounds)
	}
	for _, b := range s.Backends {
		for _, x := range b.Sessions() {
			if strings.HasPrefix(x.User, "old") && x.Ending != "RST" {
				t.Errorf("backend saw the old session end by %q, want RST", x.Ending)
			}
		}
	}
	noErrors(t, s)
}

// vanish closes a connection without a packet, as a machine that loses its power.
func vanish(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
	})
	return errors.Join(err, inner, c.Close())
}

func dialFrom(t *testing.T, s *site.Site, local netip.AddrPort) net.Conn {
	t.Helper()
	c, err := s.Lab.Client.Dial(t.Context(), "tcp", net.TCPAddrFromAddrPort(local), s.Service(client.IMAP).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
