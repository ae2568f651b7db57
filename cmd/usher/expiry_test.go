package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/site"
	"usher/testenv/client"
)

// An entry lives for user_expire after the last session, not shorter and hardly
// longer; a session without any packet keeps it for as long as it exists.
func TestExpiry(t *testing.T) {
	t.Parallel() // it waits, mostly
	const (
		expire = 10 * time.Second // the least that the configuration takes
		late   = 3 * time.Second  // how long after that it has to be gone, on a busy machine
	)
	s := newSite(t, site.Options{UserExpire: expire})
	start(t, s)
	known := func(name string) bool {
		_, err := s.Admin.User(t.Context(), name)
		if err != nil && !errors.Is(err, admin.ErrUnknownUser) {
			t.Fatal(err)
		}
		return err == nil
	}
	logout := func(x *client.Session) time.Time {
		t.Helper()
		if err := x.Logout(); err != nil {
			t.Fatal(err)
		}
		return time.Now()
	}
	// expires checks that a user without sessions is released at about at.
	expires := func(name string, end time.Time) {
		t.Helper()
		for ; known(name); time.Sleep(20 * time.Millisecond) {
			if time.Since(end) > expire+late {
				t.Errorf("user %s is still known %v after the last session", name, time.Since(end))
				return
			}
		}
		if lived := time.Since(end); lived < expire-50*time.Millisecond {
			t.Errorf("user %s was released %v after the last session, want %v", name, lived, expire)
		} else {
			t.Logf("user %s was released %v after the last session", name, lived.Round(10*time.Millisecond))
		}
	}
	one := func(name string) *client.Session {
		t.Helper()
		return login(t, s, 1, func(int) client.Config { return s.Client(name) })[0]
	}
	idle, short, again, local := one("idle"), one("short"), one("again"), s.Client("local")
	local.NS = s.Lab.Director // its session stays in user space
	inUser := login(t, s, 1, func(int) client.Config { return local })[0]
	allForwarded(t, s, 3)
	packets := idlePackets(t, s, "idle")
	ended := logout(short)
	_ = logout(again)
	inUserEnded := logout(inUser)

	// A session in between is a new beginning.
	time.Sleep(expire / 2)
	again = one("again")
	againEnded := logout(again)
	expires("short", ended)
	expires("local", inUserEnded)
	expires("again", againEnded)

	time.Sleep(time.Until(ended.Add(expire + expire/2)))
	u := user(t, s, "idle")
	if u.ExpiresAt != nil || len(u.Sessions) != 1 {
		t.Errorf("user of an idle session: expires at %v, %d sessions", u.ExpiresAt, len(u.Sessions))
	}
	if n := idlePackets(t, s, "idle"); n != packets {
		t.Errorf("the idle session was not idle: %d packets, %d before", n, packets)
	}
	ended = logout(idle)
	expires("idle", ended)
	if users := status(t, s).Director.Users; users != 0 {
		t.Errorf("%d entries are left", users)
	}
	noErrors(t, s)
}

func idlePackets(t *testing.T, s *site.Site, name string) (n uint64) {
	t.Helper()
	flows, err := s.Admin.Flows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		if f.User == name {
			n += f.Packets
		}
	}
	return n
}

// A forwarded session without a packet for idle_timeout is closed: both peers learn
// it. Any traffic, in either direction, keeps it.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	const idle = 3 * time.Second
	s := newSite(t, site.Options{Steer: fmt.Sprintf("idle_timeout = %q", idle)})
	start(t, s)
	begin := time.Now()
	silent := login(t, s, 3, func(int) client.Config { return s.Client("silent") })
	alive := login(t, s, 3, func(int) client.Config { return s.Client("alive") })
	allForwarded(t, s, 6)
	stop := make(chan struct{})
	kept := make(chan error, 1)
	go func() {
		kept <- client.Each(alive, func(_ int, x *client.Session) error {
			for {
				select {
				case <-stop:
					return nil
				case <-time.After(idle / 3):
				}
				if err := x.Noop(); err != nil {
					return err
				}
			}
		}).Err()
	}()
	// The sweep that finds silent sessions runs every 15 s.
	if err := client.Each(silent, func(_ int, x *client.Session) error {
		x.Conn().SetReadDeadline(time.Now().Add(idle + 20*time.Second))
		_, err := x.Conn().Read(make([]byte, 1))
		if took := time.Since(begin); !isReset(err) || took < idle {
			return fmt.Errorf("silent client sees %w after %v, want a reset after %v", err, took, idle)
		}
		return nil
	}).Err(); err != nil {
		t.Error(err)
	}
	t.Logf("closed after %v", time.Since(begin).Round(10*time.Millisecond))
	for _, b := range s.Backends {
		eventually(t, "the backend knows as well", func() bool { return b.Live()["silent"] == 0 })
		for _, x := range b.Sessions() {
			if x.User == "silent" && x.Ending != "RST" {
				t.Errorf("backend saw session %d end by %s, want RST", x.ID, x.Ending)
			}
		}
	}
	close(stop)
	if err := <-kept; err != nil {
		t.Errorf("session with traffic: %v", err)
	}
	for _, e := range endings(t, s) {
		if e.End != "idle" || e.User != "silent" {
			t.Errorf("unexpected end: %+v", e)
		}
	}
	if u := user(t, s, "silent"); len(u.Sessions) != 0 || u.ExpiresAt == nil {
		t.Errorf("after the end: %+v", u)
	}
	noErrors(t, s)
}
