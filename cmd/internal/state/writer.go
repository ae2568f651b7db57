package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// When the file is written.
const (
	writeDelay = 200 * time.Millisecond // after an order: others may follow
	writePause = time.Second            // between two writes, at least
	// writeEvery looks for what changes without an order: moved users that are active expire later.
	writeEvery = time.Minute
	retryAfter = 10 * time.Second // when the file could not be written
)

// Writer keeps the file up to date. It is made by NewWriter and lives in Run.
type Writer struct {
	path  string
	get   func() State
	log   zerolog.Logger
	wake  chan struct{}
	write func(path string, data []byte) error

	asked  atomic.Uint64 // calls of Store
	mu     sync.Mutex
	stored uint64 // calls of Store that the last write was after
	last   []byte // what the file has
	failed bool
}

// NewWriter returns a writer of what get returns; get may be called at any time until Run returns.
func NewWriter(path string, get func() State, log zerolog.Logger) *Writer {
	last, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		last, _ = encode(State{}) // without orders there need not be a file
	}
	return &Writer{path: path, get: get, log: log, wake: make(chan struct{}, 1), write: replace, last: last}
}

// Store writes the file now, if there is something new, and returns when it is on the disk: for orders that must
// hold once they were answered. An error is logged, and Run tries again.
func (w *Writer) Store() {
	call := w.asked.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stored >= call {
		return // by a write that began after this call
	}
	covered := w.asked.Load()
	if w.saveLocked() == nil {
		w.stored = covered
	} else {
		w.Changed()
	}
}

// Changed says that there may be something new to write. It never blocks.
func (w *Writer) Changed() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx is done, and then what is new once more: it returns the error of that.
func (w *Writer) Run(ctx context.Context) error {
	timer := time.NewTimer(writeEvery)
	defer timer.Stop()
	var written time.Time
	due := time.Now().Add(writeEvery)
	for {
		select {
		case <-ctx.Done():
			return w.save()
		case <-w.wake:
			// Orders that never end must not put it off for ever: it may only come nearer.
			if at := time.Now().Add(max(writeDelay, writePause-time.Since(written))); at.Before(due) {
				due = at
				timer.Reset(time.Until(due))
			}
			continue
		case <-timer.C:
		}
		next := writeEvery
		if w.save() != nil {
			next = retryAfter
		}
		written = time.Now()
		due = written.Add(next)
		timer.Reset(next)
	}
}

// save writes the file if it would be another one. An error is logged once.
func (w *Writer) save() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.saveLocked()
}

func (w *Writer) saveLocked() error {
	err := w.tryLocked()
	switch {
	case err != nil && !w.failed:
		w.log.Error().Err(err).Msg("orders would be forgotten at a restart; trying again")
	case err == nil && w.failed:
		w.log.Info().Str("file", w.path).Msg("the state file is written again")
	}
	w.failed = err != nil
	return err
}

func (w *Writer) tryLocked() error {
	data, err := encode(w.get())
	if err != nil {
		return fmt.Errorf("write the state file: %w", err)
	}
	if bytes.Equal(data, w.last) {
		return nil
	}
	if err := w.write(w.path, data); err != nil {
		return fmt.Errorf("write the state file: %w", err)
	}
	w.last = data
	return nil
}
