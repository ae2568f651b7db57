package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/testenv/client"
	"usher/testenv/lab"
)

// off switches TCP options off in a namespace.
func off(options ...string) map[string]string {
	m := map[string]string{}
	for _, o := range options {
		m["net.ipv4.tcp_"+o] = "0"
	}
	return m
}

// visit is a short session with traffic.
func visit(ctx context.Context, c client.Config, seed uint64) error {
	x, err := client.Dial(context.WithoutCancel(ctx), c)
	if err != nil {
		return err
	}
	defer x.Close()
	ctx, cancel := context.WithTimeout(ctx, rand.N(400*time.Millisecond))
	defer cancel()
	if err := x.Traffic(ctx, seed); err != nil {
		return err
	}
	return x.Logout()
}

// Random data both ways, checked byte by byte, while sessions are handed over at
// random moments. What the kernel cannot translate stays in user space, says why,
// and is just as right.
func TestRandomTraffic(t *testing.T) {
	const clients = 500
	for _, row := range []struct {
		name            string
		family          int
		quiet           string
		client, backend map[string]string
		stays           string // reason
	}{
		{name: "ipv4", family: 4, quiet: "0s"},
		{name: "ipv6", family: 6, quiet: "1ms"},
		{name: "ipv4, client without timestamps", family: 4, quiet: "5ms", client: off("timestamps")},
		{name: "ipv4, client without sack", family: 4, quiet: "0s", client: off("sack")},
		{name: "ipv4, client without window scaling", family: 4, quiet: "2ms", client: off("window_scaling")},
		{name: "ipv4, backend without window scaling", family: 4, quiet: "20ms", backend: off("window_scaling")},
		{name: "ipv6, client with nothing", family: 6, quiet: "3ms", client: off("timestamps", "sack", "window_scaling")},
		{name: "ipv6, nobody with anything", family: 6, quiet: "0s", client: off("timestamps", "sack", "window_scaling"), backend: off("timestamps", "sack", "window_scaling")},
		{name: "ipv4, backend without timestamps", family: 4, quiet: "1ms", backend: off("timestamps"), stays: "timestamps"},
		{name: "ipv6, backend without sack", family: 6, quiet: "1ms", backend: off("sack"), stays: "sack"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newSite(t, site.Options{
				Lab:   lab.Options{Family: row.family, ClientSysctl: row.client, BackendSysctl: row.backend},
				Steer: fmt.Sprintf("quiet = %q", row.quiet),
			})
			start(t, s)
			begin := time.Now()
			// The logins are spread over the first half.
			const length = 3 * time.Second
			ctx, cancel := context.WithTimeout(t.Context(), length)
			defer cancel()
			all := make([]*client.Session, clients)
			report := client.Each(all, func(i int, _ *client.Session) error {
				time.Sleep(rand.N(length / 2))
				c := s.Client(fmt.Sprintf("user%d", i%150))
				c.Method, c.Pipeline, c.Timeout = client.Methods[i%len(client.Methods)], i%2 == 0, time.Minute
				if i%5 == 4 {
					c.Protocol, c.Server = client.POP3, s.Service(client.POP3)
				}
				// Some come and go: each of them is one hand-over more.
				for i%4 == 1 && ctx.Err() == nil {
					if err := visit(ctx, c, uint64(i)); err != nil {
						return err
					}
				}
				x, err := client.Dial(t.Context(), c)
				if err != nil {
					return err
				}
				all[i] = x
				if i%3 == 0 {
					return x.Hammer(ctx, uint64(i))
				}
				return x.Traffic(ctx, uint64(i))
			})
			all = slices.DeleteFunc(all, func(x *client.Session) bool { return x == nil })
			t.Cleanup(func() { client.CloseAll(all) })
			if err := report.Err(); err != nil {
				t.Fatal(err)
			}
			took := time.Since(begin)
			busy := metrics(t, s) // before the silence hands over the rest
			undone := func(m map[string]float64) float64 { return m[`usher_steer_stay_sessions{reason="undone"}`] }
			var m map[string]float64
			within(t, time.Minute, "every session has found its place", func() bool {
				m = metrics(t, s)
				return m[`usher_steer_stay_sessions{reason="waiting"}`] == 0
			})
			tc := m[`usher_steer_sessions{mode="tc"}`]
			if row.stays == "" && tc+undone(m) != clients || row.stays == "" && tc < clients*3/4 {
				t.Errorf("%v sessions in the kernel and %v undone, want most and together %d", tc, undone(m), clients)
			}
			if row.stays != "" && m[fmt.Sprintf("usher_steer_stay_sessions{reason=%q}", row.stays)] != clients {
				t.Errorf("want %d sessions to stay for %q", clients, row.stays)
			}
			for name, v := range m {
				if strings.HasPrefix(name, "usher_steer_stay_sessions") && v > 0 && !strings.Contains(name, `"undone"`) && (row.stays == "" || !strings.Contains(name, row.stays)) {
					t.Errorf("unexpected: %s %v", name, v)
				}
			}
			// What the silence has moved is as right as the rest.
			after, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			var ops, sent, received uint64
			if err := client.Each(all, func(i int, x *client.Session) error {
				if err := x.Traffic(after, uint64(1000+i)); err != nil {
					return err
				}
				return x.Logout()
			}).Err(); err != nil {
				t.Error(err)
			}
			for _, x := range all {
				o, out, in := x.Stats()
				ops, sent, received = ops+o, sent+out, received+in
			}
			eventually(t, "no session left", func() bool { return status(t, s).Sessions.Total == 0 })
			for _, b := range s.Backends {
				for _, x := range b.Sessions() {
					if x.Ending != "LOGOUT" {
						t.Errorf("backend %s saw session %d end by %q, want LOGOUT", b.Name(), x.ID, x.Ending)
					}
				}
			}
			noErrors(t, s)
			t.Logf("%d sessions, %d commands, %d MiB out, %d MiB in, 0 errors in %v; handed over %v, of these %v under traffic; undone %v times, %v sessions for good",
				len(all), ops, sent>>20, received>>20, took.Round(time.Millisecond), m["usher_steer_handover_total"], busy["usher_steer_handover_total"], m["usher_steer_handover_undone_total"], undone(m))
		})
	}
}
