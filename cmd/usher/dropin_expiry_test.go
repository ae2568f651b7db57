package main

import (
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/testenv/client"
	"usher/testenv/dovecot"
)

// TestDropInExpiry: a session that Dovecot's login processes carry keeps its user's entry for as long as it lives, at all
// directors, because they say so (proxy-notify); and not for much longer.
func TestDropInExpiry(t *testing.T) {
	t.Parallel()
	const life = 10 * time.Second
	d := newDropIns(t, "UU", site.RingOptions{UserExpire: life}, dovecot.ProxyOptions{})
	const user, quick = "stays@example.com", "leaves@example.com"
	for _, u := range []string{user, quick} {
		s, err := client.Dial(t.Context(), d.client(0, client.IMAP, u))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if u == quick {
			s.Close()
		}
	}
	host := hostOf(t, d.Members[1], user)
	begin := time.Now()
	for time.Since(begin) < 5*life/2 {
		for i, m := range d.Members {
			if h := hostOf(t, m, user); h != host {
				t.Fatalf("after %v member %d has the user on %v, want %v", time.Since(begin), i, h, host)
			}
		}
		time.Sleep(250 * time.Millisecond)
	}
	u, err := d.Members[0].Daemon.Admin.User(t.Context(), user)
	if err != nil || u.ExpiresAt != nil {
		t.Errorf("usher user: %+v, %v; want an entry that does not expire", u, err)
	}
	for i, m := range d.Members {
		if h := hostOf(t, m, quick); h.IsValid() {
			t.Errorf("member %d has who left two lives ago on %v", i, h)
		}
	}
	noErrors(t, &site.Site{Daemon: d.Members[0].Daemon})
}
