package demo

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"usher/cmd/internal/admin"
)

// Times of the watch.
const (
	lookEvery  = 250 * time.Millisecond
	rateOver   = 2 * time.Second // rates are averages over this time
	askTimeout = 2 * time.Second
)

// sample is one look at the site.
type sample struct {
	at     time.Time
	answer bool   // the daemon answered: sessions and users are its word
	daemon string // what there is of it: "pid 17", "killed"
	alive  bool   // there is a process

	hosts    []hostSample
	sessions admin.SessionCounts
	users    int

	packets    uint64 // forwarded by the kernel
	bytes      uint64
	estimated  bool // nobody to ask: counted at the director's interfaces since the last answer
	packetRate float64

	cpu float64 // percent of one CPU
	rss uint64  // bytes

	inside      int // sessions that clients have
	commands    uint64
	commandRate float64
	failed      int // clients that saw an error
}

type hostSample struct {
	addr            netip.Addr
	users, sessions int // by the daemon's word
	weight          int
	up              bool
	seen            bool // the backend can be asked, too:
	seenUsers       int
	seenSessions    int
}

// watch looks at the site again and again.
type watch struct {
	d *demo

	mu     sync.Mutex
	pid    int
	daemon string

	history []sample // of the last rateOver
	last    admin.Status
	base    uint64 // packets at the director's interfaces when the daemon last answered
	pidSeen int
	used    usage         // of that process
	before  time.Duration // CPU time of the processes before
	cpus    []cpuSample
}

type cpuSample struct {
	at  time.Time
	cpu time.Duration
}

func newWatch(d *demo) *watch { return &watch{d: d, daemon: "starts"} }

// is notes what the acts did with the daemon; pid 0 means that there is none.
func (w *watch) is(pid int, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pid, w.daemon = pid, what
}

// run looks until ctx ends.
func (w *watch) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		s := w.look(ctx)
		if ctx.Err() != nil {
			return
		}
		w.d.board.update(func(c *scene) {
			c.sample = s
			if s.answer {
				c.kernel = w.last.Kernel
			}
			if s.inside >= c.peak.sessions && s.answer {
				c.peak.sessions, c.peak.hosts = s.inside, s.hosts
			}
			c.peak.rss, c.peak.cpu = max(c.peak.rss, s.rss), max(c.peak.cpu, s.cpu)
			c.peak.cpuTime = w.before + w.used.cpu
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (w *watch) look(ctx context.Context) sample {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	w.mu.Lock()
	pid, daemon := w.pid, w.daemon
	w.mu.Unlock()
	s := sample{at: time.Now(), daemon: daemon, alive: pid != 0}
	if pid != 0 {
		if st, err := w.d.site.Admin.Status(ctx); err == nil {
			s.answer, w.last = true, st
		}
	}
	s.sessions, s.users = w.last.Sessions, w.last.Director.Users
	w.packets(&s)
	w.process(&s, pid)
	w.hosts(&s)
	guests := w.d.fleet.all()
	s.inside, s.failed = count(guests, inside), w.d.fleet.failures()
	s.commands = w.d.fleet.commands.Load()
	w.rates(&s)
	return s
}

// packets takes the kernel's counters by way of the daemon. While there is none the programs count on, but only the
// interfaces can be asked; in that time nearly every packet there is a forwarded one.
func (w *watch) packets(s *sample) {
	s.packets, s.bytes = w.last.Kernel.Packets, w.last.Kernel.Bytes
	now, ok := w.interfaces()
	switch {
	case s.answer:
		w.base = now
	case ok && w.last.Kernel.Program != "" && now > w.base:
		s.packets += now - w.base
		s.estimated = true
	}
}

// interfaces counts the packets that came in at the director's interfaces.
func (w *watch) interfaces() (packets uint64, ok bool) {
	l := w.d.site.Lab
	if l == nil {
		return 0, false
	}
	for _, name := range []string{l.ClientLink, l.BackendLink} {
		link, err := l.Director.Netlink().LinkByName(name)
		if err != nil || link.Attrs().Statistics == nil {
			return 0, false
		}
		packets += link.Attrs().Statistics.RxPackets
	}
	return packets, true
}

func (w *watch) process(s *sample, pid int) {
	u, err := readUsage(pid)
	if pid == 0 || err != nil {
		return
	}
	if pid != w.pidSeen {
		w.before += w.used.cpu
		w.pidSeen, w.cpus = pid, nil
	}
	w.used, s.rss = u, u.rss
	w.cpus = append(w.cpus, cpuSample{s.at, u.cpu})
	for len(w.cpus) > 2 && s.at.Sub(w.cpus[0].at) > rateOver {
		w.cpus = w.cpus[1:]
	}
	if over := s.at.Sub(w.cpus[0].at); over > 0 {
		s.cpu = 100 * float64(u.cpu-w.cpus[0].cpu) / float64(over)
	}
}

func (w *watch) hosts(s *sample) {
	for i, a := range w.d.site.Hosts {
		h := hostSample{addr: a, weight: 100, up: true}
		for _, known := range w.last.Hosts {
			if known.Address == a {
				h.users, h.sessions, h.weight, h.up = known.Users, known.Sessions, known.Weight, known.Up
			}
		}
		if i < len(w.d.site.Backends) {
			live := w.d.site.Backends[i].Live()
			h.seen, h.seenUsers = true, len(live)
			for _, n := range live {
				h.seenSessions += n
			}
		}
		s.hosts = append(s.hosts, h)
	}
}

func (w *watch) rates(s *sample) {
	for len(w.history) > 0 && s.at.Sub(w.history[0].at) > rateOver {
		w.history = w.history[1:]
	}
	if len(w.history) > 0 {
		first := w.history[0]
		over := s.at.Sub(first.at).Seconds()
		s.commandRate = float64(s.commands-first.commands) / over
		if s.packets >= first.packets { // an estimate may have been a little more than the truth
			s.packetRate = float64(s.packets-first.packets) / over
		}
	}
	w.history = append(w.history, *s)
}
