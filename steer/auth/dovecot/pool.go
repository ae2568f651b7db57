package dovecot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"usher/steer/auth"
)

// While auth restarts its socket is gone or refuses: so long one tries, as Dovecot's director does. After a failure the
// next try comes no earlier than that either, and whoever asks in between gets the same error at once.
const (
	dialTime  = time.Second
	dialPause = 50 * time.Millisecond
)

// maxAge is how long a connection gets new requests. After a reload of Dovecot the old auth lives, with its old
// configuration, as long as somebody is connected to it.
const maxAge = time.Minute

// pool is the connections to one socket.
type pool struct {
	path    string
	login   bool
	log     zerolog.Logger
	maxAge  time.Duration
	running chan struct{} // one place for each request
	slots   []slot

	mu   sync.Mutex
	down bool // as the log says it
}

// slot is one connection's place.
type slot struct {
	conn    atomic.Pointer[conn] // nil: never connected
	dialing chan struct{}        // held by who connects; what follows belongs to that one
	failed  time.Time
	err     error
}

func newPool(path string, login bool, c Config) *pool {
	p := &pool{path: path, login: login, log: c.Log, maxAge: maxAge, running: make(chan struct{}, c.Parallel), slots: make([]slot, c.Connections)}
	for i := range p.slots {
		p.slots[i].dialing = make(chan struct{}, 1)
	}
	return p
}

// enter takes one of the places for requests, leave gives it back.
func (p *pool) enter(ctx context.Context) error {
	select {
	case p.running <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: too many requests to Dovecot's auth at once: %w", auth.ErrTemporary, context.Cause(ctx))
	}
}

func (p *pool) leave() { <-p.running }

// open takes a number on the connection with the fewest. Connections are made when they are needed: a further one when
// all have something to do.
func (p *pool) open(ctx context.Context) (*request, error) {
	for {
		c, err := p.live(ctx, p.choose())
		if err != nil {
			return nil, err
		}
		if rq, err := c.open(); err == nil {
			return rq, nil
		} // it ended just now
	}
}

// choose prefers an idle connection, then a slot without one, then the connection with the fewest requests.
func (p *pool) choose() *slot {
	best, least := &p.slots[0], int32(math.MaxInt32)
	for i := range p.slots {
		s, load := &p.slots[i], int32(1)
		if c := s.conn.Load(); c != nil && c.alive() {
			if load = c.load.Load(); load > 0 {
				load++
			}
		}
		if load < least {
			best, least = s, load
		}
	}
	return best
}

// live returns a slot's connection and makes it first, if need be.
func (p *pool) live(ctx context.Context, s *slot) (*conn, error) {
	if c := s.conn.Load(); p.usable(c) {
		return c, nil
	}
	select {
	case s.dialing <- struct{}{}:
		defer func() { <-s.dialing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	old := s.conn.Load()
	if p.usable(old) {
		return old, nil // somebody else was faster
	}
	if time.Since(s.failed) < dialTime {
		return nil, s.err
	}
	c, err := p.dial(ctx)
	switch {
	case err == nil:
		if s.conn.Store(c); old != nil {
			old.retire()
		}
		p.say(nil)
	case ctx.Err() == nil:
		s.failed, s.err = time.Now(), err
		p.say(err)
	}
	return c, err
}

func (p *pool) usable(c *conn) bool {
	return c != nil && c.alive() && time.Since(c.since) < p.maxAge
}

func (p *pool) dial(ctx context.Context) (*conn, error) {
	for begin := time.Now(); ; {
		c, err := connect(ctx, p.path, p.login)
		absent := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EAGAIN)
		if err == nil || !absent || time.Since(begin) > dialTime {
			return c, err
		}
		select {
		case <-time.After(dialPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// say logs when the socket goes down and comes up, once each.
func (p *pool) say(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if (err != nil) == p.down {
		return
	}
	p.down = err != nil
	if p.down {
		p.log.Error().Err(err).Str("socket", p.path).Msg("Dovecot's auth cannot be asked")
	} else {
		p.log.Info().Str("socket", p.path).Msg("Dovecot's auth answers again")
	}
}

func (p *pool) close() {
	for i := range p.slots {
		if c := p.slots[i].conn.Load(); c != nil {
			c.close(errors.New("closed"))
		}
	}
}
