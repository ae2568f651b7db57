package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"usher/director"
	"usher/director/ring"
)

// ErrNoRing is the answer to orders about the ring when there is none.
var ErrNoRing = errors.New("this director is in no ring")

// An Ordered is an order that the director has taken.
type Ordered struct{ done <-chan director.Effect }

// Begin gives the director an event with an ID, made by event.
func (r *Router) Begin(event func(id uint64) director.Event) Ordered {
	_, done := r.request(event)
	return Ordered{done}
}

// Finished reports whether the order is done, and the error of its Done. It is for those who do not wait; at most one
// call of Finished or Wait may see the end.
func (o Ordered) Finished() (bool, error) {
	select {
	case e := <-o.done:
		return true, errorOf(e)
	default:
		return false, nil
	}
}

// Wait returns when the order is done: with the error of its Done, or the cause of ctx. What has begun goes on
// when ctx ends.
func (o Ordered) Wait(ctx context.Context) error {
	select {
	case e := <-o.done:
		return errorOf(e)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func errorOf(e director.Effect) error {
	if done, ok := e.(director.Done); ok {
		return done.Err
	}
	return fmt.Errorf("director answered an order with %T", e)
}

// Ring is the state of the ring; that of a ring of one without name or address if there is none.
func (r *Router) Ring() ring.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg.Ring == nil {
		return ring.Status{Handshaked: true, Synced: true}
	}
	return r.cfg.Ring.Status(r.now())
}

// RingAdd adds a director to the ring; one that is known already is fine. ErrNoRing.
func (r *Router) RingAdd(member netip.AddrPort) error {
	if r.cfg.Ring == nil {
		return ErrNoRing
	}
	r.ring(func(x *ring.Ring, now time.Time) []director.Effect { return x.Add(now, member) })
	return nil
}

// RingRemove removes a director from the ring and reports whether it was there. ErrNoRing.
func (r *Router) RingRemove(member netip.AddrPort) (found bool, err error) {
	if r.cfg.Ring == nil {
		return false, ErrNoRing
	}
	r.ring(func(x *ring.Ring, now time.Time) (effects []director.Effect) {
		effects, found = x.Remove(now, member)
		return effects
	})
	return found, nil
}

// Quit takes leave of the ring.
func (r *Router) Quit() {
	r.ring(func(x *ring.Ring, now time.Time) []director.Effect { x.Quit(now); return nil })
}

// WaitSynced returns when the ring agrees about hosts and members, at once if there is none; or with the
// cause of ctx.
func (r *Router) WaitSynced(ctx context.Context) error {
	r.mu.Lock()
	synced := r.synced
	r.mu.Unlock()
	select {
	case <-synced:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Allowed and NextConn are for the network.

// Allowed reports whether a director may connect from this address.
func (r *Router) Allowed(remote netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cfg.Ring.Allowed(remote)
}

// NextConn returns a number for a connection.
func (r *Router) NextConn() ring.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cfg.Ring.NextConn()
}
