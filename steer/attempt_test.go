package steer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"usher/director"
	"usher/steer/auth"
	"usher/steer/auth/penalty"
	"usher/testenv/backend"
	"usher/testenv/client"
)

func (x *site) entries() (n int) {
	x.Router.View(func(d *director.Director) { n = d.Users() })
	return n
}

// Names that the backends refuse leave no entry behind, and are bounded; those that they accept are not concerned.
func TestInventedUsers(t *testing.T) {
	table := penalty.New(penalty.Config{
		FailureDelay: -1, PerAddress: penalty.Rate{PerSecond: 0.001, Burst: 50}, Total: penalty.Rate{PerSecond: 0.001, Burst: 1000}, MaxWait: 10 * time.Millisecond,
	})
	x := newSite(t, siteConfig{
		protocol: "imap", backends: 2, backend: backend.Options{Password: "secret"}, server: func(c *Config) { c.Penalty = table },
	})
	// The good ones give their tokens back: more of them than there are tokens.
	for i := range 70 {
		s, err := x.dial(client.Config{User: fmt.Sprint("real", i)})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Logout(); err != nil {
			t.Fatal(err)
		}
	}
	if n := x.entries(); n != 70 {
		t.Errorf("%d entries of 70 users", n)
	}
	var wg sync.WaitGroup
	for w := range 10 {
		wg.Go(func() {
			for i := range 30 {
				s, err := x.dial(client.Config{User: fmt.Sprintf("invented-%d-%d", w, i), Password: "guess"})
				if err == nil {
					s.Close()
					t.Error("a backend accepted a wrong password")
				}
			}
		})
	}
	wg.Wait()
	if n := x.entries(); n != 70 {
		t.Errorf("%d entries, want those of the users who were accepted: 70", n)
	}
	var refused uint64
	for _, b := range x.backends {
		_, _, _, n := b.Counts()
		refused += n
	}
	if refused != 50 {
		t.Errorf("%d of 300 invented names reached a backend, want 50", refused)
	}
	if s := table.Stats(); s.Rate != 250 || s.Accepted != 70 {
		t.Errorf("%+v, want 250 that were not tried and 70 accepted", s)
	}
	// The users who are known need no token.
	s, err := x.dial(client.Config{User: "real3"})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// A user who is moved while a backend still thinks about the first login ends at the new host, and at no other.
func TestMovedDuringLogin(t *testing.T) {
	x := newSite(t, siteConfig{protocol: "imap", backends: 2})
	var first netip.Addr
	x.Router.View(func(d *director.Director) {
		host, _ := d.HashedHost(d.KeyOf("fred", ""))
		first = host
	})
	other := slices.IndexFunc(x.backends, func(b *backend.Server) bool { return b.IMAP().Addr() != first })
	x.backends[1-other].Behave(backend.Behaviour{Delay: 300 * time.Millisecond})
	done := make(chan error, 1)
	go func() {
		s, err := x.dial(client.Config{})
		if err == nil {
			t.Cleanup(func() { s.Close() })
		}
		done <- err
	}()
	wait(t, "a login at the first backend", func() bool { n, _, _, _ := x.backends[1-other].Counts(); return n == 1 })
	x.Router.Tell(director.Move{User: "fred", To: x.backends[other].IMAP().Addr()})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wait(t, "the session at the new host alone", func() bool {
		return x.backends[other].Live()["fred"] == 1 && x.backends[1-other].Live()["fred"] == 0
	})
	all := x.Sessions(func(SessionInfo) bool { return true })
	if len(all) != 1 || all[0].Backend.Remote.Addr() != x.backends[other].IMAP().Addr() || all[0].User != "fred" {
		t.Errorf("sessions: %+v", all)
	}
}

// A wrong password is refused late, the next attempt waits, and a success ends that.
func TestFailureDelay(t *testing.T) {
	const delay = 150 * time.Millisecond
	table := penalty.New(penalty.Config{FailureDelay: delay, MaxDelay: 3 * delay})
	x := newSite(t, siteConfig{
		protocol: "imap", backend: backend.Options{Password: "secret"}, server: func(c *Config) { c.Penalty = table },
	})
	c, err := net.Dial("tcp", x.addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	line := func(begin string) {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		for {
			s, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(s, begin) {
				return
			}
		}
	}
	line("* OK")
	for i, want := range []time.Duration{delay, 3 * delay, 4 * delay} { // 2 x for the penalty, and 3 x at most
		began := time.Now()
		fmt.Fprintf(c, "a%d LOGIN fred wrong%d\r\n", i, i)
		line(fmt.Sprintf("a%d NO [AUTHENTICATIONFAILED]", i))
		if took := time.Since(began); took < want {
			t.Errorf("refusal %d came after %v, want at least %v", i, took, want)
		}
	}
	fmt.Fprint(c, "b LOGIN fred secret\r\n")
	line("b OK")
	if s := table.Stats(); s.Failed != 3 || s.Delayed != 3 || s.Addresses != 0 {
		t.Errorf("%+v", s)
	}
}

// failing is a driver that has its own words.
type failing struct{ err error }

func (f failing) Authenticate(context.Context, auth.Request) (auth.Answer, error) {
	return auth.Answer{}, f.err
}

// What a driver says about a failure reaches the client: text, code, and that it was the last attempt.
func TestRefusedByDriver(t *testing.T) {
	x := newSite(t, siteConfig{protocol: "submission", driver: failing{&auth.Refused{
		Err: errors.Join(auth.ErrCredentials, errors.New("because")), Text: "Go\r\naway", Code: "535 5.7.0", Wait: 100 * time.Millisecond, Close: true,
	}}})
	c, err := net.Dial("tcp", x.addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	began := time.Now()
	fmt.Fprint(c, "EHLO x\r\nAUTH PLAIN AGZyZWQAcGFzcw==\r\n")
	var last string
	for r := bufio.NewReader(c); ; {
		s, err := r.ReadString('\n')
		if err != nil {
			break
		}
		last = s
	}
	if last != "535 5.7.0 Go??away\r\n" {
		t.Errorf("the last line was %q", last)
	}
	if took := time.Since(began); took < 100*time.Millisecond {
		t.Errorf("refused after %v", took)
	}
}

// An answer that names the host makes no entry, but its unknown names are bounded as well.
func TestInventedUsersBypassed(t *testing.T) {
	table := penalty.New(penalty.Config{FailureDelay: -1, PerAddress: penalty.Rate{PerSecond: 0.001, Burst: 3}, MaxWait: time.Millisecond})
	x := newSite(t, siteConfig{
		protocol: "pop3", driver: auth.Static{NoPassword: true, Host: netip.MustParseAddr("127.0.0.2")},
		backend: backend.Options{Password: "secret"}, server: func(c *Config) { c.Penalty = table },
	})
	for i := range 6 {
		if s, err := x.dial(client.Config{User: fmt.Sprint("u", i), Password: "guess"}); err == nil {
			s.Close()
			t.Error("logged in")
		}
	}
	if _, _, _, n := x.backends[0].Counts(); n != 3 || x.entries() != 0 {
		t.Errorf("%d reached the backend, %d entries; want 3 and none", n, x.entries())
	}
}

// One address has few connections before login; those that are logged in do not count, and trusted networks have as many
// as they like.
func TestMaxPerAddress(t *testing.T) {
	for _, trusted := range []bool{false, true} {
		x := newSite(t, siteConfig{protocol: "imap", listener: func(l *Listener) { l.MaxPerAddress = 3 }, server: func(c *Config) {
			if trusted {
				c.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			}
		}})
		greeting := func() string {
			t.Helper()
			c, err := net.Dial("tcp", x.addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			s, err := bufio.NewReader(c).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			return s[:min(len(s), 5)]
		}
		for range 5 {
			if _, err := x.dial(client.Config{}); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for range 5 {
			got = append(got, greeting())
		}
		want := []string{"* OK ", "* OK ", "* OK ", "* BYE", "* BYE"}
		if trusted {
			want[3], want[4] = "* OK ", "* OK "
		}
		if !slices.Equal(got, want) {
			t.Errorf("trusted %v: greetings %q, want %q", trusted, got, want)
		}
	}
	for a, want := range map[string]string{"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1:2:3:4": "2001:db8::"} {
		if got := place(netip.MustParseAddr(a)); got.String() != want {
			t.Errorf("place of %s is %v, want %s", a, got, want)
		}
	}
}
