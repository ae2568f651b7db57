// Package route is where sessions ask the director and where its effects are carried out.
//
// The director is a pure function of events; a Router gives it the time, one
// event after the other, and does what it answers: entries are written to the
// store before anybody learns of them, so that the kernel never forwards on an
// entry that a crash would forget.
package route

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"usher/director"
	"usher/director/ring"
	"usher/steer/flush"
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

// Network carries out what the ring wants done: package director/ring/peer. Do must not block.
type Network interface{ Do([]ring.Action) }

// core is what a Router drives: a Director that is alone, or a Ring with a Director in it.
type core interface {
	Step(now time.Time, ev director.Event) []director.Effect
	Next() time.Time
}

// Config is what a Router needs.
type Config struct {
	Director *director.Director
	Ring     *ring.Ring // nil: the director is alone
	Network  Network    // of the ring
	Store    Store
	Flush    *flush.Program // nil: none

	// The functions are called without locks held, in the order of the effects. They
	// may call the Router again.
	Stop    func(director.Stop)       // end sessions
	Guests  func(director.Stop)       // end those that others carry, package dovecot: called after Stop; may be nil
	StopAlt func(director.StopAlt)    // end sessions by a field of the passdb; may be nil
	Vote    func(director.HealthVote) // what another Usher's health check found; may be nil
	Log     zerolog.Logger
}

// Router owns the director. All methods may be called concurrently.
type Router struct {
	cfg  Config
	core core
	wake chan struct{}
	now  func() time.Time

	mu      sync.Mutex
	next    uint64
	armed   time.Time                         // what Run waits for; zero: nothing
	waiting map[uint64]chan<- director.Effect // Assigned, Refused or Done
	synced  chan struct{}                     // closed while the ring agrees
	ctx     context.Context                   // of flush programs
}

// New returns a Router.
func New(cfg Config) *Router {
	r := &Router{
		cfg: cfg, core: cfg.Director, wake: make(chan struct{}, 1), now: time.Now,
		waiting: map[uint64]chan<- director.Effect{}, synced: make(chan struct{}), ctx: context.Background(),
	}
	if cfg.Ring != nil {
		r.core = cfg.Ring
	}
	r.noteSync()
	return r
}

// Run drives the timers of director and ring until ctx ends.
func (r *Router) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.mu.Lock()
	r.ctx = ctx
	r.mu.Unlock()
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
		r.armed = r.core.Next()
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
	later := r.step(ev)
	r.mu.Unlock()
	r.finish(later)
}

// Hear gives the ring an event of the network.
func (r *Router) Hear(ev ring.Event) {
	r.ring(func(x *ring.Ring, now time.Time) []director.Effect { return x.Hear(now, ev) })
}

// ring lets f use the ring.
func (r *Router) ring(f func(*ring.Ring, time.Time) []director.Effect) {
	r.mu.Lock()
	later := r.carryOut(f(r.cfg.Ring, r.now()))
	r.mu.Unlock()
	r.finish(later)
}

// step must be called with mu held. It returns what has to wait until it is not.
func (r *Router) step(ev director.Event) (later []director.Effect) {
	return r.carryOut(r.core.Step(r.now(), ev))
}

// carryOut must be called with mu held. It returns the effects for finish.
func (r *Router) carryOut(effects []director.Effect) (later []director.Effect) {
	for _, effect := range effects {
		switch e := effect.(type) {
		case director.Assigned:
			r.answer(e.Request, e)
		case director.Refused:
			r.answer(e.Request, e)
		case director.Done:
			r.answer(e.ID, e)
		case director.EntryPut:
			r.stored(r.cfg.Store.PutEntry(e.Key, e.Host, e.Epoch, e.Active))
		case director.NamePut:
			r.stored(r.cfg.Store.PutName(e.Key, e.User))
		case director.EntryDrop:
			r.stored(r.cfg.Store.DropEntry(e.Key))
		default:
			later = append(later, e)
		}
	}
	if r.cfg.Ring != nil {
		if actions := r.cfg.Ring.Actions(); len(actions) > 0 {
			r.cfg.Network.Do(actions)
		}
	}
	r.noteSync()
	if next := r.core.Next(); !next.IsZero() && (r.armed.IsZero() || next.Before(r.armed)) {
		r.armed = next
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	return later
}

// noteSync must be called with mu held.
func (r *Router) noteSync() {
	is := r.cfg.Ring == nil || r.cfg.Ring.Synced()
	select {
	case <-r.synced:
		if !is {
			r.synced = make(chan struct{})
		}
	default:
		if is {
			close(r.synced)
		}
	}
}

// finish does what must not be done under the lock.
func (r *Router) finish(later []director.Effect) {
	for _, effect := range later {
		switch e := effect.(type) {
		case director.Stop:
			r.cfg.Stop(e)
			if r.cfg.Guests != nil {
				r.cfg.Guests(e)
			}
		case director.StopAlt:
			if r.cfg.StopAlt != nil {
				r.cfg.StopAlt(e)
			}
		case director.HealthVote:
			if r.cfg.Vote != nil {
				r.cfg.Vote(e)
			}
		case director.Flush:
			go r.flush(e)
		case director.Conflict:
			r.cfg.Log.Error().Stringer("key", e.Key).Strs("users", e.Users).Stringer("ours", e.Ours).
				Stringer("theirs", e.Theirs).Stringer("winner", e.Winner).Msg("user was on two hosts")
		case director.Warn:
			r.cfg.Log.Warn().Msg(e.Text)
		}
	}
}

// flush runs the flush program for a moved user.
func (r *Router) flush(e director.Flush) {
	r.mu.Lock()
	ctx := r.ctx
	r.mu.Unlock()
	output, err := r.cfg.Flush.Run(ctx, flush.User{
		Hash: e.Key.Hash, Old: e.Old.Addr, New: e.New.Addr, NewName: e.New.Name, OldUp: e.OldUp, OldWeight: e.Old.Weight,
	})
	log := r.cfg.Log.Debug()
	if err != nil {
		log = r.cfg.Log.Error().Err(err)
	}
	log.Stringer("key", e.Key).Str("output", output).Msg("flush program has ended")
	r.Tell(director.Flushed{Key: e.Key, OK: err == nil})
}

func (r *Router) stored(err error) {
	if err != nil {
		r.cfg.Log.Error().Err(err).Msg("entry was not stored: it will be forgotten at a restart")
	}
}

func (r *Router) answer(id uint64, e director.Effect) {
	if ch, ok := r.waiting[id]; ok {
		delete(r.waiting, id)
		ch <- e
	}
}

// request gives the director an event made for a new request number. The channel gets the effect that
// answers it.
func (r *Router) request(event func(id uint64) director.Event) (id uint64, answer <-chan director.Effect) {
	ch := make(chan director.Effect, 1)
	r.mu.Lock()
	r.next++
	id = r.next
	r.waiting[id] = ch
	later := r.step(event(id))
	r.mu.Unlock()
	r.finish(later)
	return id, ch
}

// Route returns the host of a user. While the user is being moved it waits. The
// error wraps director.ErrNoHosts or the cause of ctx.
func (r *Router) Route(ctx context.Context, user, tag string) (director.Assigned, error) {
	return r.lookup(ctx, director.Lookup{User: user, Tag: tag})
}

// Peek is Route without consequences: for a login that nobody has verified yet.
func (r *Router) Peek(ctx context.Context, user, tag string) (director.Assigned, error) {
	return r.lookup(ctx, director.Lookup{User: user, Tag: tag, Peek: true})
}

func (r *Router) lookup(ctx context.Context, ev director.Lookup) (director.Assigned, error) {
	id, answer := r.request(func(id uint64) director.Event {
		ev.Request = id
		return ev
	})
	var e director.Effect
	select {
	case e = <-answer:
	case <-ctx.Done():
		r.mu.Lock()
		delete(r.waiting, id)
		later := r.step(director.Forget{Request: id})
		r.mu.Unlock()
		r.finish(later)
		return director.Assigned{}, context.Cause(ctx)
	}
	switch e := e.(type) {
	case director.Assigned:
		return e, nil
	case director.Refused:
		return director.Assigned{}, e.Reason
	}
	return director.Assigned{}, fmt.Errorf("director answered a lookup with %T", e)
}

// View calls f with the director, which must only be read and not kept.
func (r *Router) View(f func(*director.Director)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r.cfg.Director)
}
