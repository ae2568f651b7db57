package sim

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	oneSeed   = flag.Uint64("seed", 0, "play this one only, and print all that happens with -v")
	fromSeed  = flag.Uint64("from", 1, "first seed")
	seeds     = flag.Uint64("seeds", 4000, "play so many")
	budget    = flag.Duration("budget", 20*time.Second, "stop after this time, with a log line, even if seeds are left")
	soak      = flag.Duration("for", 0, "play as many seeds as this takes, begun at a seed that is the time of day")
	only      = flag.String("class", "", "only plans of this class: calm, bumpy, divided, anything")
	keepGoing = flag.Bool("all", false, "go on after a failure, and count failures by rule")
)

// play plays a plan, and says what was wrong.
func play(p *plan, b builder, out io.Writer) (*world, *failure) {
	w := newWorld(p, b)
	w.out = out
	return w, w.run()
}

// shrink leaves out of a failing plan what is not needed for the same failure.
func shrink(p *plan, f *failure, b builder) (*plan, *failure) {
	deadline := time.Now().Add(20 * time.Second)
	for size := len(p.steps) / 2; size > 0; {
		smaller := false
		for i := 0; i+size <= len(p.steps) && time.Now().Before(deadline); {
			q := p.without(i, i+size)
			if _, g := play(q, b, nil); g != nil && g.what == f.what {
				p, f, smaller = q, g, true
			} else {
				i += size
			}
		}
		if !smaller || size > len(p.steps) {
			size /= 2
		}
	}
	return p, f
}

// report describes a failure: the smallest plan that still fails, and the last that happened.
func report(p *plan, f *failure, b builder) string {
	var s strings.Builder
	fmt.Fprintf(&s, "seed %d: %v\nagain: go test ./director/ring/sim -run TestSim -seed=%d -v\n", p.seed, f, p.seed)
	q, g := shrink(p, f, b)
	fmt.Fprintf(&s, "smaller: %v\n%v", g, q)
	var out bytes.Buffer
	play(q, b, &out)
	lines := strings.Split(out.String(), "\n")
	const tail = 60
	fmt.Fprintf(&s, "its end:\n%s", strings.Join(lines[max(0, len(lines)-tail):], "\n"))
	return s.String()
}

func TestSim(t *testing.T) {
	if *oneSeed != 0 {
		p := newPlan(*oneSeed)
		_, f := play(p, build, nil)
		if f == nil {
			var out io.Writer
			if testing.Verbose() {
				out = os.Stdout
			}
			w, _ := play(p, build, out)
			t.Logf("%v%s: nothing is wrong: %d events, agreed %v after the last fault, %d conflicts", p, p.class, w.count, w.checker.settled-p.end, w.checker.conflicts)
			return
		}
		p, _ = shrink(p, f, build)
		if testing.Verbose() {
			_, f = play(p, build, os.Stdout)
		}
		t.Fatalf("%v\n%v", f, p)
	}
	first, count, limit := *fromSeed, *seeds, *budget
	if *soak > 0 {
		first, count, limit = uint64(time.Now().Unix())*1000, 1<<62, *soak
	}
	var (
		wg      sync.WaitGroup
		next    atomic.Uint64
		played  atomic.Uint64
		mu      sync.Mutex
		failing = map[string][]uint64{}
		slowest = map[class]time.Duration{}
		events  uint64
	)
	next.Store(first)
	deadline := time.Now().Add(limit)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for time.Now().Before(deadline) && (*keepGoing || !t.Failed()) {
				seed := next.Add(1) - 1
				if seed >= first+count {
					return
				}
				if *only != "" && class(seed%classes).String() != *only {
					continue
				}
				p := newPlan(seed)
				w, f := play(p, build, nil)
				played.Add(1)
				mu.Lock()
				events += w.count
				slowest[p.class] = max(slowest[p.class], w.checker.settled-p.end)
				if f != nil {
					failing[f.what] = append(failing[f.what], seed)
					if !t.Failed() || *keepGoing && len(failing[f.what]) == 1 {
						t.Error(report(p, f, build))
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d seeds, %d events; longest time until agreement after the last fault: %v", played.Load(), events, slowest)
	for what, s := range failing {
		t.Logf("%d failures: %s: seeds %d", len(s), what, s[:min(len(s), 12)])
	}
}

// TestSameSeedSameRun: nothing random comes from elsewhere, such as the order of maps.
func TestSameSeedSameRun(t *testing.T) {
	for seed := uint64(1); seed <= 12; seed++ {
		a, fa := play(newPlan(seed), build, nil)
		b, fb := play(newPlan(seed), build, nil)
		if a.signature() != b.signature() || fmt.Sprint(fa) != fmt.Sprint(fb) {
			t.Errorf("seed %d plays differently: %d events and %v, then %d and %v", seed, a.count, fa, b.count, fb)
		}
	}
}
