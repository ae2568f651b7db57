package health

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/rs/zerolog"
)

// logCheck tells people of the first check that fails and of the first that is good again; the others in
// between are for those who look closer.
func (c *Checker) logCheck(h *host, before *Failure, t *todo) {
	switch {
	case h.failure == nil && before != nil:
		c.log(t, zerolog.InfoLevel, h, "check is good again")
	case h.failure != nil && h.failure.reason() == before.reason():
		c.log(t, zerolog.DebugLevel, h, "check failed again")
	case h.failure != nil:
		c.log(t, zerolog.WarnLevel, h, "check failed")
	}
}

// log leaves a line to be written, with what there is to say about the host now.
func (c *Checker) log(t *todo, level zerolog.Level, h *host, text string) {
	e := c.cfg.Log.WithLevel(level).Stringer("host", h.addr)
	if f := h.failure; f != nil {
		e = e.Stringer("service", f.Service).Str("check", string(h.group.Check)).Str("reason", string(f.Reason)).AnErr("error", f.Err)
		if h.bad > 0 {
			e = e.Int("bad", h.bad).Int("fall", h.Fall)
		}
	}
	if h.tally.Counted > 0 {
		e = e.Int("directors", h.tally.Counted).Int("say_down", h.tally.Down)
	}
	if h.held.After(time.Now()) {
		e = e.Time("held_until", h.held)
	}
	t.add(func() { e.Msg(text) })
}

// Status is what is known of a host, for people and metrics.
type Status struct {
	Host    netip.Addr
	Up      bool      // as decided
	Since   time.Time // when
	Tally   Tally     // of the last vote
	Opinion Verdict   // ours

	Last    time.Time     // end of the last check that counted; zero: none
	Took    time.Duration // the last check
	Failure *Failure      // of the last check; nil: it was good, or there was none
	Held    time.Time     // because of flaps not up before; zero or past: not held
	// Checks counts results by reason; under the empty one those that were good.
	Checks map[Reason]uint64
}

// Hosts returns what is known of the hosts that are checked, ordered by address.
func (c *Checker) Hosts() []Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Status, 0, len(c.hosts))
	for _, h := range c.hosts {
		all = append(all, Status{
			Host: h.addr, Up: h.decided == Up, Since: h.at, Tally: h.tally, Opinion: h.says(),
			Last: h.last, Took: h.took, Failure: h.failure, Held: h.held, Checks: maps.Clone(h.checks),
		})
	}
	slices.SortFunc(all, func(a, b Status) int { return a.Host.Compare(b.Host) })
	return all
}
