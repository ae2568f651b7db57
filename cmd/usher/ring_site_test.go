package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/testenv/client"
)

// kinds reads "DUD": a Dovecot, an Usher, a Dovecot.
func kinds(s string) (all []site.Kind) {
	for _, c := range s {
		if c == 'D' {
			all = append(all, site.Dovecot)
		} else {
			all = append(all, site.Usher)
		}
	}
	return all
}

// newRing builds a site with a ring of directors, none of which runs yet.
func newRing(t testing.TB, o site.RingOptions) *site.Ring {
	t.Helper()
	if err := site.AvailableRing(o.Members...); err != nil {
		t.Skip(err)
	}
	o.Site.Env = append(o.Site.Env, asCommand+"=1")
	r, err := site.NewRing(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for i, m := range r.Members {
				t.Logf("the log of member %d (%s) ends:\n%s", i, m.Kind, m.Log(40))
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// startRing starts members and waits until all that run are in a synced ring.
func startRing(t testing.TB, r *site.Ring, members ...int) {
	t.Helper()
	for _, i := range members {
		if err := r.Members[i].Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	awaitRing(t, r, running(r)...)
}

// running returns which members run.
func running(r *site.Ring) (all []int) {
	for i, m := range r.Members {
		if m.Running() {
			all = append(all, i)
		}
	}
	return all
}

// ringTimeout covers that a dead member is noticed (45 s), that one is alone (20 s), and another try.
const ringTimeout = 100 * time.Second

// awaitRing waits until these members say that they are a synced ring, by themselves.
func awaitRing(t testing.TB, r *site.Ring, members ...int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ringTimeout)
	defer cancel()
	for _, i := range members {
		if err := r.Members[i].Admin.AwaitSync(ctx, min(len(members)-1, 2)); err != nil {
			t.Fatalf("member %d (%s) of %d: %v", i, r.Members[i].Kind, len(members), err)
		}
	}
}

// doveadm runs a command that must succeed.
func doveadm(t testing.TB, m *site.Member, args ...string) string {
	t.Helper()
	out, err := m.Admin.Doveadm(t.Context(), args...)
	if err != nil {
		t.Fatalf("at %v (%s): %v", m.Addr, m.Kind, err)
	}
	return out
}

// loginAt logs in once at each of these members, as fast as it goes.
func loginAt(t testing.TB, r *site.Ring, user string, members ...int) []*client.Session {
	t.Helper()
	sessions, report := client.DialAll(t.Context(), len(members), len(members), func(i int) client.Config {
		c := r.Members[members[i]].Client(user)
		c.Timeout = 70 * time.Second
		c.Method = client.Methods[i%len(client.Methods)]
		return c
	})
	t.Cleanup(func() { client.CloseAll(sessions) })
	if err := report.Err(); err != nil {
		t.Fatalf("log in: %v", err)
	}
	return sessions
}

// noneTwice checks that nobody is on two backends.
func noneTwice(t testing.TB, r *site.Ring, when string) {
	t.Helper()
	if users := r.Twice(); len(users) > 0 {
		t.Errorf("%s: %d users are on two backends: %.10q", when, len(users), users)
	}
}

// gone checks that sessions end soon.
func gone(t testing.TB, what string, sessions []*client.Session) {
	t.Helper()
	if err := client.Each(sessions, func(_ int, s *client.Session) error {
		s.Conn().SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := s.Conn().Read(make([]byte, 1)); err == nil || client.KindOf(err) == client.Timeout || strings.Contains(err.Error(), "i/o timeout") {
			return fmt.Errorf("%s: the session of %s goes on (%v)", what, s.User(), err)
		}
		return nil
	}).Err(); err != nil {
		t.Error(err)
	}
}

// hostOf returns the host of a user as a member has it.
func hostOf(t testing.TB, m *site.Member, user string) netip.Addr {
	t.Helper()
	at, _, err := m.Admin.Lookup(t.Context(), user)
	if err != nil {
		t.Fatalf("at %v (%s): %v", m.Addr, m.Kind, err)
	}
	return at
}

// otherHost returns the next host.
func otherHost(r *site.Ring, h netip.Addr) netip.Addr {
	return r.Hosts[(slices.Index(r.Hosts, h)+1)%len(r.Hosts)]
}

// withoutColumn takes a column out of a table, and sorts the rows.
func withoutColumn(out string, column int) string {
	var lines []string
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if column < len(f) {
			f = slices.Delete(f, column, column+1)
		}
		lines = append(lines, strings.Join(f, "\t"))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// equalViews waits until all members show the same to doveadm: hosts, the times of their changes if wanted,
// users, and the dump.
func equalViews(t testing.TB, r *site.Ring, changed bool, members ...int) {
	t.Helper()
	status := 4
	if changed {
		status = -1
	}
	views := []struct {
		args   []string
		column int // what the members need not share
	}{
		{[]string{"status"}, status},
		{[]string{"map", "-f", "/dev/null"}, 3}, // the time, which two members may round differently
		{[]string{"dump"}, 1},                   // the path of the socket
	}
	for _, v := range views {
		var seen map[string][]int
		ok := false
		for end := time.Now().Add(15 * time.Second); !ok && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			seen = map[string][]int{}
			for _, i := range members {
				out := doveadm(t, r.Members[i], v.args...)
				if v.column >= 0 {
					out = withoutColumn(out, v.column)
				}
				seen[out] = append(seen[out], i)
			}
			ok = len(seen) == 1
		}
		if !ok {
			var b strings.Builder
			for _, out := range slices.Sorted(maps.Keys(seen)) {
				fmt.Fprintf(&b, "members %v:\n%s\n", seen[out], out)
			}
			t.Errorf("doveadm director %s differs:\n%s", strings.Join(v.args, " "), b.String())
		}
	}
}

// crowd logs users in at random members all the time, and remembers what went wrong.
type crowd struct {
	ring   *site.Ring
	stop   context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	logins int
	errs   []error // of logins at members that were not to fail
	twice  map[string]bool
}

// newCrowd begins: so many clients, each of which logs in, stays a little and leaves. excused reports whether a
// failure of a login that began then at that member is to be expected.
func newCrowd(t testing.TB, r *site.Ring, clients, users int, members func() []int, excused func(member int, begin time.Time) bool) *crowd {
	ctx, cancel := context.WithCancel(t.Context())
	c := &crowd{ring: r, stop: cancel, twice: map[string]bool{}}
	for k := range clients {
		c.wg.Go(func() {
			for n := k; ctx.Err() == nil; n += 7 {
				some := members()
				if len(some) == 0 {
					time.Sleep(10 * time.Millisecond)
					continue
				}
				i := some[n%len(some)]
				config := r.Members[i].Client(fmt.Sprintf("crowd%d@example.com", (n*31+k)%users))
				config.Timeout = 70 * time.Second
				begin := time.Now()
				s, err := client.Dial(ctx, config)
				c.mu.Lock()
				c.logins++
				if err != nil && ctx.Err() == nil && !excused(i, begin) {
					c.errs = append(c.errs, fmt.Errorf("%s at member %d, after %v: %w", begin.Format("15:04:05.000"), i, time.Since(begin), err))
				}
				c.mu.Unlock()
				if err != nil {
					time.Sleep(20 * time.Millisecond)
					continue
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Duration(50+(n*37)%400) * time.Millisecond):
				}
				s.Close()
			}
		})
	}
	c.wg.Go(func() {
		for ctx.Err() == nil {
			for _, u := range r.Twice() {
				c.mu.Lock()
				c.twice[u] = true
				c.mu.Unlock()
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	t.Cleanup(c.end)
	return c
}

func (c *crowd) end() {
	c.stop()
	c.wg.Wait()
}

// check ends the crowd and reports.
func (c *crowd) check(t testing.TB, atLeast int) {
	t.Helper()
	c.end()
	if c.logins < atLeast {
		t.Errorf("only %d logins, want at least %d", c.logins, atLeast)
	}
	if len(c.twice) > 0 {
		t.Errorf("%d users were on two backends: %.10q", len(c.twice), slices.Sorted(maps.Keys(c.twice)))
	}
	if len(c.errs) > 0 {
		t.Errorf("%d of %d logins failed, the first: %v", len(c.errs), c.logins, c.errs[0])
		for _, err := range c.errs[1:min(len(c.errs), 8)] {
			t.Logf("  %v", err)
		}
	}
	t.Logf("%d logins", c.logins)
}
