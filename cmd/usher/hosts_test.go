package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/site"
)

// What an operator ordered of a backend outlives the daemon: a host that was taken
// down must not come back because of a crash.
func TestHostOrdersSurvive(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	if _, err := s.Admin.HostUp(t.Context(), s.Hosts[0].String(), false, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admin.HostUpdate(t.Context(), s.Hosts[1].String(), 7, false); err != nil {
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
			if diff := cmp.Diff(want[i], h, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("host %d (-want +got):\n%s", i, diff)
			}
		}
	}
	check(want)
	if _, err := s.Admin.HostUp(t.Context(), s.Hosts[0].String(), true, false); err != nil {
		t.Fatal(err)
	}
	if want = status(t, s).Hosts; !want[0].Up || !want[0].OperatorUp {
		t.Fatalf("after the order: %+v", want[0])
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	start(t, s)
	check(want)
}
