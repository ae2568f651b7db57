package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/testenv/client"
	"usher/testenv/dovecot"
)

// TestDropInCrowd: users log in all the time through two Dovecots and Usher's own listeners, while they are moved about. At
// no moment is anybody on two backends: not by a login that was on its way when its user was moved either.
func TestDropInCrowd(t *testing.T) {
	t.Parallel()
	d := newDropIns(t, "UU", site.RingOptions{}, dovecot.ProxyOptions{})
	const users, clients, play = 30, 24, 12 * time.Second
	user := func(i int) string { return fmt.Sprintf("crowd%d@example.com", i) }
	ctx, cancel := context.WithTimeout(t.Context(), play)
	defer cancel()
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		logins int
		failed []error
		twice  = map[string]bool{}
	)
	for k := range clients {
		wg.Go(func() {
			for n := k; ctx.Err() == nil; n++ {
				i := rand.IntN(users)
				c := d.client(n%2, []client.Protocol{client.IMAP, client.POP3}[n/2%2], user(i))
				if n%5 == 0 { // Usher's own
					c = d.Members[n%2].Client(user(i))
					c.Timeout = 70 * time.Second
				}
				s, err := client.Dial(ctx, c)
				mu.Lock()
				logins++
				// A login that a kick hits is closed in the middle.
				if kind := client.KindOf(err); err != nil && ctx.Err() == nil && kind != client.EOF && kind != client.Reset && kind != client.Bye {
					failed = append(failed, err)
				}
				mu.Unlock()
				if err != nil {
					continue
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Duration(rand.IntN(1500)) * time.Millisecond):
				}
				s.Close()
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			for _, u := range d.Twice() {
				mu.Lock()
				twice[u] = true
				mu.Unlock()
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
	moves := 0
	for ctx.Err() == nil {
		// An order for a user who is being moved is refused; that is no matter here.
		if _, err := d.Members[moves%2].Daemon.Admin.UserMove(ctx, user(rand.IntN(users)), d.Hosts[rand.IntN(len(d.Hosts))].String(), false); err == nil {
			moves++
		}
		time.Sleep(100 * time.Millisecond)
	}
	wg.Wait()
	if len(twice) > 0 {
		t.Errorf("%d users were on two backends: %q", len(twice), slices.Sorted(maps.Keys(twice)))
	}
	for _, err := range failed[:min(len(failed), 5)] {
		t.Errorf("one of %d logins that failed: %v", len(failed), err)
	}
	if logins < 100 || moves < 15 {
		t.Errorf("only %d logins and %d moves", logins, moves)
	}
	t.Logf("%d logins, %d moves", logins, moves)
	for i := range d.Members {
		noErrors(t, &site.Site{Daemon: d.Members[i].Daemon})
	}
}
