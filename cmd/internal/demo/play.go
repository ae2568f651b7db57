package demo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// step is one act and how it is done.
type step struct {
	name string // the word for it, at most nameWidth runes
	plan string // said before it is done
	// share of the time that it may take, with the pause behind it.
	share float64
	// do returns what happened, for people. It may use the time up to until for showing something, and must
	// not take it for a deadline: on a busy machine everything takes longer.
	do func(ctx context.Context, until time.Time) (string, error)
}

// errAbort: there is no sense in what would follow.
var errAbort = errors.New("the demo cannot go on")

const (
	announceShare = 0.2 // of an act's time: people read what will happen before it does
	announceMost  = 1200 * time.Millisecond
	closing       = 500 * time.Millisecond // kept for the last act
	actTimeout    = 30 * time.Second       // for what an act waits for, on a busy machine
)

// play does everything, from building the site to taking it down.
func (d *demo) play(ctx context.Context) {
	cleaned := d.perform(ctx)
	if !cleaned {
		d.board.fail(d.cleanUp())
	}
}

// perform does the acts, and says whether the last one has removed everything.
func (d *demo) perform(ctx context.Context) (cleaned bool) {
	if err := d.open(ctx); err != nil {
		d.board.fail(err)
		return false
	}
	steps := d.userSpaceSteps()
	if d.inKernel() {
		steps = d.kernelSteps()
	}
	d.board.program(steps)
	total := 0.0
	for _, s := range steps {
		total += s.share
	}
	start, part := time.Now(), 0.0
	forActs := d.o.For - start.Sub(d.begin) - closing
	for i, s := range steps {
		part += s.share
		until := start.Add(time.Duration(float64(forActs) * part / total))
		err := d.act(ctx, i, s, until)
		if last := i == len(steps)-1; last {
			return true
		}
		if ctx.Err() != nil || errors.Is(err, errAbort) {
			return false
		}
		sleep(ctx, time.Until(until))
	}
	return false
}

// open builds the site, starts the daemon, the guests' fleet and the watch.
func (d *demo) open(ctx context.Context) error {
	if err := d.build(); err != nil {
		return err
	}
	d.fleet = newFleet(ctx, d.site, d.o)
	d.watch = newWatch(d)
	if err := d.startDaemon(ctx); err != nil {
		return err
	}
	st, err := d.site.Admin.Status(ctx)
	if err != nil {
		return err
	}
	d.board.update(func(c *scene) { c.kernel = st.Kernel })
	watching, unwatch := context.WithCancel(context.Background())
	d.unwatch, d.watching = unwatch, make(chan struct{})
	go func() {
		defer close(d.watching)
		d.watch.run(watching)
	}()
	return nil
}

// act announces an act, does it and puts up how it went. Errors of clients that nobody expected count as the act's.
func (d *demo) act(ctx context.Context, i int, s step, until time.Time) error {
	d.board.start(i)
	if !s.first() {
		announce := time.Duration(announceShare * float64(time.Until(until)))
		sleep(ctx, min(announce, announceMost))
	}
	before := d.fleet.failures()
	text, err := s.do(ctx, until)
	if ctx.Err() != nil && s.name != actCleanUp {
		d.board.cut(i)
		return ctx.Err()
	}
	err = errors.Join(err, d.fleet.err(before))
	d.board.done(i, text, err)
	return err
}

// first and last acts need no announcement.
func (s step) first() bool { return s.name == actLogin || s.name == actCleanUp }

// await polls for something that others bring about.
func await(ctx context.Context, what string, is func() bool) error {
	limit := time.Now().Add(actTimeout)
	for !is() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(limit) {
			return fmt.Errorf("did not happen within %v: %s", actTimeout, what)
		}
		sleep(ctx, 2*time.Millisecond)
	}
	return nil
}

func (d *demo) startDaemon(ctx context.Context) error {
	d.watch.is(0, "starts")
	if err := d.site.Start(ctx); err != nil {
		d.watch.is(0, "did not start")
		return err
	}
	pid := d.site.Pid()
	d.left.addProcess(pid)
	d.watch.is(pid, fmt.Sprintf("pid %d", pid))
	return nil
}

// inKernel: the kernel is to carry sessions here, so they outlive the daemon.
func (d *demo) inKernel() bool {
	return d.board.snapshot().kernel.Program != ""
}

// cleanUp removes everything and looks whether that is so.
func (d *demo) cleanUp() error {
	if d.unwatch != nil {
		d.unwatch()
		<-d.watching
	}
	return errors.Join(d.close(), d.left.check())
}
