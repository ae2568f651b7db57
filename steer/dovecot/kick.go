package dovecot

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"usher/director"
)

// Times and limits of kicks.
const (
	kickers      = 4                // connections; one slow answer does not hold up all moves
	kickTimeout  = 10 * time.Second // for one answer, which comes from all login processes
	kickPatience = 15 * time.Second // for a socket that refuses, before the kick counts as failed
	kickRetry    = 200 * time.Millisecond
	maxStrays    = 10_000 // kicks that wait although we know of no session

	// settle is how long after its answer a login may still be on its way from the socket into the process, where
	// a kick finds it. A user who was given a host so lately is kicked once more after it.
	settle = time.Second
)

// A lever ends sessions in Dovecot's login processes. Its methods return when all processes have
// answered. They are called by one goroutine.
type lever interface {
	kickUser(ctx context.Context, login string) error
	// kickHash ends the sessions of a hash, those at the host except spared if it is valid and the lever can tell.
	kickHash(ctx context.Context, hash uint32, except netip.Addr) error
	kickField(ctx context.Context, field, value string) error
	// list yields all sessions: the login name and the backend.
	list(ctx context.Context, yield func(login string, host netip.Addr)) error
	close()
}

// kick is an order to end sessions, and who is gone when it is carried out.
type kick struct {
	stop    director.Stop
	alt     *director.StopAlt // instead of stop
	guests  []*guest
	hosts   []netip.Addr // where the sessions are, as far as known
	settled bool         // no need for another one
	since   time.Time
}

// kicks carries out kicks, one after the other for each of its levers.
type kicks struct {
	*DropIn
	mu     sync.Mutex
	more   *sync.Cond
	queue  []kick
	strays int
	closed bool
}

func newKicks(d *DropIn) *kicks {
	k := &kicks{DropIn: d}
	k.more = sync.NewCond(&k.mu)
	return k
}

// add puts a kick into the queue.
func (q *kicks) add(k kick) {
	k.since = time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(k.guests) == 0 && k.alt == nil {
		if q.strays >= maxStrays {
			return
		}
		q.strays++
	}
	q.queue = append(q.queue, k)
	q.more.Signal()
}

// later is add after a while.
func (q *kicks) later(wait time.Duration, k kick) { time.AfterFunc(wait, func() { q.add(k) }) }

// run works until ctx is done. Guests whose kick has not been carried out then are ended with everything else.
func (q *kicks) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.closed = true
		q.more.Broadcast()
	})
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for range kickers {
		wg.Go(func() {
			h := &hand{kicks: q}
			defer h.drop()
			for {
				k, ok := q.take()
				if !ok {
					return
				}
				h.do(ctx, k)
			}
		})
	}
}

func (q *kicks) take() (k kick, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.queue) == 0 && !q.closed {
		q.more.Wait()
	}
	if q.closed {
		return k, false
	}
	k, q.queue = q.queue[0], q.queue[1:]
	if len(k.guests) == 0 && k.alt == nil {
		q.strays--
	}
	return k, true
}

// hand is one of the kickers.
type hand struct {
	*kicks
	lever lever // nil: not connected
}

func (h *hand) drop() {
	if h.lever != nil {
		h.lever.close()
		h.lever = nil
	}
}

// do carries out a kick, and tells the director about its guests when no session of theirs is left.
func (h *hand) do(ctx context.Context, k kick) {
	err := h.pull(ctx, k)
	log := h.log.Debug()
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		log = h.log.Error().Err(err)
	}
	if k.alt != nil {
		log.Str("field", k.alt.Field).Str("value", k.alt.Value).Msg("kicked sessions of Dovecot's login processes")
		return
	}
	log.Stringer("key", k.stop.Key).Str("user", k.stop.User).Stringer("reason", k.stop.Reason).Int("names", len(k.guests)).
		Dur("took", time.Since(k.since)).Msg("kicked sessions of Dovecot's login processes")
	// Who was kicked may log in again at once, and must not be hit a second time.
	if !k.settled && k.stop.Reason != director.StopKicked {
		var given time.Time
		for _, g := range k.guests {
			if at := h.guests.since(g); at.After(given) {
				given = at
			}
		}
		if wait := time.Until(given.Add(settle)); wait > 0 {
			k.settled = true
			h.later(wait, k)
			return
		}
	}
	for _, g := range k.guests {
		h.guests.end(g)
	}
}

// pull tries until it is done, Dovecot is gone with its sessions, or nobody can be expected to wait any longer.
func (h *hand) pull(ctx context.Context, k kick) (err error) {
	for begin := time.Now(); h.up.Load(); {
		if h.lever == nil {
			h.lever, err = h.connect(ctx)
		}
		if err == nil {
			if err = h.once(ctx, k); err == nil {
				return nil
			}
			h.drop()
		}
		if time.Since(begin) > kickPatience {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(kickRetry):
		}
	}
	return nil
}

func (h *hand) once(ctx context.Context, k kick) error {
	ctx, cancel := context.WithTimeout(ctx, kickTimeout)
	defer cancel()
	if k.alt != nil {
		return h.lever.kickField(ctx, k.alt.Field, k.alt.Value)
	}
	for _, name := range h.names(k) {
		if err := h.lever.kickUser(ctx, name); err != nil {
			return err
		}
	}
	if k.stop.User != "" {
		return nil
	}
	return h.lever.kickHash(ctx, k.stop.Key.Hash, h.except(k))
}

// names returns the login names that have to be kicked by name: if one user is meant, and those that the hash
// does not hit, because the routed name was another (destuser), which Dovecot's director leaves alone.
func (h *hand) names(k kick) (names []string) {
	one := k.stop.User != ""
	if one {
		names = append(names, k.stop.User)
	}
	h.router.View(func(d *director.Director) {
		for _, g := range k.guests {
			if g.login != "" && (one || d.KeyOf(g.login, g.key.Tag) != g.key) && !slices.Contains(names, g.login) {
				names = append(names, g.login)
			}
		}
	})
	return names
}

// except returns the host whose sessions are right: where the user is now, if none of those that are meant is there.
func (h *hand) except(k kick) (host netip.Addr) {
	if len(k.hosts) == 0 && k.stop.Reason != director.StopMoved && k.stop.Reason != director.StopConflict {
		return host // they may be anywhere
	}
	h.router.View(func(d *director.Director) {
		if e, ok := d.Entry(k.stop.Key); ok && !slices.Contains(k.hosts, e.Host) {
			host = e.Host
		}
	})
	return host
}

// Stop ends sessions of Dovecot's processes as the director says. It does not block.
func (d *DropIn) Stop(stop director.Stop) {
	stopped := d.guests.stop(stop)
	if stop.Reason == director.StopStale || !d.up.Load() {
		// None of them was given the host; or they came when Dovecot ended, and got no answer.
		for _, g := range stopped {
			d.guests.end(g)
		}
		return
	}
	k := kick{stop: stop, guests: stopped}
	for _, g := range stopped {
		k.hosts = append(k.hosts, g.host)
	}
	d.kicks.add(k)
}

// StopAlt ends sessions by a field of the passdb. It does not block. That they are gone is noticed when nobody
// refreshes them any more.
func (d *DropIn) StopAlt(stop director.StopAlt) {
	if d.up.Load() {
		d.kicks.add(kick{alt: &stop})
	}
}

// again kicks a user once more: his guest was stopped while his login was being answered.
func (d *DropIn) again(g *guest) {
	stop := director.Stop{Key: g.key, Reason: director.StopMoved}
	d.kicks.later(settle, kick{stop: stop, hosts: []netip.Addr{g.host}, settled: true})
}
