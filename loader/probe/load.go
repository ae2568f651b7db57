package probe

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"usher/bpf"
)

// load gives the kernel the programs that serve loads, attaches nothing and lets them go again.
func load() Load {
	l := Load{State: Fails, Programs: []Program{}}
	// Before Linux 5.11 maps count as locked memory. Without the right to lift that limit they may still fit.
	_ = rlimit.RemoveMemlock()
	spec, err := bpf.LoadSplice()
	if err != nil {
		l.Reason = err.Error()
		return l
	}
	for _, m := range spec.Maps {
		if m.Type == ebpf.Hash {
			m.MaxEntries = 64 // not what is measured
		}
	}
	start := time.Now()
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		l.Reason = "load programs: " + err.Error()
		if errors.Is(err, unix.EPERM) { // the library adds guesses
			l.Reason = "load programs: " + unix.EPERM.Error()
		}
		return l
	}
	defer c.Close()
	// The verifier's part of this is what a restarted daemon waits for.
	l.State, l.MS = Works, milliseconds(time.Since(start))
	for name, p := range c.Programs {
		about := Program{Name: name, Type: p.Type().String()}
		if info, err := p.Info(); err == nil {
			about.Verified, _ = info.VerifiedInstructions()
			about.JITed, _ = info.JitedSize()
		}
		l.Programs = append(l.Programs, about)
	}
	slices.SortFunc(l.Programs, func(a, b Program) int { return cmp.Compare(a.Name, b.Name) })
	return l
}
