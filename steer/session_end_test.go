package steer

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"usher/director"
	"usher/steer/handover"
	"usher/steer/route"
)

// The kernel's part of a session may be over before the goroutine that handed it
// over has said so: the end counts, and it counts once.
func TestEndRightAfterHandOver(t *testing.T) {
	s := &Server{log: zerolog.Nop()}
	s.Stats.init()
	s.Table = newTable(ModeTC, ModeSplice)
	d := director.New(director.Config{})
	d.Step(time.Now(), director.HostPut{Host: director.Host{Addr: netip.MustParseAddr("192.0.2.3"), Weight: 100}})
	s.Router = route.New(route.Config{Director: d, Store: route.Forgetful{}, Stop: s.stop, Log: zerolog.Nop()})

	_, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	client := handover.Tuple{Remote: netip.MustParseAddrPort("192.0.2.1:1000"), Local: netip.MustParseAddrPort("192.0.2.2:143")}
	assigned, err := s.Router.Route(t.Context(), "user", "")
	if err != nil {
		t.Fatal(err)
	}
	x := s.add("imap", client, cancel)
	s.route(x, "user", assigned.Key, assigned.Epoch)
	s.relayed(x, "user", &handover.Pair{ClientTuple: client})
	s.Router.Tell(director.SessionStart{Key: x.key, User: "user", Epoch: x.epoch})

	began := time.Unix(0, x.since)
	w := (*watched)(s)
	if !w.Known(client, began) || w.Known(client, began.Add(1)) {
		t.Error("the session must be known, and no other one with its tuple")
	}
	w.Ended(client, began.Add(1), 1, 2, "closed") // an earlier session's
	if n := s.Counts().Total; n != 1 {
		t.Fatalf("%d sessions, want 1", n)
	}
	w.Ended(client, began, 1, 2, "reset")
	if stop := s.forwarded(x); stop != nil {
		t.Error(stop)
	}
	w.Ended(client, began, 1, 2, "reset")
	if c := s.Counts(); c.Total != 0 || c.Prelogin != 0 || c.ByMode[ModeTC] != 0 || c.ByMode[ModeSplice] != 0 {
		t.Errorf("counts after the end: %+v", c)
	}
	s.Router.View(func(d *director.Director) {
		if e, ok := d.Entry(assigned.Key); !ok || e.Sessions != 0 || e.ExpiresAt.IsZero() {
			t.Errorf("entry after the end: %+v", e)
		}
	})
}
