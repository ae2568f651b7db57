package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"usher/cmd/internal/site"
	"usher/testenv/client"
)

// A daemon in user space would not know the users of the sessions in the kernel, and
// could put them on a second backend: it refuses to start, and names the way out.
func TestUserSpaceBesideKernelSessions(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	x := login(t, s, 1, func(int) client.Config { return s.Client("user") })[0]
	allForwarded(t, s, 1)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.ConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"splice", "copy"} {
		other := bytes.Replace(text, []byte(`mode = "auto"`), []byte(`mode = "`+mode+`"`), 1)
		if err := os.WriteFile(s.ConfigFile(), other, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "usher unpin --pin-path "+s.PinPath) {
			t.Fatalf("mode %s: %v", mode, err)
		}
	}
	if err := x.Echo(1000, 1); err != nil {
		t.Errorf("the session was disturbed: %v", err)
	}
	if err := s.Unpin(); err != nil {
		t.Fatal(err)
	}
	start(t, s) // in mode copy
	login(t, s, 1, func(int) client.Config { return s.Client("user") })
}
