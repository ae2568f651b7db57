package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"usher/bpf"
	"usher/cmd/internal/admin"
	"usher/cmd/internal/site"
	"usher/testenv/client"
)

func number(full, short int) int {
	if testing.Short() {
		return short
	}
	return full
}

// The daemon is killed at full traffic, again and again: no session notices, and the
// next daemon knows all about them.
func TestCrash(t *testing.T) {
	kills := number(20, 4)
	const users, clients = 20, 100
	s := newSite(t, site.Options{})
	start(t, s)
	name := func(i int) string { return fmt.Sprintf("user%d@example.com", i%users) }
	sessions := login(t, s, clients, func(i int) client.Config {
		c := s.Client(name(i))
		if i%5 == 4 {
			c.Protocol, c.Server = client.POP3, s.Service(client.POP3)
		}
		c.Timeout = time.Minute
		return c
	})
	// Users that have left are known as well.
	gone := login(t, s, 20, func(i int) client.Config { return s.Client(fmt.Sprintf("gone%d", i)) })
	// 90 bytes: the name is kept in two pieces.
	long := "a-very-long-local-part-of-a-mail-address-that-does-not-fit-into-one-piece@department.example.org"
	gone = append(gone, login(t, s, 1, func(int) client.Config { return s.Client(long) })...)
	allForwarded(t, s, clients+len(gone))
	if err := client.Each(gone, func(_ int, x *client.Session) error { return x.Logout() }).Err(); err != nil {
		t.Fatal(err)
	}
	allForwarded(t, s, clients)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	traffic := make(chan error, 1)
	go func() {
		traffic <- client.Each(sessions, func(i int, x *client.Session) error { return x.Hammer(ctx, uint64(i)) }).Err()
	}()
	before := map[string]admin.User{}
	for i := range users {
		before[name(i)] = user(t, s, name(i))
	}
	absent := map[string]admin.User{}
	for _, x := range gone {
		absent[x.User()] = user(t, s, x.User())
	}
	var least, most time.Duration
	var extra []*client.Session // one login between each two crashes
	for kill := range kills {
		time.Sleep(rand.N(200 * time.Millisecond))
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		done := ops(sessions)
		time.Sleep(100 * time.Millisecond)
		if ops(sessions) == done {
			t.Errorf("kill %d: nothing moves without the daemon", kill)
		}
		begin := time.Now()
		start(t, s)
		down := time.Since(begin)
		least, most = min(cmpOr(least, down), down), max(most, down)

		st := status(t, s)
		if got := st.Sessions.TC + st.Sessions.XDP; got != clients+len(extra) {
			t.Fatalf("kill %d: %d sessions after the restart, want %d", kill, got, clients+len(extra))
		}
		if adopted := metrics(t, s)["usher_steer_adopted_total"]; adopted != float64(clients+len(extra)) {
			t.Errorf("kill %d: adopted %v sessions, want %d", kill, adopted, clients+len(extra))
		}
		for i := range users {
			now := user(t, s, name(i))
			sameUser(t, before[name(i)], now)
			before[name(i)] = now
		}
		for n, u := range absent {
			now := user(t, s, n)
			if now.Host != u.Host || !slices.Equal(now.Names, u.Names) || len(now.Sessions) != 0 || now.ExpiresAt == nil ||
				now.ExpiresAt.Sub(*u.ExpiresAt).Abs() > 2*time.Second {
				t.Errorf("kill %d: user without sessions was %+v, is %+v", kill, u, now)
			}
		}
		extra = append(extra, login(t, s, 1, func(int) client.Config { return s.Client("newcomer") })...)
		allForwarded(t, s, clients+len(extra))
	}

	// The last daemon, which has seen none of these logins, can move them.
	u := before[name(0)]
	to := s.Hosts[(slices.Index(s.Hosts, u.Host)+1)%len(s.Hosts)]
	cancel()
	if err := <-traffic; err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admin.UserMove(t.Context(), name(0), to.String(), true); err != nil {
		t.Fatal(err)
	}
	if err := client.Each(sessions, func(i int, x *client.Session) error {
		if i%users != 0 {
			return x.Logout()
		}
		x.Conn().SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := x.Conn().Read(make([]byte, 1)); !isReset(err) {
			return fmt.Errorf("client of the moved user sees %w, want a reset", err)
		}
		return nil
	}).Err(); err != nil {
		t.Error(err)
	}
	login(t, s, 1, func(int) client.Config { return s.Client(name(0)) })
	if now := user(t, s, name(0)); now.Host != to || len(now.Sessions) != 1 {
		t.Errorf("moved user is at %v with %d sessions, want %v and 1", now.Host, len(now.Sessions), to)
	}
	noErrors(t, s)
	t.Logf("%d kills under the traffic of %d sessions: %d commands, 0 errors; restart took %v to %v",
		kills, clients, ops(sessions), least.Round(time.Millisecond), most.Round(time.Millisecond))
}

func cmpOr(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return a
}

func ops(sessions []*client.Session) (n uint64) {
	for _, x := range sessions {
		o, _, _ := x.Stats()
		n += o
	}
	return n
}

// sameUser compares what is known of a user before and after a restart.
func sameUser(t *testing.T, was, is admin.User) {
	t.Helper()
	if was.Host != is.Host || was.Hash != is.Hash || was.Epoch != is.Epoch || !slices.Equal(was.Names, is.Names) || is.ExpiresAt != nil {
		t.Errorf("entry was %+v\nis now %+v", was, is)
	}
	if len(was.Sessions) != len(is.Sessions) {
		t.Errorf("user %s had %d sessions, has %d", was.User, len(was.Sessions), len(is.Sessions))
	}
	for _, a := range was.Sessions {
		i := slices.IndexFunc(is.Sessions, func(b admin.Session) bool { return a.Client == b.Client })
		if i < 0 {
			t.Errorf("session of %s from %v is lost", was.User, a.Client)
			continue
		}
		b := is.Sessions[i]
		if a.User != b.User || a.Protocol != b.Protocol || a.Backend != b.Backend || !a.Since.Equal(b.Since) || b.BytesIn < a.BytesIn || b.BytesOut < a.BytesOut {
			t.Errorf("session was %+v\nis now %+v", a, b)
		}
	}
}

// What is in user space dies with the daemon: the client learns it at once, its
// entry stays, and nothing is left in the flow map.
func TestCrashInUserSpace(t *testing.T) {
	s := newSite(t, site.Options{Steer: `quiet = "1s"`})
	start(t, s)
	const clients = 50
	sessions := login(t, s, clients, func(i int) client.Config { return s.Client(fmt.Sprintf("user%d", i)) })
	var ended atomic.Int64
	result := make(chan *client.Report, 1)
	go func() {
		result <- client.Each(sessions, func(i int, x *client.Session) error {
			defer ended.Add(1)
			return x.Hammer(t.Context(), uint64(i))
		})
	}()
	// One is idle, one has not logged in yet, and one is in the middle of it.
	quiet := login(t, s, 1, func(int) client.Config {
		c := s.Client("quiet")
		c.NS = s.Lab.Director // it must not be handed over meanwhile
		return c
	})
	raw := func(send string) *client.Session {
		x, err := client.Open(t.Context(), s.Client("early"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.Close() })
		if _, err := x.Conn().Write([]byte(send)); err != nil {
			t.Fatal(err)
		}
		return x
	}
	early := []*client.Session{quiet[0], raw(""), raw("a LOGIN {4}\r\n")}
	time.Sleep(200 * time.Millisecond)
	was := map[string]admin.User{}
	for i := range clients {
		n := fmt.Sprintf("user%d", i)
		was[n] = user(t, s, n)
		if x := was[n].Sessions; len(x) != 1 || x[0].Mode != "splice" || x[0].Reason != "waiting" {
			t.Errorf("session is not in user space: %+v", x)
		}
	}
	if n := ended.Load(); n > 0 {
		t.Errorf("%d sessions ended early", n)
	}
	killed := time.Now()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	report := <-result
	if took := time.Since(killed); took > 5*time.Second {
		t.Errorf("clients learnt after %v only", took)
	}
	if n := report.Failed[client.Reset] + report.Failed[client.EOF]; n != clients {
		t.Errorf("clients saw %v, want resets and ends only", report.Failed)
	}
	for i, x := range early {
		x.Conn().SetReadDeadline(time.Now().Add(5 * time.Second))
		var err error
		for err == nil { // the greeting may be waiting
			_, err = x.Conn().Read(make([]byte, 512))
		}
		if errors.Is(err, context.DeadlineExceeded) || client.KindOf(err) == client.Timeout {
			t.Errorf("quiet client %d hangs: %v", i, err)
		}
	}
	states := flowStates(t, s)
	if states[bpf.SpliceFlowStateFLOW_OBSERVE]+states[bpf.SpliceFlowStateFLOW_HOLD] < 2*clients {
		t.Errorf("flow map after the kill: %v, want what was not handed over", states)
	}
	start(t, s)
	if states := flowStates(t, s); sum(states) != 0 {
		t.Errorf("flow map after the restart: %v, want nothing", states)
	}
	for n, u := range was {
		now := user(t, s, n)
		if now.Host != u.Host || !slices.Equal(now.Names, u.Names) || len(now.Sessions) != 0 || now.ExpiresAt == nil {
			t.Errorf("entry was %+v\nis now %+v", u, now)
		} else if d := time.Until(*now.ExpiresAt); d < 14*time.Minute {
			t.Errorf("entry of %s, whose session ended with the daemon, expires in %v, want about 15m", n, d)
		}
	}
	again := login(t, s, clients, func(i int) client.Config { return s.Client(fmt.Sprintf("user%d", i)) })
	for _, x := range again {
		if b, err := x.Who(); err != nil || b != was[x.User()].Host.String() {
			t.Errorf("user %s came back to %s (%v), was at %v", x.User(), b, err, was[x.User()].Host)
		}
	}
	allForwarded(t, s, clients)
	noErrors(t, s)
}

// Sessions that end while there is no daemon are found to have ended by the next one.
func TestEndWhileDown(t *testing.T) {
	t.Parallel() // it waits, mostly
	s := newSite(t, site.Options{})
	start(t, s)
	ways := []string{"logout", "close", "client resets", "backend resets", "stays"}
	sessions := login(t, s, 5*len(ways), func(i int) client.Config { return s.Client(ways[i%len(ways)]) })
	allForwarded(t, s, len(sessions))
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := client.Each(sessions, func(_ int, x *client.Session) error {
		switch x.User() {
		case "logout":
			return x.Logout()
		case "close":
			return x.Close()
		case "client resets":
			return x.Abort()
		case "backend resets":
			if _, err := x.Conn().Write([]byte("z X-RESET\r\n")); err != nil {
				return err
			}
			x.Conn().SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := x.Conn().Read(make([]byte, 1)); !isReset(err) {
				return fmt.Errorf("client sees %w, want a reset", err)
			}
		}
		return nil
	}).Err(); err != nil {
		t.Fatal(err)
	}
	start(t, s)
	within(t, time.Minute, "only those that stay are left", func() bool { return status(t, s).Sessions.Total == 5 })
	for _, n := range ways {
		u := user(t, s, n)
		if n == "stays" && (len(u.Sessions) != 5 || u.ExpiresAt != nil) || n != "stays" && (len(u.Sessions) != 0 || u.ExpiresAt == nil) {
			t.Errorf("user %q has %d sessions and expires at %v", n, len(u.Sessions), u.ExpiresAt)
		}
	}
	within(t, time.Minute, "their flows are gone", func() bool { return sum(flowStates(t, s)) == 10 })
	noErrors(t, s)
}
