package main

import (
	"testing"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/site"
)

// What an operator ordered of a backend outlives the daemon: a host that was taken
// down must not come back because of a crash.
func TestHostOrdersSurvive(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	down, seven := false, 7
	if err := s.Admin.HostSet(t.Context(), s.Hosts[0].String(), nil, &down); err != nil {
		t.Fatal(err)
	}
	if err := s.Admin.HostSet(t.Context(), s.Hosts[1].String(), &seven, nil); err != nil {
		t.Fatal(err)
	}
	want := status(t, s).Hosts
	if want[0].Up || want[1].Weight != 7 || !want[1].Up || want[2].Weight != 100 {
		t.Fatalf("after the orders: %+v", want)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	start(t, s)
	check := func(want []admin.HostStatus) {
		t.Helper()
		for i, h := range status(t, s).Hosts {
			if h != want[i] {
				t.Errorf("host %d is %+v, want %+v", i, h, want[i])
			}
		}
	}
	check(want)
	up := true
	if err := s.Admin.HostSet(t.Context(), s.Hosts[0].String(), nil, &up); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	start(t, s)
	want[0].Up = true
	check(want)
}
