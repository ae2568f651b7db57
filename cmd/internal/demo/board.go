package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/cli"
	"usher/cmd/internal/site"
)

// board is everything there is to show. The acts and the watch write it, the output reads it.
type board struct {
	mu sync.Mutex
	scene
}

// scene is the board at one moment.
type scene struct {
	begin time.Time // of everything
	o     cli.DemoOptions

	built    time.Time // zero: not yet
	site     string    // where it is
	backends string    // what they are
	why      string    // why it is not in namespaces; empty: it is
	kernel   admin.KernelStatus

	acts        []act
	sample      sample
	peak        peak
	ended       bool  // all of it: the totals are shown
	interrupted bool  // by a signal
	err         error // that belongs to no act
}

// state of an act.
type state int

const (
	waiting state = iota
	running
	passed
	wrong
	broken // off, by a signal
)

// act is one part of the show, as it is seen.
type act struct {
	name  string // the word for it, at most nameWidth runes
	plan  string // what is about to happen
	text  string // what happened
	state state
	err   error
	begin time.Time
	took  time.Duration
}

// peak is what the summary says about the whole time.
type peak struct {
	sessions int
	hosts    []hostSample // when there were most sessions
	rss      uint64
	cpu      float64
	cpuTime  time.Duration // of all daemons together
}

func newBoard(begin time.Time, o cli.DemoOptions) *board {
	return &board{scene: scene{begin: begin, o: o}}
}

// snapshot is a copy for the output.
func (b *board) snapshot() scene {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.scene
	s.acts = slices.Clone(s.acts)
	return s
}

func (b *board) update(f func(*scene)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.scene)
}

// describe notes what kind of site it is.
func (b *board) describe(s *site.Site, real bool, why error) {
	b.update(func(c *scene) {
		c.site, c.backends = "network namespaces", "scripted backends"
		if s.Lab == nil {
			c.site, c.why = "loopback interface", why.Error()
		}
		if real {
			c.backends = "Dovecot backends"
		}
	})
}

// program puts up the names of the acts to come.
func (b *board) program(steps []step) {
	b.update(func(c *scene) {
		c.built = time.Now()
		for _, s := range steps {
			c.acts = append(c.acts, act{name: s.name, plan: s.plan})
		}
	})
}

func (b *board) start(i int) {
	b.update(func(c *scene) { c.acts[i].state, c.acts[i].begin = running, time.Now() })
}

func (b *board) done(i int, text string, err error) {
	b.update(func(c *scene) {
		a := &c.acts[i]
		a.state, a.took = passed, time.Since(a.begin)
		if err != nil {
			a.state, a.err, text = wrong, err, firstLine(err.Error())
		}
		a.text = text
	})
}

// cut notes that an act was broken off: nobody knows whether it would have come to its right end.
func (b *board) cut(i int) {
	b.update(func(c *scene) {
		a := &c.acts[i]
		a.state, a.took, a.text = broken, time.Since(a.begin), "broken off"
	})
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

func (b *board) fail(err error) {
	if err != nil {
		b.update(func(c *scene) { c.err = errors.Join(c.err, err) })
	}
}

// verdict joins everything that was wrong; nil means that every act came to its right end.
func (b *board) verdict(interrupted error) error {
	s := b.snapshot()
	errs := []error{s.err}
	if interrupted != nil {
		if errors.Is(interrupted, context.Canceled) {
			interrupted = errors.New("stopped by a signal")
		}
		errs = []error{fmt.Errorf("the demo did not come to its end: %w", interrupted), s.err}
	}
	for _, a := range s.acts {
		switch {
		case a.state == wrong:
			errs = append(errs, fmt.Errorf("%s: %w", a.name, a.err))
		case a.state == waiting && s.err == nil && interrupted == nil:
			errs = append(errs, fmt.Errorf("%s: was left out", a.name))
		}
	}
	return errors.Join(errs...)
}
