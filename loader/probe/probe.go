package probe

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"usher/loader"
)

// Options says what to look at.
type Options struct {
	PinPath string        // steer.pin_path: looked at, never written; "": /sys/fs/bpf/usher
	Timeout time.Duration // for everything; 0: 10 s
}

const (
	defaultPinPath = "/sys/fs/bpf/usher"
	defaultTimeout = 10 * time.Second
	// slack is what is left of the timeout for looking at interfaces and writing the answer.
	slack = 500 * time.Millisecond
)

// late is the reason of what Run had no time for.
const late = "not finished in time: the machine is busy, or its verifier slow"

// Run finds out what works here. It does not fail: what it cannot find out is in the result. It returns in
// time even when a system call does not; then the rest of a trial ends in the background.
func Run(ctx context.Context, o Options) *Result {
	start := time.Now()
	o.PinPath = cmp.Or(o.PinPath, defaultPinPath)
	o.Timeout = cmp.Or(o.Timeout, defaultTimeout)
	ctx, cancel := context.WithTimeout(ctx, max(o.Timeout-slack, 1))
	defer cancel()

	r := &Result{Kernel: release(), Arch: runtime.GOARCH, UID: os.Geteuid()}
	checks, inTime := within(ctx, func() []Check { return checkAll(o.PinPath) })
	r.Checks = append([]Check{}, checks...) // a list in JSON even when there was no time
	if inTime {
		r.Load, inTime = within(ctx, load)
	}
	if !inTime {
		r.Load = Load{State: Untried, Reason: late, Programs: []Program{}}
	}
	r.Modes = []Mode{
		{Mode: ModeXDP, Attach: AttachDriver, Note: "proven on veth with checksum and segmentation offload off and GRO on; on a physical interface its driver decides"},
		{Mode: ModeTC, Attach: AttachTCX},
		{Mode: ModeTC, Attach: AttachClsact},
		{Mode: ModeSplice},
		{Mode: ModeCopy},
	}
	// XDP last: what does not work there stalls, and must not take the time of what auto may choose.
	for _, i := range []int{1, 2, 3, 4, 0} {
		m := &r.Modes[i]
		mode := *m // what is late must not write to r
		before := time.Now()
		if tried, inTime := within(ctx, func() Mode { return r.examine(ctx, mode) }); inTime {
			*m = tried
		} else {
			m.State, m.Reason = Untried, late
		}
		m.Works = m.State == Works
		m.MS = milliseconds(time.Since(before))
	}
	var err error
	r.Interfaces, err = interfaces()
	r.choose(err)
	r.TookMS = time.Since(start).Milliseconds()
	return r
}

// within waits for f, but not longer than for ctx.
func within[T any](ctx context.Context, f func() T) (result T, inTime bool) {
	if ctx.Err() != nil {
		return result, false
	}
	done := make(chan T, 1)
	go func() { done <- f() }()
	select {
	case result = <-done:
		return result, true
	case <-ctx.Done():
		return result, false
	}
}

// examine tries a mode, unless it is known beforehand that it cannot work or cannot be tried.
func (r *Result) examine(ctx context.Context, m Mode) Mode {
	if m.Attach == "" {
		return tryUserSpace(ctx, m)
	}
	// A missing capability says more than the error that it leads to.
	missing := lacks(r.Checks, m.Mode)
	if len(missing) == 0 && r.Load.State != Works {
		m.State, m.Reason = r.Load.State, r.Load.Reason
		return m
	}
	m.State = Fails
	if len(missing) == 0 {
		if missing = lacks(r.Checks, "trial"); len(missing) == 0 {
			return tryKernel(ctx, m)
		}
		m.State = Untried
	}
	m.Reason = reason(missing)
	if m.State == Untried {
		m.Reason = "the programs load, but a hand-over cannot be tried here: " + m.Reason
	}
	for _, c := range missing {
		m.Missing = append(m.Missing, c.Name)
	}
	return m
}

// lacks returns the checks that say no to a need.
func lacks(checks []Check, need string) []Check {
	var found []Check
	for _, c := range checks {
		if c.State == Fails && slices.Contains(c.Needed, need) {
			found = append(found, c)
		}
	}
	return found
}

// reason names what is missing; the names of capabilities speak for themselves.
func reason(missing []Check) string {
	var caps, others []string
	for _, c := range missing {
		if strings.HasPrefix(c.Name, "CAP_") {
			caps = append(caps, c.Name)
			continue
		}
		others = append(others, c.Name+": "+c.Detail)
	}
	if len(caps) > 0 {
		others = append([]string{"needs " + strings.Join(caps, ", ")}, others...)
	}
	return strings.Join(others, "; ")
}

// choose does what `usher serve` does with steer.mode = "auto": tc when it can be attached, else splice. XDP is never its choice.
func (r *Result) choose(interfacesErr error) {
	tcx, _ := r.Mode(ModeTC, AttachTCX)
	tc := tcx
	if tcx.absent {
		tc, _ = r.Mode(ModeTC, AttachClsact)
	}
	used := slices.ContainsFunc(r.Interfaces, func(i Interface) bool { return i.Used })
	a := &r.Auto
	switch {
	case !used:
		a.Reason = "no Ethernet interface carries a route"
		if interfacesErr != nil {
			a.Reason = interfacesErr.Error()
		}
	case tc.State == Works:
		a.Reason = "a session was handed over and its bytes were right"
		if tcx.absent {
			a.Reason += "; " + tcx.Reason
		}
	case tc.State == Untried:
		a.Reason = tc.Reason
	case tc.opened:
		// serve would not notice: it attaches, and each session stays in user space with its reason.
		a.Reason = "it can be attached, but a hand-over fails: " + tc.Reason
	default:
		a.Reason = "tc does not work: " + tc.Reason
	}
	if used && (tc.State != Fails || tc.opened) {
		a.Mode, a.Attach, a.State = tc.Mode, tc.Attach, tc.State
	} else {
		user, _ := r.Mode(ModeSplice, "")
		a.Mode, a.State = user.Mode, user.State
		if user.State == Fails {
			a.Reason += "; and splice does not work: " + user.Reason
		}
	}
	a.Works = a.State == Works
	for i := range r.Interfaces {
		to := &r.Interfaces[i]
		to.Mode = ModeSplice
		if to.Used {
			to.Mode, to.Attach = a.Mode, a.Attach
		}
	}
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond*100).Microseconds()) / 1000
}

// kernelConfig is what the trials open; small maps, since there is one session.
func kernelConfig(m Mode, pins string) loader.Config {
	c := loader.Config{PinPath: pins, MaxFlows: 64, Mode: loader.ModeTC, Clsact: m.Attach == AttachClsact}
	if m.Mode == ModeXDP {
		c.Mode = loader.ModeXDP
	}
	return c
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
