package serve

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"usher/cmd/internal/config"
	"usher/cmd/internal/state"
	"usher/director"
	"usher/steer/health"
	"usher/steer/route"
)

// greeter is a mail server that greets, but not everybody.
type greeter struct {
	net.Listener
	mu  sync.Mutex
	cut map[netip.Addr]bool // whose connections it closes
}

func listenGreeter(t *testing.T, addr string) *greeter {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("the port is free at another address only: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	g := &greeter{Listener: l, cut: map[netip.Addr]bool{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			cut := g.cut[c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()]
			g.mu.Unlock()
			go func() {
				defer c.Close()
				if !cut {
					_, _ = io.WriteString(c, "* OK ready\r\n")
					_, _ = c.Read(make([]byte, 100))
				}
			}()
		}
	}()
	return g
}

func (g *greeter) reach(addr string, reached bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut[netip.MustParseAddr(addr)] = !reached
}

// TestHealthVotes: three directors in a ring of sockets. A host that one of them does not reach stays up; one
// that two do not reach is down for all three.
func TestHealthVotes(t *testing.T) {
	first := listenGreeter(t, "127.0.0.2:0")
	port := first.Addr().(*net.TCPAddr).Port
	listenGreeter(t, fmt.Sprintf("127.0.0.3:%d", port))

	type node struct {
		router  *route.Router
		checker *health.Checker
	}
	var nodes []*node
	ctx, cancel := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	for i := range 3 {
		cfg := parse(t, fmt.Sprintf(`
[director]
servers = ["127.0.0.11:19090", "127.0.0.12:19090", "127.0.0.13:19090"]
ring_listen = "127.0.0.%[1]d:19090"
[[backend]]
hosts = ["127.0.0.2-127.0.0.3"]
[backend.health]
interval = "200ms"
timeout = "1s"
[[listener]]
protocol = "imap"
address = "127.0.0.1:1143"
backend_port = %[2]d
tls = "none"
[steer]
source_addresses = ["127.0.0.%[1]d"]
`, 11+i, port))
		self, members, err := cfg.Ring(ctx, net.DefaultResolver, config.MayBind)
		if err != nil {
			t.Fatal(err)
		}
		hosts, err := resolve(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		rc, err := newRoute(cfg, hosts, self, members, state.State{}, log)
		if err != nil {
			t.Fatal(err)
		}
		n := &node{}
		peers, err := listenRing(cfg.Director, self, func() *route.Router { return n.router }, log)
		if err != nil {
			t.Fatal(err)
		}
		rc.Network, rc.Store, rc.Stop = peers, route.Forgetful{}, func(director.Stop) {}
		rc.Vote = func(v director.HealthVote) { n.checker.Hear(v.Director, v.Host, v.Up) }
		n.router = route.New(rc)
		flush := func(context.Context, netip.Addr, float64) error { return nil }
		if n.checker, err = newHealth(cfg, hosts, self, n.router, flush, nil, nil, log); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
		for _, run := range []func(context.Context) error{peers.Run, n.router.Run, n.checker.Run} {
			parts.Go(func() {
				if err := run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
	}

	until := func(what string, is func(n *node, h director.HostInfo, s health.Status) bool) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			all, states := true, ""
			for _, n := range nodes {
				var h director.HostInfo
				n.router.View(func(d *director.Director) { h = d.Hosts()[0] })
				if found := n.checker.Hosts(); len(found) == 2 {
					all = all && is(n, h, found[0])
					states += fmt.Sprintf("\n%+v\n%+v", h, found[0])
				} else {
					all = false
				}
			}
			if all {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not %s after 30 s: %s", what, states)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	until("counted by all", func(_ *node, h director.HostInfo, s health.Status) bool {
		return h.Up && s.Tally == health.Tally{Counted: 3, Leader: netip.MustParseAddrPort("127.0.0.11:19090")}
	})
	first.reach("127.0.0.12", false)
	until("said to be down by one", func(_ *node, _ director.HostInfo, s health.Status) bool {
		return s.Tally.Counted == 3 && s.Tally.Down == 1
	})
	for range 50 {
		until("up", func(_ *node, h director.HostInfo, s health.Status) bool {
			if !h.Up || h.HealthDown || !s.Up {
				t.Fatalf("the word of one is enough: %+v, %+v", h, s)
			}
			return true
		})
		time.Sleep(20 * time.Millisecond)
	}
	first.reach("127.0.0.13", false)
	until("down for all", func(n *node, h director.HostInfo, s health.Status) bool {
		return !h.Up && h.HealthDown && !s.Up && (n != nodes[0] || s.Opinion == health.Up)
	})
	first.reach("127.0.0.12", true)
	until("up again", func(_ *node, h director.HostInfo, s health.Status) bool { return h.Up && !h.HealthDown && s.Up })
}
