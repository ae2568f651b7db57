// Package probe tells which modes of the path work on this machine, and why the others do not. It needs no daemon and
// no rights: what it may not try it explains.
//
// It asks first and tries then. Asked are the kernel's version, capabilities, the place for pins, the kinds of
// programs, maps and helpers, TCP_REPAIR (checks.go, load.go). Tried is, for each way to attach, a whole
// hand-over with the code that `usher serve` runs (trial.go), on cables of its own:
//
//	client namespace ── veth ── director namespace ── veth ── backend namespace
//	                            programs, relay                   (site.go)
//
// Random bytes go through user space, the session is handed over, random bytes go through the kernel and are compared by hash, the
// flows' counters must have moved, and the session is ended as a kick does. The modes of user space do the same
// on the loopback interface.
//
// Nothing of the machine is changed: its interfaces are only looked at, and the pins are in a bpffs that was never
// mounted anywhere. Everything is tied to file descriptors, so even a probe that is killed leaves nothing.
package probe
