package client

import (
	"context"
	"math/rand/v2"
	"time"
)

// Traffic does what mail clients do, at random and with random pauses of up to 50 ms, until ctx ends (nil)
// or something is wrong (its error). The same seed gives the same sequence. An operation that has begun is finished, so
// that the session may be used afterwards.
func (s *Session) Traffic(ctx context.Context, seed uint64) error {
	return s.traffic(ctx, seed, 50*time.Millisecond)
}

// Hammer is Traffic without pauses.
func (s *Session) Hammer(ctx context.Context, seed uint64) error { return s.traffic(ctx, seed, 0) }

func (s *Session) traffic(ctx context.Context, seed uint64, pause time.Duration) error {
	r := rand.New(rand.NewPCG(seed, 1))
	if err := s.Select(); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := s.oneOf(r, pause); err != nil {
			return err
		}
		if pause > 0 && r.IntN(2) == 0 {
			rest := time.NewTimer(time.Duration(r.Int64N(int64(pause))))
			select {
			case <-ctx.Done():
			case <-rest.C:
			}
			rest.Stop()
		}
	}
	return nil
}

// oneOf does one random thing.
func (s *Session) oneOf(r *rand.Rand, pause time.Duration) error {
	// size is between 1 byte and 128 KiB, small ones as frequent as large ones on a logarithmic scale.
	size := func() int64 { return 1 + r.Int64N(1<<(1+r.IntN(17))) }
	seed := 1 + r.Uint64N(1<<40)
	what := r.IntN(100)
	pop := s.cfg.Protocol == POP3
	switch {
	case what < 20:
		return s.Noop()
	case what < 30:
		return s.Select()
	case what < 45 && pop:
		return s.List()
	case what < 45:
		return s.Append(seed, int(size()), r.IntN(2) == 0)
	case what < 65 && pop:
		return s.Fetch(1 + r.Uint64N(100))
	case what < 65 && !s.cfg.Real:
		return s.Fetch(1 + r.Uint64N(1<<32-1))
	case what < 65 && s.exists > 0:
		return s.Fetch(1 + r.Uint64N(s.exists))
	case what < 72:
		_, err := s.Idle(time.Duration(r.Int64N(int64(pause + time.Millisecond))))
		return err
	case s.cfg.Real:
		return s.Noop()
	case what < 88: // a burst
		for range 1 + r.IntN(8) {
			if err := s.Echo(1+r.Int64N(200), seed); err != nil {
				return err
			}
		}
		return nil
	case what < 94:
		return s.Echo(size(), seed)
	default:
		return s.Source(size(), seed)
	}
}
