package peer

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"usher/director"
)

// fourMembers is a ring of four over loopback TCP, with two hosts.
func fourMembers(b *testing.B) []*member {
	at := addresses(b, 4)
	var all []*member
	for _, self := range at {
		m := start(b, self, at, Config{})
		m.do(func(now time.Time) {
			for _, addr := range []string{"10.2.0.1", "10.2.0.2"} {
				h := director.Host{Addr: netip.MustParseAddr(addr), Weight: 100}
				m.ring.Step(now, director.HostPut{Host: h, Configured: true})
			}
		})
		all = append(all, m)
	}
	within(b, 20*time.Second, "four are whole", whole(all...))
	return all
}

// knows says whether the member has heard of a user.
func (m *member) knows(user string) (ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok = m.director.Entry(m.director.KeyOf(user, ""))
	return ok
}

// login is one of number n, at this member. The caller has the lock.
func (m *member) login(now time.Time, n int) {
	m.ring.Step(now, director.Lookup{Request: uint64(n), User: fmt.Sprintf("user%d@example.com", n)})
}

// BenchmarkLoopback: as many logins as go, at all four members at the same time, until all know of all. They share
// the cores, as the members of a real ring do not.
func BenchmarkLoopback(b *testing.B) {
	all := fourMembers(b)
	const batch = 50
	b.ResetTimer()
	var work sync.WaitGroup
	for i, m := range all {
		work.Go(func() {
			for n := i * batch; n < b.N; n += 4 * batch {
				m.do(func(now time.Time) {
					for k := n; k < min(n+batch, b.N); k++ {
						m.login(now, k)
					}
				})
			}
			m.do(func(now time.Time) { m.login(now, -1-i) }) // the last of this member
		})
	}
	work.Wait()
	for _, m := range all {
		for i := range all {
			within(b, time.Minute, "all have heard all", func() bool { return m.knows(fmt.Sprintf("user%d@example.com", -1-i)) })
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "logins/s")
}

// BenchmarkSteadyLoopback: 60,000 logins a second for three seconds, and how long it takes at worst until the
// member opposite has heard of one, and how many bytes waited at worst: neither may grow.
func BenchmarkSteadyLoopback(b *testing.B) {
	const rate, seconds = 60_000, 3
	for b.Loop() {
		all := fourMembers(b)
		stop := time.Now().Add(seconds * time.Second)
		var work sync.WaitGroup
		for i, m := range all {
			work.Go(func() {
				n := 0
				for began := time.Now(); time.Now().Before(stop); time.Sleep(2 * time.Millisecond) {
					due := int(time.Since(began).Seconds() * rate / 4)
					m.do(func(now time.Time) {
						for ; n < due; n++ {
							m.login(now, n*4+i)
						}
					})
				}
			})
		}
		var worst, first, second time.Duration
		queued := 0
		for probe := -1; time.Now().Before(stop); probe-- {
			began := time.Now()
			all[0].do(func(now time.Time) { all[0].login(now, probe) })
			for user := fmt.Sprintf("user%d@example.com", probe); !all[2].knows(user); {
				time.Sleep(200 * time.Microsecond)
			}
			took := time.Since(began)
			worst = max(worst, took)
			if half := seconds * time.Second / 2; time.Until(stop) > half {
				first = max(first, took)
			} else {
				second = max(second, took)
			}
			for _, m := range all {
				for _, c := range m.status().Conns {
					queued = max(queued, c.Queued)
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
		work.Wait()
		within(b, 10*time.Second, "still whole", whole(all...))
		b.ReportMetric(float64(worst)/1e6, "ms-worst")
		b.ReportMetric(float64(first)/1e6, "ms-worst-1st-half")
		b.ReportMetric(float64(second)/1e6, "ms-worst-2nd-half")
		b.ReportMetric(float64(queued), "bytes-queued")
		b.StopTimer()
		for _, m := range all {
			if err := m.end(); err != nil {
				b.Error(err)
			}
		}
		b.StartTimer()
	}
}

// BenchmarkJoinLoopback: a director joins a ring of two with a million users. How long until it is in, and how
// long a login of a user that is known had to wait meanwhile, at worst.
func BenchmarkJoinLoopback(b *testing.B) {
	const users = 1_000_000
	for b.Loop() {
		b.StopTimer()
		at := addresses(b, 3)
		hosts := func(m *member) {
			m.do(func(now time.Time) {
				h := director.Host{Addr: netip.MustParseAddr("10.2.0.1"), Weight: 100}
				m.ring.Step(now, director.HostPut{Host: h, Configured: true})
			})
		}
		a, c := start(b, at[0], at, Config{}), start(b, at[2], at, Config{})
		hosts(a)
		hosts(c)
		within(b, 30*time.Second, "two are whole", func() bool { return a.status().Synced && c.status().Synced && len(a.status().Conns) == 2 })
		for n := 0; n < users; n += 1000 {
			a.do(func(now time.Time) {
				for k := n; k < n+1000; k++ {
					a.login(now, k)
				}
			})
		}
		within(b, time.Minute, "both know all", func() bool { return c.knows(fmt.Sprintf("user%d@example.com", users-1)) })
		time.Sleep(1100 * time.Millisecond) // what is used in this second is not part of the list
		b.StartTimer()

		var worst time.Duration
		began := time.Now()
		j := start(b, at[1], at, Config{})
		for n := 0; !j.status().Synced || len(j.status().Conns) != 2; n++ {
			asked := time.Now()
			a.do(func(now time.Time) { a.login(now, n) })
			worst = max(worst, time.Since(asked))
			time.Sleep(time.Millisecond)
			if time.Since(began) > time.Minute {
				b.Fatal("it does not get in")
			}
		}
		took := time.Since(began)
		if !j.knows("user999999@example.com") {
			b.Error("it does not know all")
		}
		b.StopTimer()
		b.ReportMetric(took.Seconds(), "s/join")
		b.ReportMetric(float64(worst)/1e6, "ms-worst-login")
		for _, m := range []*member{a, c, j} {
			if err := m.end(); err != nil {
				b.Error(err)
			}
		}
		b.StartTimer()
	}
}
