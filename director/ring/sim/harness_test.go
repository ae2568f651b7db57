package sim

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"usher/director"
	"usher/director/ring"
)

// hermit plays a ring that nobody else belongs to. It shows what the simulation finds.
type hermit struct {
	d *director.Director
}

func (h *hermit) Step(now time.Time, ev director.Event) []director.Effect { return h.d.Step(now, ev) }
func (h *hermit) Hear(time.Time, ring.Event) []director.Effect            { return nil }
func (h *hermit) Actions() []ring.Action                                  { return nil }
func (h *hermit) Next() time.Time                                         { return h.d.Next() }
func (h *hermit) Allowed(netip.Addr) bool                                 { return true }
func (h *hermit) NextConn() ring.Conn                                     { return 1 }
func (h *hermit) Status(time.Time) ring.Status                            { return ring.Status{Handshaked: true} }
func (h *hermit) Synced() bool                                            { return true }

func (h *hermit) Add(time.Time, netip.AddrPort) []director.Effect { return nil }

func (h *hermit) Remove(time.Time, netip.AddrPort) ([]director.Effect, bool) { return nil, true }

func hermits(_ ring.Config, dc director.Config) (machine, *director.Director) {
	d := director.New(alone(dc))
	return &hermit{d}, d
}

// A director alone breaks no rule.
func TestHermit(t *testing.T) {
	played := 0
	for seed := uint64(1); seed < 300; seed++ {
		p := newPlan(seed)
		if p.nodes > 1 {
			continue
		}
		played++
		if _, f := play(p, hermits, nil); f != nil {
			t.Fatal(report(p, f, hermits))
		}
	}
	if played < 20 {
		t.Errorf("only %d plans have one node", played)
	}
}

// Several that do not speak with each other do not agree.
func TestHermits(t *testing.T) {
	for seed := uint64(1); ; seed++ {
		p := newPlan(seed)
		if p.nodes < 2 || !p.has(hostUp, hostDown, hostWeight) {
			continue
		}
		if _, f := play(p, hermits, nil); f == nil {
			t.Errorf("nothing was found wrong with %v", p)
		}
		if seed > 60 {
			break
		}
	}
}

// TestSabotage: rings in which something is broken are found out.
func TestSabotage(t *testing.T) {
	lose := func(line string) func(w *world) {
		return func(w *world) {
			w.drop = func(_, _ int, data []byte) bool {
				return bytes.HasPrefix(data, []byte(line+"\t")) || bytes.Contains(data, []byte("\n"+line+"\t"))
			}
		}
	}
	for _, row := range []struct {
		name     string
		sabotage func(w *world)
	}{
		{"moves are not heard", lose("USER-MOVE")},
		{"users are not heard", lose("USER")},
		{"hosts are not heard", lose("HOST")},
		{"ends of sessions are not heard", lose("USER-KILLED")},
		{"nobody hears that all sessions have ended", lose("USER-KILLED-EVERYWHERE")},
		{"syncs are lost", lose("SYNC")},
		{"nobody is stopped", func(w *world) { w.deaf = true }},
	} {
		t.Run(row.name, func(t *testing.T) {
			for seed := uint64(classes); seed < 200*classes; seed += classes { // calm ones
				w := newWorld(newPlan(seed), build)
				row.sabotage(w)
				if f := w.run(); f != nil {
					t.Logf("found with seed %d: %v", seed, f)
					return
				}
			}
			t.Error("not found")
		})
	}
}
