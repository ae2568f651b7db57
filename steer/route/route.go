// Package route is where sessions ask the director and where its effects are carried out.
//
// The director is a pure function of events; a Router gives it the time, one
// event after the other, and does what it answers: entries are written to the
// store before anybody learns of them, so that the kernel never forwards on an
// entry that a crash would forget.
package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"usher/director"
)

// Entry is a user's entry as a Store keeps it.
type Entry struct {
	Key      director.Key
	Host     netip.Addr
	Epoch    uint32    // flows of another epoch are stopped
	Active   bool      // had sessions when it was written
	LastSeen time.Time // last packet, or when it was written
	Users    []string  // names known for the hash
}

// Store keeps entries beyond the life of the process. Writing an entry with a
// higher epoch stops the flows of the older ones. Its methods must not block.
type Store interface {
	PutEntry(key director.Key, host netip.Addr, epoch uint32, active bool) error
	PutName(key director.Key, user string) error
	DropEntry(key director.Key) error
	Entries() ([]Entry, error)
}

// Forgetful is the Store where nothing can be kept: without the kernel path.
type Forgetful struct{}

// PutEntry implements Store.
func (Forgetful) PutEntry(director.Key, netip.Addr, uint32, bool) error { return nil }

// PutName implements Store.
func (Forgetful) PutName(director.Key, string) error { return nil }

// DropEntry implements Store.
func (Forgetful) DropEntry(director.Key) error { return nil }

// Entries implements Store.
func (Forgetful) Entries() ([]Entry, error) { return nil, nil }

// Router owns the director. All methods may be called concurrently.
type Router struct {
	store Store
	stop  func(director.Stop)
	log   zerolog.Logger
	wake  chan struct{}

	mu       sync.Mutex
	director *director.Director
	next     uint64
	armed    time.Time                         // what Run waits for; zero: nothing
	waiting  map[uint64]chan<- director.Effect // Assigned, Refused or Done
}

// New returns a Router. stop is called, without locks held, for each Stop of the
// director: it ends sessions and may call the Router again.
func New(d *director.Director, store Store, stop func(director.Stop), log zerolog.Logger) *Router {
	return &Router{
		store: store, stop: stop, log: log, wake: make(chan struct{}, 1),
		director: d, waiting: map[uint64]chan<- director.Effect{},
	}
}

// Run drives the director's timers until ctx ends.
func (r *Router) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-timer.C:
			r.Tell(director.Tick{})
		}
		r.mu.Lock()
		r.armed = r.director.Next()
		wait := time.Hour
		if !r.armed.IsZero() {
			wait = max(time.Until(r.armed), 0)
		}
		r.mu.Unlock()
		timer.Reset(wait)
	}
}

// Tell gives the director an event that needs no answer.
func (r *Router) Tell(ev director.Event) {
	r.mu.Lock()
	stops := r.step(ev)
	r.mu.Unlock()
	r.finish(stops)
}

// step must be called with mu held. It returns what has to wait until it is not.
func (r *Router) step(ev director.Event) (stops []director.Stop) {
	for _, effect := range r.director.Step(time.Now(), ev) {
		switch e := effect.(type) {
		case director.Assigned:
			r.answer(e.Request, e)
		case director.Refused:
			r.answer(e.Request, e)
		case director.Done:
			r.answer(e.ID, e)
		case director.EntryPut:
			r.stored(r.store.PutEntry(e.Key, e.Host, e.Epoch, e.Active))
		case director.NamePut:
			r.stored(r.store.PutName(e.Key, e.User))
		case director.EntryDrop:
			r.stored(r.store.DropEntry(e.Key))
		case director.Stop:
			stops = append(stops, e)
		}
	}
	if next := r.director.Next(); !next.IsZero() && (r.armed.IsZero() || next.Before(r.armed)) {
		r.armed = next
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	return stops
}

func (r *Router) finish(stops []director.Stop) {
	for _, s := range stops {
		r.stop(s)
	}
}

func (r *Router) stored(err error) {
	if err != nil {
		r.log.Error().Err(err).Msg("entry was not stored: it will be forgotten at a restart")
	}
}

func (r *Router) answer(id uint64, e director.Effect) {
	if ch, ok := r.waiting[id]; ok {
		delete(r.waiting, id)
		ch <- e
	}
}

// ask gives the director an event made for a new request number and waits for the
// effect that answers it.
func (r *Router) ask(ctx context.Context, event func(id uint64) director.Event) (director.Effect, error) {
	ch := make(chan director.Effect, 1)
	r.mu.Lock()
	r.next++
	id := r.next
	r.waiting[id] = ch
	stops := r.step(event(id))
	r.mu.Unlock()
	r.finish(stops)
	select {
	case e := <-ch:
		return e, nil
	case <-ctx.Done():
	}
	r.mu.Lock()
	delete(r.waiting, id)
	stops = r.step(director.Forget{Request: id})
	r.mu.Unlock()
	r.finish(stops)
	return nil, context.Cause(ctx)
}

// Route returns the host of a user. While the user is being moved it waits. The
// error wraps director.ErrNoHosts or the cause of ctx.
func (r *Router) Route(ctx context.Context, user, tag string) (director.Assigned, error) {
	e, err := r.ask(ctx, func(id uint64) director.Event {
		return director.Lookup{Request: id, User: user, Tag: tag}
	})
	if err != nil {
		return director.Assigned{}, err
	}
	switch e := e.(type) {
	case director.Assigned:
		return e, nil
	case director.Refused:
		return director.Assigned{}, e.Reason
	}
	return director.Assigned{}, fmt.Errorf("director answered a lookup with %T", e)
}

// Move puts a user on another host and returns when it may log in there. Errors:
// those of director.Move.
func (r *Router) Move(ctx context.Context, user, tag string, to netip.Addr) error {
	return r.order(ctx, func(id uint64) director.Event {
		return director.Move{ID: id, User: user, Tag: tag, To: to}
	})
}

// Kick ends the sessions of a user. director.ErrUnknownUser.
func (r *Router) Kick(ctx context.Context, user, tag string) error {
	return r.order(ctx, func(id uint64) director.Event {
		return director.Kick{ID: id, User: user, Tag: tag}
	})
}

func (r *Router) order(ctx context.Context, event func(id uint64) director.Event) error {
	e, err := r.ask(ctx, event)
	if err != nil {
		return err
	}
	if done, ok := e.(director.Done); ok {
		return done.Err
	}
	return errors.New("director did not answer")
}

// View calls f with the director, which must only be read and not kept.
func (r *Router) View(f func(*director.Director)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r.director)
}
