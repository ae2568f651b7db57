package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"usher/cmd/internal/config"
	"usher/director"
	"usher/loader"
	"usher/steer/handover"
	"usher/steer/health"
	"usher/steer/route"
	"usher/steer/secure"
	"usher/steer/upstream"
)

// groups knows how each host is checked.
type groups struct {
	configured map[netip.Addr]*health.Group // nil: without checks
	byTag      map[string]*health.Group     // of hosts that are in no configuration: the first of their tag
	interval   time.Duration                // the shortest; 0: there are no checks at all
}

// newHealth makes the checks of the hosts, nil if none are configured. hosts are those of the configuration, with
// names looked up; self is our address in the ring; flush moves the users of a host.
func newHealth(cfg *config.Config, hosts []config.Host, self netip.AddrPort, router *route.Router, flush health.FlushFunc,
	k *loader.Kernel, backends *secure.Backends, log zerolog.Logger) (*health.Checker, error) {
	g, err := newGroups(cfg, hosts)
	if err != nil || g.interval == 0 {
		return nil, err
	}
	network := checkNetwork{dialer: &upstream.Dialer{Sources: cfg.Steer.SourceAddresses}, backends: backends, router: router}
	if k != nil {
		network.dialer.Kernel = k
	}
	return health.New(health.Config{
		Interval: g.interval, Self: self, Network: health.Network{Dial: network.dial, Encrypt: network.encrypt}, Flush: flush, Log: log,
		Hosts: func() (all []health.Host) {
			router.View(func(d *director.Director) { all = g.hosts(d) })
			return all
		},
		Say:    func(host netip.Addr, up bool) { router.Tell(director.HealthSay{Host: host, Up: up}) },
		Decide: func(d health.Decision) { router.Tell(director.HostUp{Addr: d.Host, Up: d.Up, Health: true}) },
	}), nil
}

// newGroups translates the configuration.
func newGroups(cfg *config.Config, hosts []config.Host) (*groups, error) {
	g := &groups{configured: map[netip.Addr]*health.Group{}, byTag: map[string]*health.Group{}}
	for i, b := range cfg.Backends {
		var group *health.Group
		if b.Health != nil {
			var err error
			if group, err = newGroup(*b.Health, services(cfg.Listeners)); err != nil {
				return nil, fmt.Errorf("backend[%d].health.%w", i, err)
			}
			if _, ok := g.byTag[b.Tag]; !ok {
				g.byTag[b.Tag] = group
			}
			if g.interval == 0 || group.Interval < g.interval {
				g.interval = group.Interval
			}
		}
		// The first to name a host has it, as with weight and tag.
		put := func(addr netip.Addr) {
			if _, taken := g.configured[addr]; !taken {
				g.configured[addr] = group
			}
		}
		for _, spec := range b.Hosts {
			for addr := range spec.Addrs() {
				put(addr)
			}
			for _, h := range hosts {
				if spec.Name != "" && h.Name == spec.Name {
					put(h.Addr)
				}
			}
		}
	}
	return g, nil
}

func newGroup(h config.Health, services []health.Service) (*health.Group, error) {
	if len(services) == 0 {
		return nil, errors.New("check: no listener says on which port the backends are")
	}
	group := &health.Group{
		Interval: h.Interval.Std(), Timeout: h.Timeout.Std(), DrainRate: float64(h.DrainRate),
		Rules: health.Rules{Rise: h.Rise, Fall: h.Fall, FlapLimit: h.FlapLimit, FlapWindow: h.FlapWindow.Std()},
		Probe: health.Probe{Check: health.Check(h.Check), Services: services, User: h.User},
	}
	if h.PasswordFile != "" {
		b, err := os.ReadFile(h.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("password_file: %w", err)
		}
		group.Password = strings.TrimRight(string(b), "\r\n")
	}
	return group, nil
}

// services are what the listeners use of each backend. A host has to offer them all: a user whose sessions
// go to one host only is badly served by half of it.
func services(listeners []config.Listener) (all []health.Service) {
	for _, l := range listeners {
		s := health.Service{Protocol: l.Protocol, Port: uint16(l.BackendPort), TLS: l.BackendTLS}
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// hosts are those of the director, as the checks want to know them.
func (g *groups) hosts(d *director.Director) (all []health.Host) {
	draining := func(addr netip.Addr) bool {
		p, ok := d.Progress(addr)
		return ok && p.Ended.IsZero()
	}
	every := draining(netip.Addr{})
	for _, h := range d.Hosts() {
		group, ok := g.configured[h.Addr]
		if !ok {
			group = g.byTag[h.Tag]
		}
		all = append(all, health.Host{
			Addr: h.Addr, Group: group, Tag: h.Tag, Weight: h.Weight, Users: h.Users,
			Up: h.Up, Marked: h.HealthDown, Draining: every || draining(h.Addr),
		})
	}
	return all
}

// checkNetwork connects as sessions do: a port of ours that a session in the kernel uses must not be taken
// for a check of the same host, whose packets would go to that session's client.
type checkNetwork struct {
	dialer   *upstream.Dialer
	backends *secure.Backends // nil: no listener speaks TLS with them
	router   *route.Router
}

func (n checkNetwork) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := n.dialer.Dial(ctx, to, 0, 0)
	if err != nil {
		return nil, err
	}
	return &checkConn{Conn: c, kernel: n.dialer.Kernel}, nil
}

func (n checkNetwork) encrypt(conn net.Conn, host netip.Addr) (net.Conn, error) {
	c, ok := conn.(*checkConn)
	if !ok || n.backends == nil {
		return nil, errors.New("TLS with backends is not configured")
	}
	// The certificate names the host as the configuration does.
	name := host.String()
	n.router.View(func(d *director.Director) {
		for _, h := range d.Hosts() {
			if h.Addr == host && h.Name != "" {
				name = h.Name
			}
		}
	})
	return n.backends.Client(c.TCPConn, name, false)
}

// checkConn gives its port free when it is closed.
type checkConn struct {
	*upstream.Conn
	kernel handover.Kernel
	once   sync.Once
}

func (c *checkConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		if c.NotObserved == handover.Spliced {
			c.kernel.Forget(c.Tuple)
		}
	})
	return err
}

// healthOf is what the checks say of each host, for people: "up" or "down", and why the last check failed.
func healthOf(c *health.Checker) map[netip.Addr]hostHealth {
	all := map[netip.Addr]hostHealth{}
	if c == nil {
		return all
	}
	for _, s := range c.Hosts() {
		h := hostHealth{verdict: health.Up.String()}
		if !s.Up {
			h.verdict = health.Down.String()
		}
		if s.Failure != nil {
			h.reason = s.Failure.Error()
		}
		all[s.Host] = h
	}
	return all
}

type hostHealth struct{ verdict, reason string }

// healthMetrics reads the state when it is scraped.
type healthMetrics struct{ checker *health.Checker }

var (
	descHealthUp      = desc("health_up", "Whether the vote of the directors finds a backend up.", "host")
	descHealthOpinion = desc("health_opinion", "1 for what this director's checks say of a backend: up, down or unknown.", "host", "opinion")
	descHealthCounted = desc("health_counted", "Directors that were counted in the last vote about a backend.", "host")
	descHealthSayDown = desc("health_say_down", "Directors that said down in the last vote about a backend.", "host")
	descHealthHeld    = desc("health_held", "Whether a backend is held down because it flaps.", "host")
	descHealthChecks  = desc("health_checks_total", "Checks by result: good, or the reason of the failure.", "host", "result")
	descHealthTook    = desc("health_check_seconds", "How long the last check of a backend took.", "host")
)

// Describe implements prometheus.Collector.
func (m *healthMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descHealthUp, descHealthOpinion, descHealthCounted, descHealthSayDown, descHealthHeld, descHealthChecks, descHealthTook,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *healthMetrics) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	for _, s := range m.checker.Hosts() {
		host := s.Host.String()
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{host}, labels...)...)
		}
		gauge(descHealthUp, oneIf(s.Up))
		for _, v := range []health.Verdict{health.Unknown, health.Up, health.Down} {
			gauge(descHealthOpinion, oneIf(s.Opinion == v), v.String())
		}
		gauge(descHealthCounted, float64(s.Tally.Counted))
		gauge(descHealthSayDown, float64(s.Tally.Down))
		gauge(descHealthHeld, oneIf(s.Held.After(now)))
		gauge(descHealthTook, s.Took.Seconds())
		// All of them from the start: a rate needs the zero before the first failure.
		for _, r := range append([]health.Reason{""}, health.Reasons...) {
			result := "good"
			if r != "" {
				result = string(r)
			}
			ch <- prometheus.MustNewConstMetric(descHealthChecks, prometheus.CounterValue, float64(s.Checks[r]), host, result)
		}
	}
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
