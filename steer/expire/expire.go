// Package expire watches the sessions that the kernel carries: it notices their
// end, ends them when somebody asks for it, and closes those that have been silent
// for too long. What it notices goes back to the table of sessions, and from there
// to the director: a user's entry lives on for user_expire after the last session.
package expire

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"usher/steer/handover"
)

// Kernel is the part of the kernel side that is needed here; package loader has it.
type Kernel interface {
	// Run calls f for each tuple whose flow saw a FIN, RST, SYN or newer epoch, until ctx ends.
	Run(ctx context.Context, f func(handover.Tuple)) error
	// Flow returns a forwarded flow, or handover.ErrNoFlow.
	Flow(t handover.Tuple) (handover.Flow, error)
	// Flows yields all forwarded flows; some may be missed or repeated while they change.
	Flows(yield func(handover.Flow) bool) error
	// Remove takes a flow out: the stack answers its next packet with a RST.
	Remove(t handover.Tuple)
}

// Sessions is the table of sessions.
type Sessions interface {
	// Known reports whether the session that began then has this client connection.
	Known(client handover.Tuple, began time.Time) bool
	// Ended is called for a session that the kernel carried. toBackend and
	// toClient are its payload bytes in both directions, how is a word for the log.
	Ended(client handover.Tuple, began time.Time, toBackend, toClient uint64, how string)
}

const (
	// linger keeps the flows of an ended session for retransmissions of its last
	// packets, as TIME_WAIT does.
	linger = 10 * time.Second
	// closeTimeout ends a session whose two FINs were not acknowledged.
	closeTimeout = time.Minute
	tick         = time.Second
	// sweepEvery: everything that events tell is found by the sweep as well.
	sweepEvery = 15 * time.Second
)

// Watcher watches. Make one with New and Run it.
type Watcher struct {
	kernel   Kernel
	sessions Sessions
	idle     time.Duration
	log      zerolog.Logger
	closing  map[handover.Tuple]*closing // by client tuple; owned by Run
}

// closing is a session with two FINs. Its client may use the port again at any time:
// began tells its flows from those of the next session.
type closing struct {
	began time.Time
	since time.Time // of the second FIN, then of the end
	told  bool
}

// New returns a Watcher that closes sessions without a packet for idle.
func New(k Kernel, s Sessions, idle time.Duration, log zerolog.Logger) *Watcher {
	return &Watcher{kernel: k, sessions: s, idle: idle, log: log, closing: map[handover.Tuple]*closing{}}
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	events := make(chan handover.Tuple, 1024)
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		failed <- w.kernel.Run(ctx, func(t handover.Tuple) {
			select {
			case events <- t:
			case <-ctx.Done():
			}
		})
	}()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	// At once for what has ended while nobody watched.
	sweep := time.NewTimer(0)
	defer sweep.Stop()
	for {
		select {
		case t := <-events:
			w.examine(t)
		case now := <-ticker.C:
			w.revisit(now)
		case <-sweep.C:
			if err := w.Sweep(); err != nil {
				w.log.Error().Err(err).Msg("sweep of flows failed")
			}
			sweep.Reset(sweepEvery)
		case err := <-failed:
			return err
		}
	}
}

// pair returns both flows of a session, the client's first.
func (w *Watcher) pair(t handover.Tuple) (client, backend handover.Flow, err error) {
	f, err := w.kernel.Flow(t)
	if err != nil {
		return client, backend, err
	}
	g, err := w.kernel.Flow(f.Other)
	if err == nil && g.Other != f.Tuple {
		err = handover.ErrNoFlow // it is another session's
	}
	if err != nil {
		if errors.Is(err, handover.ErrNoFlow) {
			w.half(f)
		}
		return client, backend, err
	}
	if f.FromClient {
		return f, g, nil
	}
	return g, f, nil
}

// half ends a session of which one flow is left: it leads nowhere. A process that was
// killed while it removed a session leaves one.
func (w *Watcher) half(f handover.Flow) {
	w.kernel.Remove(f.Tuple)
	if f.FromClient {
		w.sessions.Ended(f.Tuple, f.Owner.Since, f.Bytes, 0, "broken")
	} else {
		w.sessions.Ended(f.Other, f.Owner.Since, 0, f.Bytes, "broken")
	}
}

func (w *Watcher) examine(t handover.Tuple) {
	c, b, err := w.pair(t)
	if err != nil {
		return
	}
	x := w.closing[c.Tuple]
	if x != nil && !x.began.Equal(c.Owner.Since) {
		delete(w.closing, c.Tuple)
		x = nil
	}
	if x != nil && x.told {
		return
	}
	if c.RST || b.RST {
		w.kernel.Remove(c.Tuple)
		w.kernel.Remove(b.Tuple)
		delete(w.closing, c.Tuple)
		w.sessions.Ended(c.Tuple, c.Owner.Since, c.Bytes, b.Bytes, "reset")
		return
	}
	if c.Stopped || b.Stopped {
		// Whoever wrote the newer epoch ends it too, but may have died in between.
		w.End(c.Tuple, "stopped")
		return
	}
	if !c.FIN || !b.FIN {
		return
	}
	if x == nil {
		x = &closing{began: c.Owner.Since, since: time.Now()}
		w.closing[c.Tuple] = x
	}
	if !x.told && handover.Ended(c, b) {
		x.told, x.since = true, time.Now()
		w.sessions.Ended(c.Tuple, c.Owner.Since, c.Bytes, b.Bytes, "closed")
	}
}

// revisit looks again at sessions that are about to end.
func (w *Watcher) revisit(now time.Time) {
	for t, x := range w.closing {
		if !x.told {
			w.examine(t)
			if _, still := w.closing[t]; !still {
				continue
			}
		}
		age := now.Sub(x.since)
		if x.told && age < linger || !x.told && age < closeTimeout {
			continue
		}
		delete(w.closing, t)
		c, b, err := w.pair(t)
		if err != nil || !x.began.Equal(c.Owner.Since) {
			continue
		}
		if !x.told {
			w.End(t, "closed")
			continue
		}
		w.kernel.Remove(c.Tuple)
		w.kernel.Remove(b.Tuple)
	}
}

// Sweep looks at every flow once: for lost events, silent sessions, and flows
// without a session.
func (w *Watcher) Sweep() error {
	var examine, silent, strange []handover.Tuple
	err := w.kernel.Flows(func(f handover.Flow) bool {
		client := f.Tuple
		if !f.FromClient {
			client = f.Other
		}
		known := w.sessions.Known(client, f.Owner.Since)
		switch {
		case f.RST || f.Stopped || f.FIN && f.FromClient:
			examine = append(examine, f.Tuple)
		case !known:
			strange = append(strange, f.Tuple)
		}
		if f.FromClient && known && f.Idle > w.idle {
			silent = append(silent, client)
		}
		return true
	})
	for _, t := range examine {
		w.examine(t)
	}
	for _, t := range silent {
		if c, b, err := w.pair(t); err == nil && min(c.Idle, b.Idle) > w.idle {
			w.End(t, "idle")
		}
	}
	for _, t := range strange {
		// The flows of a session that has just ended may linger.
		c, _, err := w.pair(t)
		if x := w.closing[c.Tuple]; err == nil && (x == nil || !x.told) && !w.sessions.Known(c.Tuple, c.Owner.Since) {
			w.End(c.Tuple, "unknown")
		}
	}
	return err
}

// End ends a session: its flows are removed and both peers get a RST at once. It
// returns false when the kernel carries no such session. It may be called at any time.
func (w *Watcher) End(client handover.Tuple, how string) bool {
	c, b, err := w.pair(client)
	if err != nil {
		return false
	}
	w.kernel.Remove(c.Tuple)
	w.kernel.Remove(b.Tuple)
	w.sessions.Ended(c.Tuple, c.Owner.Since, c.Bytes, b.Bytes, how)
	w.reset(c, b)
	w.reset(b, c)
	return true
}

// Supersede ends a session whose client has made a new connection with the same
// tuple: only the backend is told.
func (w *Watcher) Supersede(client handover.Tuple) {
	c, b, err := w.pair(client)
	w.kernel.Remove(client) // also what is not forwarded
	if err != nil {
		return
	}
	w.kernel.Remove(b.Tuple)
	w.sessions.Ended(c.Tuple, c.Owner.Since, c.Bytes, b.Bytes, "superseded")
	w.reset(b, c)
}

// reset tells the remote host of leg a.
func (w *Watcher) reset(a, b handover.Flow) {
	if err := a.Reset(b); err != nil {
		// It learns at its next packet, which finds neither flow nor socket.
		w.log.Debug().Err(err).Msg("reset not sent")
	}
}
