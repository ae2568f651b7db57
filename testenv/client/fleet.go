package client

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Report sums up what many sessions did.
type Report struct {
	mu     sync.Mutex
	OK     int
	Failed map[Kind]int // errors that are not of this package count as ""
	Errors []error      // the first of them, at most 10
}

func (r *Report) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.OK++
		return
	}
	if r.Failed == nil {
		r.Failed = map[Kind]int{}
	}
	r.Failed[KindOf(err)]++
	if len(r.Errors) < 10 {
		r.Errors = append(r.Errors, err)
	}
}

// Err is nil when nothing failed; otherwise its text has the counts per kind and the first errors.
func (r *Report) Err() error {
	if len(r.Failed) == 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d good", r.OK)
	for _, k := range slices.Sorted(maps.Keys(r.Failed)) {
		fmt.Fprintf(&b, ", %d %s", r.Failed[k], k)
	}
	for _, err := range r.Errors {
		fmt.Fprintf(&b, "\n  %v", err)
	}
	return fmt.Errorf("%s", b.String())
}

// DialAll logs in n sessions, session i with config(i), at most parallel at the same time. It returns those that
// succeeded, in order, and the report about all.
func DialAll(ctx context.Context, n, parallel int, config func(i int) Config) ([]*Session, *Report) {
	all := make([]*Session, n)
	report := &Report{}
	var wg sync.WaitGroup
	next := make(chan int)
	for range max(1, min(n, parallel)) {
		wg.Go(func() {
			for i := range next {
				s, err := Dial(ctx, config(i))
				report.add(err)
				all[i] = s
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return slices.DeleteFunc(all, func(s *Session) bool { return s == nil }), report
}

// Each runs f on all sessions at the same time and waits for all.
func Each(sessions []*Session, f func(i int, s *Session) error) *Report {
	report := &Report{}
	var wg sync.WaitGroup
	for i, s := range sessions {
		wg.Go(func() { report.add(f(i, s)) })
	}
	wg.Wait()
	return report
}

// CloseAll closes all sessions without a word.
func CloseAll(sessions []*Session) {
	for _, s := range sessions {
		s.Close()
	}
}
