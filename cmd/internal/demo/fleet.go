package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"usher/cmd/internal/cli"
	"usher/cmd/internal/site"
	"usher/testenv/client"
)

// Bounds of the traffic: a show, not a benchmark.
const (
	commandsPerSecond = 500 // of all guests together, about
	shortestPeriod    = 500 * time.Millisecond
	longestPeriod     = 2 * time.Second // so that an act need not wait long for a word of every guest
	loginsAtOnce      = 8
	commandTimeout    = 20 * time.Second // on a busy machine
)

// fleet is all guests.
type fleet struct {
	site   *site.Site
	real   bool
	period time.Duration // between two commands of a guest, on average
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup
	logins chan struct{} // a place for each login that may go on at the same time

	commands atomic.Uint64 // that were answered
	silent   atomic.Bool   // guests only listen

	mu     sync.Mutex
	guests []*guest
	errs   []error // the first ones
	failed int
	gate   chan struct{} // nil: open; otherwise closed when it opens
}

// maxErrors is how many errors are remembered and told; there may be one per guest.
const maxErrors = 5

func newFleet(ctx context.Context, s *site.Site, o cli.DemoOptions) *fleet {
	f := &fleet{site: s, real: o.Dovecot, logins: make(chan struct{}, loginsAtOnce)}
	f.period = time.Duration(o.Users*o.Sessions) * time.Second / commandsPerSecond
	f.period = min(max(f.period, shortestPeriod), longestPeriod)
	f.ctx, f.cancel = context.WithCancel(ctx)
	return f
}

// userName is the name of a guest's user, counted from 1.
func userName(i int) string { return fmt.Sprintf("user%03d", i) }

// add sends new guests: n users with some sessions each, spread over a time.
func (f *fleet) add(ctx context.Context, names []string, each int, over time.Duration) []*guest {
	var added []*guest
	total := len(names) * each
	for i := range total {
		g := f.guest(names[i%len(names)], i)
		f.mu.Lock()
		f.guests = append(f.guests, g)
		f.mu.Unlock()
		added = append(added, g)
		f.group.Go(func() { g.run(f.ctx) })
		sleep(ctx, over/time.Duration(total))
		if ctx.Err() != nil {
			break
		}
	}
	return added
}

// guest number i: every fourth speaks POP3, and they log in in all ways there are.
func (f *fleet) guest(user string, i int) *guest {
	g := &guest{fleet: f, user: user, random: rand.New(rand.NewPCG(uint64(i), 7))}
	g.config = f.site.Client(user)
	g.config.Timeout, g.config.Real = commandTimeout, f.real
	g.config.Protocol = client.IMAP
	g.config.Method = client.Methods[i%len(client.Methods)]
	g.config.Pipeline = !f.real && i%3 == 0
	if i%4 == 3 {
		g.config.Protocol, g.config.Server = client.POP3, f.site.Service(client.POP3)
	}
	return g
}

// close ends all sessions and waits for the guests.
func (f *fleet) close() {
	f.cancel()
	f.group.Wait()
}

// hold keeps guests that lost their session from logging in again until admit.
func (f *fleet) hold() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gate == nil {
		f.gate = make(chan struct{})
	}
}

func (f *fleet) admit() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gate != nil {
		close(f.gate)
		f.gate = nil
	}
}

// wait returns when a guest may log in; false: when it is to go home.
func (f *fleet) wait(ctx context.Context) bool {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// silence lets all guests finish their commands, and send no new ones until the returned function is called.
func (f *fleet) silence(ctx context.Context) (over func(), err error) {
	f.silent.Store(true)
	err = await(ctx, "all clients have their answers", func() bool {
		return count(f.all(), func(g *guest) bool { return g.busy.Load() }) == 0
	})
	return func() { f.silent.Store(false) }, err
}

// fail notes an error that no act expected.
func (f *fleet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed++
	if len(f.errs) < maxErrors {
		f.errs = append(f.errs, err)
	}
}

func (f *fleet) failures() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// err tells the errors that came after the first before of them, or nil.
func (f *fleet) err(before int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == before {
		return nil
	}
	err := fmt.Errorf("%d clients saw an error", f.failed-before)
	if before < len(f.errs) {
		err = fmt.Errorf("%w, the first: %w", err, f.errs[before])
	}
	return err
}

func (f *fleet) all() []*guest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.guests[:len(f.guests):len(f.guests)]
}

// present returns the guests that are logged in.
func (f *fleet) present() []*guest {
	return slices.DeleteFunc(slices.Clone(f.all()), func(g *guest) bool { return !g.inside.Load() })
}

// of returns the guests of one user.
func (f *fleet) of(user string) (theirs []*guest) {
	for _, g := range f.all() {
		if g.user == user {
			theirs = append(theirs, g)
		}
	}
	return theirs
}

// count counts the guests for whom something is true.
func count(guests []*guest, is func(*guest) bool) (n int) {
	for _, g := range guests {
		if is(g) {
			n++
		}
	}
	return n
}

func inside(g *guest) bool { return g.inside.Load() }

// expectEnd lets the sessions of guests end, until the returned function is called. It also starts their counts anew.
func expectEnd(guests []*guest, returns bool) (over func()) {
	for _, g := range guests {
		g.ended.Store(0)
		g.returns.Store(returns)
		g.mayEnd.Store(true)
	}
	return func() {
		for _, g := range guests {
			g.mayEnd.Store(false)
		}
	}
}

// ending classifies the end of a connection as package client does.
func ending(err error) client.Kind {
	switch {
	case errors.Is(err, io.EOF):
		return client.EOF
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return client.Reset
	case errors.Is(err, syscall.ETIMEDOUT):
		return client.Timeout
	}
	return client.EOF // closed by ourselves
}

// sleep waits, but not longer than ctx.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
