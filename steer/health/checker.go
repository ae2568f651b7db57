package health

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// parallel bounds the checks that run at the same time.
const parallel = 64

// jitter is how far an interval is off at most, as a part of it: checks of many hosts by many directors
// must not fall into step.
const jitter = 0.1

// freshness is for how many intervals an opinion counts after a check.
const freshness = 3

// Group is hosts that are checked alike.
type Group struct {
	Interval time.Duration // from one check to the next, give or take a tenth
	Timeout  time.Duration // of one check, all services together
	Rules
	Probe
	DrainRate float64 // users per second that are moved away from a host that is down; 0: none
}

// fresh is for how long what was said of a host counts. With a timeout longer than the interval, results come
// as seldom as the timeout says.
func (g *Group) fresh() time.Duration { return freshness * max(g.Interval, g.Timeout) }

// Host is a host as the director has it.
type Host struct {
	Addr     netip.Addr
	Group    *Group // nil: it is not checked
	Tag      string
	Weight   int
	Users    int
	Up       bool // and not down by order or by check
	Marked   bool // down by our last Decision, even if an operator put it up again
	Draining bool // somebody moves its users already
}

// Decision is what the directors have decided about a host.
type Decision struct {
	Host  netip.Addr
	Up    bool
	Tally Tally
}

// FlushFunc moves the users of a host to where they belong, so many per second, and returns when the last one
// has been moved or ctx ends. A host that comes back meanwhile keeps the rest.
type FlushFunc func(ctx context.Context, host netip.Addr, rate float64) error

// Config is what a Checker needs. Hosts, Say and Decide are called by Run, one at a time and without locks held.
type Config struct {
	Interval time.Duration  // how often Hosts is asked, and all is reviewed: the shortest of the groups
	Self     netip.AddrPort // our own address in the ring; invalid without one
	Hosts    func() []Host  // all there are at the moment
	Network
	Say    func(host netip.Addr, up bool) // tell the other directors
	Decide func(Decision)                 // when a decision changes, and as long as the director has another
	Flush  FlushFunc
	Log    zerolog.Logger
}

// Checker checks hosts and votes about them. See the package documentation.
type Checker struct {
	cfg     Config
	slots   chan struct{}
	results chan result
	wake    chan struct{} // Hear has something

	mu      sync.Mutex
	hosts   map[netip.Addr]*host
	ballots map[netip.AddrPort]Ballot // our own under Self
	heard   map[netip.Addr]struct{}   // hosts whose votes have changed
}

// host is what is known of a host.
type host struct {
	opinion
	group   *Group
	addr    netip.Addr
	stop    context.CancelFunc // of its checks
	removed bool

	answered time.Time // when its last good check began

	decided Verdict   // Up or Down
	at      time.Time // when
	drained time.Time // the value of at when its users began to be moved
	tally   Tally     // of the last vote

	failure *Failure      // of the last check, nil: it was good
	took    time.Duration // the last check
	checks  map[Reason]uint64
}

// result is the end of a check.
type result struct {
	host    *host
	took    time.Duration
	failure *Failure
}

// New returns a Checker; Run makes it check.
func New(cfg Config) *Checker {
	return &Checker{
		cfg: cfg, slots: make(chan struct{}, parallel), results: make(chan result), wake: make(chan struct{}, 1),
		hosts: map[netip.Addr]*host{}, ballots: map[netip.AddrPort]Ballot{cfg.Self: {}}, heard: map[netip.Addr]struct{}{},
	}
}

// Hear takes what another director says of a host. It never blocks.
func (c *Checker) Hear(director netip.AddrPort, addr netip.Addr, up bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.hosts[addr]
	if !ok || director == c.cfg.Self {
		return // of a host that we do not check it will be said again
	}
	b, ok := c.ballots[director]
	if !ok {
		b = Ballot{}
		c.ballots[director] = b
	}
	b[addr] = Say{Up: up, Until: time.Now().Add(h.group.fresh())}
	c.heard[addr] = struct{}{}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run checks until ctx ends.
func (c *Checker) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	ticker := time.NewTicker(c.cfg.Interval)
	defer ticker.Stop()
	c.round(ctx, &parts)
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-c.results:
			c.result(r)
		case <-c.wake:
			c.votes()
		case <-ticker.C:
			c.round(ctx, &parts)
		}
	}
}

// watch checks one host again and again.
func (c *Checker) watch(ctx context.Context, h *host) {
	wait := time.Duration(rand.Float64() * float64(h.group.Interval))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		select {
		case <-ctx.Done():
			return
		case c.slots <- struct{}{}:
		}
		began := time.Now()
		c.mu.Lock()
		h.opinion.begin(began)
		c.mu.Unlock()
		within, cancel := context.WithTimeout(ctx, h.group.Timeout)
		failure := h.group.run(within, c.cfg.Network, h.addr)
		cancel()
		<-c.slots
		took := time.Since(began)
		select {
		case <-ctx.Done():
			return // and the failure may be because of that
		case c.results <- result{host: h, took: took, failure: failure}:
		}
		// From the beginning of one check to that of the next, so that a slow host is not checked less.
		wait = time.Duration((1 - jitter + 2*jitter*rand.Float64()) * float64(h.group.Interval))
		timer.Reset(wait - took) // at once if that is over
	}
}
