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

// drains begins to move the users of hosts that are down, once for each time that a host went down. What an
// operator ordered counts more: a host that he put up again is not drained, and a drain of his own is
// not replaced by ours.
//
// Nor is a host drained while no other of its tag could take the users: they are better off with a host
// that may come back than with none.
//
// The caller holds the lock.
func (c *Checker) drains(ctx context.Context, parts *sync.WaitGroup, hosts map[netip.Addr]Host, t *todo) {
	for _, addr := range slices.SortedFunc(maps.Keys(c.hosts), netip.Addr.Compare) {
		h, is := c.hosts[addr], hosts[addr]
		ours := h.decided == Down && h.tally.Counted > 0 && h.tally.Leader == c.cfg.Self && h.group.DrainRate > 0
		if !ours || h.drained.Equal(h.at) || is.Up || is.Draining || is.Users == 0 || !refuge(hosts, is) {
			continue
		}
		h.drained = h.at
		rate := h.group.DrainRate
		log := c.cfg.Log.With().Stringer("host", addr).Logger()
		t.add(func() {
			log.Warn().Int("users", is.Users).Float64("rate", rate).Msg("moving the users of a host that is down")
			parts.Go(func() { drain(ctx, c.cfg.Flush, addr, rate, log) })
		})
	}
}

// refuge reports whether a host takes new users of the same tag; from is down, and so does not.
func refuge(hosts map[netip.Addr]Host, from Host) bool {
	for _, h := range hosts {
		if h.Tag == from.Tag && h.Up && h.Weight > 0 {
			return true
		}
	}
	return false
}

func drain(ctx context.Context, flush FlushFunc, addr netip.Addr, rate float64, log zerolog.Logger) {
	began := time.Now()
	err := flush(ctx, addr, rate)
	switch {
	case ctx.Err() != nil: // the daemon ends; another director takes over, or we do after the restart
	case err != nil:
		log.Warn().Err(err).Msg("users of a host that is down were not all moved")
	default:
		log.Info().Dur("took", time.Since(began)).Msg("users of a host that is down were moved")
	}
}
