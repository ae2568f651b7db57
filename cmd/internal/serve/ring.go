package serve

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"usher/cmd/internal/config"
	"usher/cmd/internal/state"
	"usher/director"
	"usher/director/placement"
	"usher/director/ring"
	"usher/director/ring/peer"
	"usher/steer/flush"
	"usher/steer/route"
)

// loadState returns the orders that an earlier process has kept, as far as the configuration does not
// say otherwise since.
func loadState(path string, hosts []config.Host, log zerolog.Logger) (kept state.State, err error) {
	if path == "" {
		return kept, nil
	}
	if kept, err = state.Load(path, log); err != nil {
		return kept, err
	}
	var configured []director.Host
	for _, h := range hosts {
		configured = append(configured, director.Host(h))
	}
	kept.Reconcile(configured)
	for _, h := range kept.Orders.Hosts {
		if h.Down {
			log.Warn().Stringer("host", h.Host.Addr).Msg("host is down, as ordered before the restart")
		}
	}
	return kept, nil
}

// newRoute makes the director with its hosts, and the ring around it.
func newRoute(cfg *config.Config, hosts []config.Host, self netip.AddrPort, members []netip.AddrPort, kept state.State, log zerolog.Logger) (route.Config, error) {
	rc := route.Config{Log: log}
	format, err := placement.ParseFormat(cfg.Director.UsernameHash)
	if err != nil {
		return rc, fmt.Errorf("director.username_hash: %w", err)
	}
	if program := cfg.Director.FlushSocket; program != "" {
		if rc.Flush, err = flush.Parse(program); err != nil {
			return rc, fmt.Errorf("director.flush_socket: %w", err)
		}
	}
	rc.Director = director.New(director.Config{
		Ring: self.IsValid(), UserExpire: cfg.Director.UserExpire.Std(), KickDelay: cfg.Director.UserKickDelay.Std(),
		UsernameHash: format, UserSeparator: cfg.Auth.UserSeparator, FlushCommand: rc.Flush != nil,
		MaxParallelMoves: cfg.Director.MaxParallelMoves, MaxParallelKicks: cfg.Director.MaxParallelKicks,
	})
	now := time.Now()
	for _, h := range hosts {
		rc.Director.Step(now, director.HostPut{Host: director.Host(h), Configured: true})
	}
	rc.Director.Step(now, director.Restore{Orders: kept.Orders})
	if self.IsValid() {
		members = slices.DeleteFunc(append(slices.Clone(members), kept.DirectorsAdded...), func(m netip.AddrPort) bool {
			return slices.Contains(kept.DirectorsRemoved, m)
		})
		rc.Ring = ring.New(ring.Config{
			Self: self, Members: members, Seq: uint32(now.Unix()),
			PingIdleTimeout: cfg.Director.PingIdleTimeout.Std(), PingMaxTimeout: cfg.Director.PingMaxTimeout.Std(),
			OutputBufferSize: int(cfg.Director.OutputBufferSize),
		}, rc.Director)
	}
	return rc, nil
}

// listenRing makes the network of the ring, nil without one.
func listenRing(cfg config.Director, self netip.AddrPort, router func() *route.Router, log zerolog.Logger) (*peer.Peers, error) {
	if !self.IsValid() {
		return nil, nil
	}
	pc := peer.Config{Listen: cfg.RingListen, Self: self.Addr(), Log: log}
	if t := cfg.RingTLS; t != nil {
		var err error
		if pc.TLS, err = peer.LoadTLS(t.Certificate, t.Key, t.CA); err != nil {
			return nil, fmt.Errorf("director.ring_tls: %w", err)
		}
		pc.Plain = t.Plain
	}
	return peer.New(pc,
		func(ev ring.Event) { router().Hear(ev) },
		func(a netip.Addr) bool { return router().Allowed(a) },
		func() ring.Conn { return router().NextConn() })
}
