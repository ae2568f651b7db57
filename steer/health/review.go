package health

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// todo is what is to be done when the lock is free again, in order.
type todo []func()

func (t *todo) add(f func()) { *t = append(*t, f) }

// locked runs f with the lock held, and then what it left to do: the functions of Config may call back, and
// a log that is slow must not make Hear wait.
func (c *Checker) locked(f func(now time.Time, t *todo)) {
	var t todo
	c.mu.Lock()
	f(time.Now(), &t)
	c.mu.Unlock()
	for _, do := range t {
		do()
	}
}

// round is what has to be done once per interval: hosts come and go, what was said grows old, holds end.
func (c *Checker) round(ctx context.Context, parts *sync.WaitGroup) {
	// Asked without the lock: the answer takes the director's.
	hosts := map[netip.Addr]Host{}
	for _, h := range c.cfg.Hosts() {
		hosts[h.Addr] = h
	}
	c.locked(func(now time.Time, t *todo) {
		for addr, h := range c.hosts {
			if is, ok := hosts[addr]; !ok || is.Group != h.group {
				h.stop()
				h.removed = true
				delete(c.hosts, addr)
				delete(c.ballots[c.cfg.Self], addr)
			}
		}
		c.expire(now)
		for _, addr := range slices.SortedFunc(maps.Keys(hosts), netip.Addr.Compare) {
			is := hosts[addr]
			if is.Group == nil {
				continue
			}
			h, known := c.hosts[addr]
			if !known {
				h = c.begin(ctx, now, parts, is)
			}
			c.review(now, h, false, t)
			if marked := h.decided == Down; marked != is.Marked && h.at != now {
				// It was removed and put again in between: the director has forgotten our decision.
				d := Decision{Host: addr, Up: !marked, Tally: h.tally}
				t.add(func() { c.cfg.Decide(d) })
			}
		}
		c.drains(ctx, parts, hosts, t)
	})
}

// begin begins to check a host.
func (c *Checker) begin(ctx context.Context, now time.Time, parts *sync.WaitGroup, is Host) *host {
	ctx, stop := context.WithCancel(ctx)
	h := &host{
		opinion: opinion{Rules: is.Group.Rules}, group: is.Group, addr: is.Addr, stop: stop,
		decided: Up, at: now, checks: map[Reason]uint64{},
	}
	if is.Marked {
		h.decided = Down
	}
	c.hosts[is.Addr] = h
	parts.Go(func() { c.watch(ctx, h) })
	return h
}

// expire drops what directors have said too long ago.
func (c *Checker) expire(now time.Time) {
	for director, b := range c.ballots {
		maps.DeleteFunc(b, func(_ netip.Addr, s Say) bool { return !now.Before(s.Until) })
		if len(b) == 0 && director != c.cfg.Self {
			delete(c.ballots, director)
		}
	}
}

// result takes the result of a check.
func (c *Checker) result(r result) {
	c.locked(func(now time.Time, t *todo) {
		h := r.host
		if h.removed {
			return
		}
		before := h.failure
		h.failure, h.took = r.failure, r.took
		h.checks[r.failure.reason()]++
		began := h.running
		if r.failure.reason() == Local {
			// As if there had been no check; the last result grows old.
			h.running = time.Time{}
			c.logCheck(h, before, t)
			return
		}
		h.opinion.result(now, r.failure == nil)
		c.logCheck(h, before, t)
		c.review(now, h, true, t)
		// Not as soon as it is in doubt: with few hosts the answer of another may just be to come.
		if h.doubtful() && h.bad == 2*h.Fall {
			c.log(t, zerolog.WarnLevel, h, "no opinion of the host: no other answers either, so our own way out may be broken")
		}
		if r.failure != nil {
			return
		}
		h.answered = began
		// The way out works, which may prove that others have failed by their own fault.
		for _, addr := range slices.SortedFunc(maps.Keys(c.hosts), netip.Addr.Compare) {
			if other := c.hosts[addr]; !other.pending.IsZero() {
				c.review(now, other, false, t)
			}
		}
	})
}

// votes decides about the hosts of which other directors have said something.
func (c *Checker) votes() {
	c.locked(func(now time.Time, t *todo) {
		// Many may have come since: each host is counted once.
		for addr := range c.heard {
			if h, ok := c.hosts[addr]; ok {
				c.decide(now, h, t)
			}
		}
		clear(c.heard)
	})
}

// wayOut is when the latest good check of another host began.
func (c *Checker) wayOut(except *host) (at time.Time) {
	for _, h := range c.hosts {
		if h != except && h.answered.After(at) {
			at = h.answered
		}
	}
	return at
}

// review forms our opinion of a host anew, says it if the host was just checked or the opinion is another
// now, and counts the votes.
func (c *Checker) review(now time.Time, h *host, checked bool, t *todo) {
	changed := h.settle(now, c.wayOut(h))
	if changed {
		level, text := zerolog.WarnLevel, "our checks find the host down"
		switch {
		case h.verdict == Up:
			level, text = zerolog.InfoLevel, "our checks find the host up"
		case h.held.After(now):
			text = "our checks find the host down; it flaps, and is held down"
		}
		c.log(t, level, h, text)
	}
	v := h.says()
	if v == Unknown {
		// The others hear nothing, and forget what we said after a while; we know better at once.
		delete(c.ballots[c.cfg.Self], h.addr)
	} else {
		c.ballots[c.cfg.Self][h.addr] = Say{Up: v == Up, Until: h.last.Add(h.group.fresh())}
		if checked || changed {
			t.add(func() { c.cfg.Say(h.addr, v == Up) })
		}
	}
	c.decide(now, h, t)
}

// decide counts the votes about a host.
func (c *Checker) decide(now time.Time, h *host, t *todo) {
	h.tally = Vote(now, h.addr, maps.All(c.ballots)) // whose result does not depend on the order
	v := h.tally.Verdict()
	if v == Unknown || v == h.decided {
		return
	}
	h.decided, h.at = v, now
	if v == Up {
		c.log(t, zerolog.InfoLevel, h, "host is up")
	} else {
		c.log(t, zerolog.ErrorLevel, h, "host is down")
	}
	d := Decision{Host: h.addr, Up: v == Up, Tally: h.tally}
	t.add(func() { c.cfg.Decide(d) })
}
