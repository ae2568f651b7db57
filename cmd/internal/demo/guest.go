package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"usher/testenv/client"
)

// guest is one mail client of one user. It logs in, and sends a command now and then for as long as its
// session lives; when the session was expected to end it may come back.
type guest struct {
	fleet  *fleet
	user   string
	config client.Config
	random *rand.Rand

	inside   atomic.Bool   // logged in
	busy     atomic.Bool   // waits for an answer
	mayEnd   atomic.Bool   // an act is about to end the session
	returns  atomic.Bool   // and then the guest logs in again
	ended    atomic.Int32  // sessions that ended as expected
	endedAt  atomic.Int64  // when the last one did, Unix nanoseconds
	backAt   atomic.Int64  // when the guest was logged in again
	answered atomic.Int64  // when the last command that was answered had been sent
	commands atomic.Uint64 // that were answered
}

// storedSize is that of the message that a guest keeps at a real server: small, the point is that it is right.
const storedSize = 2000

func (g *guest) run(ctx context.Context) {
	for g.fleet.wait(ctx) {
		err := g.stay(ctx)
		g.inside.Store(false)
		if ctx.Err() != nil {
			return
		}
		if !g.mayEnd.Load() || !peerEnded(err) {
			g.fleet.fail(err)
			return
		}
		g.endedAt.Store(time.Now().UnixNano())
		g.ended.Add(1)
		if !g.returns.Load() {
			return
		}
	}
}

// peerEnded: the session was ended, by whatever means; other errors are wrong at any time.
func peerEnded(err error) bool {
	switch client.KindOf(err) {
	case client.Reset, client.EOF, client.Bye:
		return true
	}
	return false
}

// stay is one session from login to end; the error says how it ended.
func (g *guest) stay(ctx context.Context) error {
	s, err := g.login(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()
	g.backAt.Store(time.Now().UnixNano())
	g.inside.Store(true)
	if err := g.prepare(s); err != nil {
		return err
	}
	for {
		if err := g.rest(s); err != nil {
			return err
		}
		// In this order, see fleet.silence.
		g.busy.Store(true)
		if g.fleet.silent.Load() {
			g.busy.Store(false)
			continue
		}
		sent := time.Now()
		err := g.command(s)
		g.busy.Store(false)
		if err != nil {
			return err
		}
		g.answered.Store(sent.UnixNano())
		g.commands.Add(1)
		g.fleet.commands.Add(1)
	}
}

func (g *guest) login(ctx context.Context) (*client.Session, error) {
	select {
	case g.fleet.logins <- struct{}{}:
		defer func() { <-g.fleet.logins }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return client.Dial(ctx, g.config)
}

// prepare opens the mailbox; at a real server it puts something into it first.
func (g *guest) prepare(s *client.Session) error {
	if g.config.Real && g.config.Protocol == client.IMAP {
		if err := s.Append(1+g.random.Uint64N(1<<40), storedSize, false); err != nil {
			return err
		}
	}
	return s.Select()
}

// rest waits for the next command. Meanwhile nothing may come, and an end is seen at once.
func (g *guest) rest(s *client.Session) error {
	pause := g.fleet.period/2 + time.Duration(g.random.Int64N(int64(g.fleet.period)))
	s.Conn().SetReadDeadline(time.Now().Add(pause))
	var b [1]byte
	n, err := s.Conn().Read(b[:])
	switch {
	case n > 0:
		return fmt.Errorf("user %s: byte %q came without a command", g.user, b[0])
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	}
	return &client.Error{Kind: ending(err), User: g.user, Op: "resting", Err: err}
}

// command does one random thing that mail clients do, and checks the answer.
func (g *guest) command(s *client.Session) error {
	r := g.random
	what := r.IntN(100)
	pop, real := g.config.Protocol == client.POP3, g.config.Real
	seed := 1 + r.Uint64N(1<<40)
	switch {
	case what < 45:
		return s.Noop()
	case what < 55:
		return s.Select()
	case what < 65 && pop:
		return s.List()
	case what < 75 && real && pop:
		return s.Noop()
	case what < 70 && real:
		return s.Fetch(1)
	case what < 75 && real, what < 65:
		return s.Append(seed, 64+r.IntN(8<<10), r.IntN(2) == 0)
	case what < 80 && !real:
		return s.Fetch(1 + r.Uint64N(100))
	case what < 85:
		_, err := s.Idle(time.Duration(r.Int64N(int64(g.fleet.period) / 2)))
		return err
	case real:
		return s.Noop()
	case what < 95:
		return s.Echo(1+r.Int64N(8<<10), seed)
	default:
		return s.Source(1+r.Int64N(64<<10), seed)
	}
}
