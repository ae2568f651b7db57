package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/testenv/client"
	"usher/testenv/lab"
)

// stages are the moments at which a client leaves: what it sends, and how many
// lines it waits for, before.
var stages = []struct {
	name  string
	steps []step
}{
	{"connected", nil},
	{"greeted", []step{{"", 1}}},
	{"in the middle of LOGIN", []step{{"", 1}, {"a LOGIN us", 0}}},
	{"at the literal", []step{{"", 1}, {"a LOGIN {6}\r\n", 1}, {"us", 0}}},
	{"LOGIN not answered", []step{{"", 1}, {"a LOGIN %s secret\r\n", 0}}},
	{"not even greeted", []step{{"a LOGIN %s secret\r\n", 0}}},
	{"logged in", []step{{"", 1}, {"a LOGIN %s secret\r\n", 1}}},
	{"command not answered", []step{{"", 1}, {"a LOGIN %s secret\r\nb X-SOURCE 100000 1\r\n", 1}}},
	{"after a command", []step{{"", 1}, {"a LOGIN %s secret\r\n", 1}, {"b NOOP\r\n", 1}}},
	{"said goodbye", []step{{"", 1}, {"a LOGIN %s secret\r\n", 1}, {"b LOGOUT\r\n", 2}}},
}

// handOverFrom is the first stage where the kernel may take over.
const handOverFrom = 6

type step struct {
	send  string
	lines int
}

// leave connects, goes as far as the stage, and leaves by FIN or RST.
func leave(ctx context.Context, s *site.Site, from netip.Addr, stage int, user string, reset bool) error {
	d := s.Lab.Client.Dialer()
	d.Timeout, d.KeepAlive = 30*time.Second, -1
	d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	c, err := d.DialContext(ctx, "tcp", s.Service(client.IMAP).String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	r := bufio.NewReaderSize(c, 512)
	for _, x := range stages[stage].steps {
		if x.send != "" {
			if _, err := c.Write([]byte(strings.Replace(x.send, "%s", user, 1))); err != nil {
				return fmt.Errorf("%s: %w", stages[stage].name, err)
			}
		}
		for range x.lines {
			if _, err := r.ReadSlice('\n'); err != nil {
				return fmt.Errorf("%s: %w", stages[stage].name, err)
			}
		}
	}
	if stage >= handOverFrom && rand.IntN(3) > 0 {
		time.Sleep(rand.N(100 * time.Millisecond)) // before, in or after the hand-over; an ACK may take 40 ms
	}
	if reset {
		c.(*net.TCPConn).SetLinger(0)
	}
	return nil
}

// Clients that come and go at once, 1,000 in a second, leave nothing behind.
func TestChurn(t *testing.T) {
	const rate, users = 1000, 300
	length := time.Duration(number(30, 10)) * time.Second
	s := newSite(t, site.Options{Lab: lab.Options{Clients: 8}, Steer: `quiet = "1ms"`})
	start(t, s)
	from := s.Lab.Net(4).Clients
	churn := func(length time.Duration) (n, failed int, first error) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		begin := time.Now()
		places := make(chan struct{}, 500) // a slow machine does fewer, and is not buried
		for i := 0; time.Since(begin) < length; i++ {
			time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / rate)))
			n++
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				err := leave(t.Context(), s, from[i%len(from)], rand.IntN(len(stages)), fmt.Sprintf("user%d", rand.IntN(users)), rand.IntN(2) == 0)
				if err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed++
					if first == nil {
						first = err
					}
				}
			})
		}
		wg.Wait()
		return n, failed, first
	}
	settle := func() (m map[string]float64) {
		t.Helper()
		defer func() {
			if !t.Failed() {
				return
			}
			flows, _ := s.Admin.Flows(context.WithoutCancel(t.Context()))
			for i, f := range flows {
				if i < 20 {
					t.Logf("left: %+v", f)
				}
			}
			t.Logf("left: %d flows, %v", len(flows), metrics(t, s))
		}()
		within(t, time.Minute, "no session left", func() bool { return status(t, s).Sessions.Total == 0 })
		within(t, time.Minute, "no flow left", func() bool { return sum(flowStates(t, s)) == 0 })
		for _, b := range s.Backends {
			within(t, time.Minute, "no session left at the backends", func() bool {
				connections, sessions, _, _ := b.Counts()
				return connections == 0 && sessions == 0
			})
		}
		return metrics(t, s)
	}
	// What is made once and kept (pools, users' entries) is there before it counts.
	if n, failed, err := churn(3 * time.Second); failed > 0 {
		t.Fatalf("%d of %d connects failed: %v", failed, n, err)
	}
	before := settle()
	begin := time.Now()
	n, failed, err := churn(length)
	took := time.Since(begin)
	if failed > 0 {
		t.Errorf("%d of %d connects failed: %v", failed, n, err)
	}
	after := settle()
	for _, x := range []struct {
		metric string
		more   float64 // than before
	}{
		{"go_goroutines", 10},
		{"process_open_fds", 5},
		// Of the heap, not of the process: the race detector's own memory follows what the machine is busy with.
		{"go_memstats_heap_inuse_bytes", 32 << 20}, // the allocator's business, but not a leak of 1 KiB per connection
		{"usher_director_users", users - before["usher_director_users"]},
	} {
		t.Logf("%s: %.0f before, %.0f after", x.metric, before[x.metric], after[x.metric])
		if after[x.metric] > before[x.metric]+x.more {
			t.Errorf("%s grew from %.0f to %.0f", x.metric, before[x.metric], after[x.metric])
		}
	}
	t.Logf("%d connects in %v (%.0f per second), %.0f logins, %.0f hand-overs (%.0f undone)", n, took.Round(time.Millisecond), float64(n)/took.Seconds(),
		after["usher_steer_logins_total"]-before["usher_steer_logins_total"], after["usher_steer_handover_total"]-before["usher_steer_handover_total"],
		after["usher_steer_handover_undone_total"]-before["usher_steer_handover_undone_total"])
	ends := map[string]int{}
	for _, e := range endings(t, s) {
		ends[fmt.Sprintf("%s %s", e.Mode, cmp.Or(e.Reason, e.End))]++
	}
	t.Logf("ends of sessions by mode: %v", ends)
	// Everything goes on as before.
	sessions := login(t, s, 500, func(i int) client.Config {
		c := s.Client(fmt.Sprintf("user%d", i%users))
		c.Local = from[i%len(from)]
		return c
	})
	allForwarded(t, s, len(sessions))
	if err := client.Each(sessions, func(i int, x *client.Session) error {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := x.Traffic(ctx, uint64(i)); err != nil {
			return err
		}
		return x.Logout()
	}).Err(); err != nil {
		t.Error(err)
	}
	noErrors(t, s)
	if b, err := os.ReadFile(s.LogFile()); err != nil || strings.Contains(string(b), "no free source port") {
		t.Errorf("source ports were used up, or %v", err)
	}
}

// A client that resets directly behind its last bytes, or a backend that does, is
// believed by the other side before that has acknowledged them; and so by us.
func TestResetBehindData(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	const n = 50
	sessions := login(t, s, 2*n, func(i int) client.Config { return s.Client(fmt.Sprintf("user%d", i)) })
	allForwarded(t, s, 2*n)
	if err := client.Each(sessions, func(i int, x *client.Session) error {
		if i%2 == 0 {
			if _, err := x.Conn().Write([]byte("no end of line")); err != nil {
				return err
			}
			return x.Abort()
		}
		// The backend answers the first command and resets at the second.
		if _, err := x.Conn().Write([]byte("a NOOP\r\nb X-RESET\r\n")); err != nil {
			return err
		}
		x.Conn().SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := io.Copy(io.Discard, x.Conn())
		if !isReset(err) {
			return fmt.Errorf("client sees %w, want a reset", err)
		}
		return nil
	}).Err(); err != nil {
		t.Error(err)
	}
	eventually(t, "no session left at the backends", func() bool {
		left := 0
		for _, b := range s.Backends {
			left += sum(b.Live())
		}
		return left == 0
	})
	eventually(t, "no session left", func() bool {
		left := status(t, s).Sessions.Total
		if left > 0 {
			time.Sleep(time.Second)
			t.Logf("%d sessions left", left)
		}
		return left == 0
	})
	within(t, time.Minute, "no flow left", func() bool { return sum(flowStates(t, s)) == 0 })
	noErrors(t, s)
}
