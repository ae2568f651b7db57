package serve

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"usher/cmd/internal/config"
	"usher/director"
	"usher/steer/health"
	"usher/steer/route"
	"usher/testenv/backend"
)

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("usher.toml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestHealthGroups: which host is checked how.
func TestHealthGroups(t *testing.T) {
	cfg := parse(t, `
[[backend]]
hosts = ["10.2.0.1-10.2.0.2", "mail.example"]
[backend.health]
interval = "7s"
check = "connect"
[[backend]]
hosts = ["10.2.0.3"]
[[backend]]
hosts = ["10.2.0.4"]
tag = "x"
[backend.health]
rise = 9
drain_rate = 0
[[listener]]
protocol = "imap"
address = "127.0.0.1:1143"
backend_port = 143
tls = "none"
[[listener]]
protocol = "imap"
address = "127.0.0.1:2143"
backend_port = 143
tls = "none"
[[listener]]
protocol = "pop3"
address = "127.0.0.1:1110"
backend_port = 995
backend_tls = "implicit"
tls = "none"
`)
	hosts := []config.Host{
		{Addr: netip.MustParseAddr("10.2.0.1")}, {Addr: netip.MustParseAddr("10.2.0.2")},
		{Addr: netip.MustParseAddr("10.2.0.9"), Name: "mail.example"},
		{Addr: netip.MustParseAddr("10.2.0.3"), Name: "mail.example"},
	}
	g, err := newGroups(cfg, hosts)
	if err != nil {
		t.Fatal(err)
	}
	d := director.New(director.Config{})
	for _, h := range []struct{ addr, tag string }{
		{"10.2.0.1", ""}, {"10.2.0.3", ""}, {"10.2.0.4", "x"}, {"10.2.0.9", ""}, {"10.2.0.50", ""}, {"10.2.0.51", "x"}, {"10.2.0.52", "y"},
	} {
		d.Step(time.Now(), director.HostPut{Host: director.Host{Addr: netip.MustParseAddr(h.addr), Tag: h.tag, Weight: 100}})
	}
	want := map[string]time.Duration{ // the interval tells the groups apart; 0: no checks
		"10.2.0.1": 7 * time.Second, "10.2.0.3": 7 * time.Second, "10.2.0.4": 5 * time.Second, "10.2.0.9": 7 * time.Second,
		"10.2.0.50": 7 * time.Second, "10.2.0.51": 5 * time.Second, "10.2.0.52": 0,
	}
	// 10.2.0.3 is one of the addresses of mail.example, which comes first.
	for _, h := range g.hosts(d) {
		var got time.Duration
		if h.Group != nil {
			got = h.Group.Interval
		}
		if got != want[h.Addr.String()] {
			t.Errorf("%v is checked every %v, want %v", h.Addr, got, want[h.Addr.String()])
		}
		if !h.Up || h.Marked || h.Draining || h.Weight != 100 {
			t.Errorf("host is %+v", h)
		}
	}
	if g.interval != 5*time.Second {
		t.Errorf("the shortest interval is %v", g.interval)
	}
	one, x := g.byTag[""], g.byTag["x"]
	if one.Check != health.Connect || one.Rise != 2 || one.Fall != 3 || one.DrainRate != 10 || one.FlapLimit != 3 || one.FlapWindow != 10*time.Minute || one.Timeout != 3*time.Second {
		t.Errorf("group is %+v", one)
	}
	if x.Check != health.Greeting || x.Rise != 9 || x.DrainRate != 0 {
		t.Errorf("group is %+v", x)
	}
	if s := one.Services; len(s) != 2 || s[0] != (health.Service{Protocol: "imap", Port: 143, TLS: "none"}) || s[1] != (health.Service{Protocol: "pop3", Port: 995, TLS: "implicit"}) {
		t.Errorf("services are %+v", s)
	}
}

func TestHealthWithoutChecks(t *testing.T) {
	cfg := parse(t, "[[backend]]\nhosts = [\"10.2.0.1\"]\n[[listener]]\nprotocol = \"imap\"\naddress = \"127.0.0.1:1143\"\ntls = \"none\"\n")
	if c, err := newHealth(cfg, nil, netip.AddrPort{}, nil, nil, nil, nil, zerolog.Nop()); c != nil || err != nil {
		t.Errorf("got %v, %v", c, err)
	}
	if all := healthOf(nil); len(all) != 0 {
		t.Errorf("got %v", all)
	}
}

// TestHealth: a mail server that stops to answer is marked in the director, its users are moved, and back again.
func TestHealth(t *testing.T) {
	first, second := netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")
	one, err := backend.Start(nil, first, backend.Options{IMAPPort: backend.AnyPort, POP3Port: backend.AnyPort, Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	two, err := backend.Start(nil, second, backend.Options{IMAPPort: int(one.IMAP().Port()), POP3Port: backend.AnyPort, Password: "secret"})
	if err != nil {
		t.Skipf("no port that is free at both addresses: %v", err)
	}
	defer two.Close()

	cfg := parse(t, strings.NewReplacer("PORT", one.IMAP().String()[len("127.0.0.2:"):]).Replace(`
[[backend]]
hosts = ["127.0.0.2-127.0.0.3"]
[backend.health]
interval = "100ms"
timeout = "500ms"
drain_rate = 1000
[[listener]]
protocol = "imap"
address = "127.0.0.1:1143"
backend_port = PORT
tls = "none"
`))
	d := director.New(director.Config{})
	for _, addr := range []netip.Addr{first, second} {
		d.Step(time.Now(), director.HostPut{Host: director.Host{Addr: addr, Weight: 100}})
	}
	router := route.New(route.Config{Director: d, Store: route.Forgetful{}, Stop: func(director.Stop) {}, Log: zerolog.Nop()})
	flush := func(_ context.Context, host netip.Addr, rate float64) error {
		router.Tell(director.HostFlush{Addr: host, Rate: rate})
		return nil
	}
	checker, err := newHealth(cfg, nil, netip.AddrPort{}, router, flush, nil, nil, zerolog.New(zerolog.NewTestWriter(t)))
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(&healthMetrics{checker})

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 2)
	go func() { done <- router.Run(ctx) }()
	go func() { done <- checker.Run(ctx) }()

	users := 0
	for users < 20 {
		users++
		if _, err := router.Route(ctx, string(rune('a'+users))+"@example", ""); err != nil {
			t.Fatal(err)
		}
	}
	host := func() (h director.HostInfo) {
		router.View(func(d *director.Director) { h = d.Hosts()[0] })
		return h
	}
	until := func(what string, is func(director.HostInfo) bool) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for !is(host()) {
			if time.Now().After(deadline) {
				t.Fatalf("not %s after 20 s: %+v; %+v", what, host(), checker.Hosts())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if n := host().Users; n == 0 || n == users {
		t.Fatalf("%d of %d users are on %v", n, users, first)
	}
	one.Behave(backend.Behaviour{Hang: true})
	until("down", func(h director.HostInfo) bool { return !h.Up && h.HealthDown })
	until("empty", func(h director.HostInfo) bool { return h.Users == 0 })
	if h := healthOf(checker); h[first].verdict != "down" || !strings.Contains(h[first].reason, "timeout") || h[second].verdict != "up" {
		t.Errorf("people read %+v", h)
	}
	one.Behave(backend.Behaviour{})
	until("up", func(h director.HostInfo) bool { return h.Up && !h.HealthDown })

	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			found[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for _, name := range []string{"usher_health_checks_total 127.0.0.2 good", "usher_health_checks_total 127.0.0.2 timeout", "usher_health_up 127.0.0.2", "usher_health_opinion 127.0.0.2 up", "usher_health_counted 127.0.0.3"} {
		if found[name] == 0 {
			t.Errorf("metric %q is missing or 0 in %v", name, found)
		}
	}
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
