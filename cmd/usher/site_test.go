package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/site"
	"usher/loader/netns"
	"usher/testenv/client"
	"usher/testenv/lab"
)

// newSite builds a site whose daemon is this test binary. Without root it skips.
func newSite(t testing.TB, o site.Options) *site.Site {
	t.Helper()
	if !o.Loopback {
		if err := netns.Available(); err != nil {
			t.Skip(err)
		}
	}
	o.Env = append(o.Env, asCommand+"=1")
	s, err := site.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log ends:\n%s", s.LogTail(30))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func start(t testing.TB, s *site.Site) {
	t.Helper()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition that somebody else brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen in time: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func status(t testing.TB, s *site.Site) admin.Status {
	t.Helper()
	st, err := s.Admin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func user(t testing.TB, s *site.Site, name string) admin.User {
	t.Helper()
	u, err := s.Admin.User(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func login(t testing.TB, s *site.Site, n int, config func(i int) client.Config) []*client.Session {
	t.Helper()
	sessions, report := client.DialAll(t.Context(), n, 50, config)
	t.Cleanup(func() { client.CloseAll(sessions) })
	if err := report.Err(); err != nil {
		t.Fatalf("log in: %v", err)
	}
	return sessions
}

// allForwarded waits until the kernel carries n sessions.
func allForwarded(t testing.TB, s *site.Site, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d sessions in the kernel", n), func() bool {
		c := status(t, s).Sessions
		return c.TC+c.XDP == n
	})
}

// One user, ten sessions: one backend, whoever asks.
func TestOneUserOneBackend(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	const users, each = 20, 10
	sessions := login(t, s, users*each, func(i int) client.Config {
		c := s.Client(fmt.Sprintf("user%d@example.com", i%users))
		c.Method = client.Methods[i%len(client.Methods)]
		c.Pipeline = i%3 == 0
		if i%4 == 3 {
			c.Protocol, c.Server = client.POP3, s.Service(client.POP3)
		}
		return c
	})
	allForwarded(t, s, users*each)
	for _, b := range s.Backends {
		for name, n := range b.Live() {
			if n != each {
				t.Errorf("user %s has %d sessions at backend %s, want all %d or none", name, n, b.Name(), each)
			}
			u := user(t, s, name)
			if u.Host.String() != b.Name() || len(u.Sessions) != each || u.ExpiresAt != nil {
				t.Errorf("usher user %s: host %v, %d sessions, expires %v; want %s, %d, null", name, u.Host, len(u.Sessions), u.ExpiresAt, b.Name(), each)
			}
		}
	}
	if err := client.Each(sessions, func(i int, s *client.Session) error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := s.Traffic(ctx, uint64(i)); err != nil {
			return err
		}
		return s.Logout()
	}).Err(); err != nil {
		t.Error(err)
	}
	eventually(t, "no session left", func() bool { return status(t, s).Sessions.Total == 0 })
	if u := user(t, s, "user1@example.com"); u.ExpiresAt == nil || len(u.Sessions) != 0 {
		t.Errorf("after the last session: expires %v, %d sessions; want a time and none", u.ExpiresAt, len(u.Sessions))
	}
	if st := status(t, s); st.Director.Users != users || st.Kernel.Packets == 0 {
		t.Errorf("status: %d users, %d packets by the kernel; want %d and many", st.Director.Users, st.Kernel.Packets, users)
	}
}

func TestTopologies(t *testing.T) {
	for _, topology := range lab.Topologies {
		for _, family := range []int{4, 6} {
			t.Run(fmt.Sprintf("%v/ipv%d", topology, family), func(t *testing.T) {
				s := newSite(t, site.Options{Lab: lab.Options{Topology: topology, Family: family}})
				start(t, s)
				sessions := login(t, s, 20, func(i int) client.Config { return s.Client(fmt.Sprintf("u%d", i)) })
				allForwarded(t, s, 20)
				if err := client.Each(sessions, func(i int, s *client.Session) error {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					return s.Traffic(ctx, uint64(i))
				}).Err(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A client on the director's own host passes no interface: it stays in user space,
// and the reason is told.
func TestLocalClient(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	login(t, s, 1, func(int) client.Config {
		c := s.Client("anna")
		c.NS = s.Lab.Director
		return c
	})
	eventually(t, "reason unobserved", func() bool {
		u := user(t, s, "anna")
		return len(u.Sessions) == 1 && u.Sessions[0].Reason == "unobserved" && u.Sessions[0].Mode == "splice"
	})
}

func TestMove(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	sessions := login(t, s, 10, func(i int) client.Config { return s.Client("anna") })
	allForwarded(t, s, 10)
	from := user(t, s, "anna").Host
	to := s.Hosts[(slices.Index(s.Hosts, from)+1)%len(s.Hosts)]
	begin := time.Now()
	if _, err := s.Admin.UserMove(t.Context(), "anna", to.String(), true); err != nil {
		t.Fatal(err)
	}
	// All of them were idle: the RST comes at once, not at the next packet.
	if err := client.Each(sessions, func(_ int, s *client.Session) error {
		s.Conn().SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err := s.Conn().Read(make([]byte, 1))
		if err == nil || !isReset(err) {
			return fmt.Errorf("client sees %v, want a reset", err)
		}
		return nil
	}).Err(); err != nil {
		t.Error(err)
	}
	t.Logf("moved in %v", time.Since(begin))
	login(t, s, 3, func(int) client.Config { return s.Client("anna") })
	for _, b := range s.Backends {
		want := 0
		if b.Name() == to.String() {
			want = 3
		}
		eventually(t, fmt.Sprintf("%d sessions at %s", want, b.Name()), func() bool { return b.Live()["anna"] == want })
	}
	for _, b := range s.Backends {
		for _, x := range b.Sessions() {
			if !x.End.IsZero() && x.Ending != "RST" {
				t.Errorf("backend %s saw session %d end by %s, want RST", b.Name(), x.ID, x.Ending)
			}
		}
	}
}

func TestKick(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	anna := login(t, s, 3, func(int) client.Config { return s.Client("anna") })
	bert := login(t, s, 3, func(int) client.Config { return s.Client("bert") })
	allForwarded(t, s, 6)
	if _, err := s.Admin.UserKick(t.Context(), "anna"); err != nil {
		t.Fatal(err)
	}
	for _, x := range anna {
		x.Conn().SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := x.Conn().Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("kicked client sees %v, want a reset", err)
		}
	}
	if err := client.Each(bert, func(_ int, x *client.Session) error { return x.Noop() }).Err(); err != nil {
		t.Errorf("another user after the kick: %v", err)
	}
	again := login(t, s, 1, func(int) client.Config { return s.Client("Anna") }) // the same user, by the hash
	if _, err := s.Admin.UserKick(t.Context(), "anna"); err != nil {
		t.Fatal(err)
	}
	again[0].Conn().SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := again[0].Conn().Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("kicked under another spelling: client sees %v, want a reset", err)
	}
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }
