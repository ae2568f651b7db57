package bpf_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"usher/bpf"
)

// rig is a set of programs and maps of its own, attached to nothing: tests run
// the programs by BPF_PROG_RUN.
type rig struct {
	bpf.SpliceObjects
	events *ringbuf.Reader
}

type rigOptions struct {
	learntHop bool
	// fault makes every call of a helper return faultResult: what cannot be brought
	// about from outside.
	fault       asm.BuiltinFunc
	faultResult int32
}

// tester is what *testing.T and *rapid.T have in common.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Fatal(args ...any)
}

// newRig loads the programs. Without the rights to do so it skips.
func newRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Skipf("needs root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON): %v", err)
	}
	spec, err := bpf.LoadSplice()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{bpf.SpliceMapFlows, bpf.SpliceMapUsers, bpf.SpliceMapNames} {
		spec.Maps[m].MaxEntries = 4096
	}
	if err := spec.Variables[bpf.SpliceVarRedirectNeigh].Set(!o.learntHop); err != nil {
		t.Fatal(err)
	}
	if o.fault != 0 {
		injectFault(t, spec, o.fault, o.faultResult)
	}
	r := &rig{}
	if err := spec.LoadAndAssign(&r.SpliceObjects, nil); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skipf("needs root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON): %v", err)
		}
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { r.Close() })
	if r.events, err = ringbuf.NewReader(r.Events); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.events.Close() })
	r.events.SetDeadline(time.Unix(1, 0)) // never wait
	return r
}

func injectFault(t testing.TB, spec *ebpf.CollectionSpec, helper asm.BuiltinFunc, result int32) {
	t.Helper()
	n := 0
	for _, p := range spec.Programs {
		for i, ins := range p.Instructions {
			if ins.IsBuiltinCall() && ins.Constant == int64(helper) {
				p.Instructions[i] = asm.Mov.Imm(asm.R0, result).WithMetadata(ins.Metadata)
				n++
			}
		}
	}
	if n == 0 {
		t.Fatalf("no program calls %v", helper)
	}
}

// program is a program under test and what its answers mean.
type program struct {
	name       string
	prog       *ebpf.Program
	xdp        bool
	pass, drop uint32
	redirect   uint32
}

const (
	tcNext, tcShot, tcRedirect    = ^uint32(0), 2, 7 // TCX_NEXT, TC_ACT_SHOT, TC_ACT_REDIRECT
	xdpPass, xdpDrop, xdpRedirect = 2, 1, 4
)

func (r *rig) tc() program {
	return program{"tc", r.SpliceTc, false, tcNext, tcShot, tcRedirect}
}

func (r *rig) xdp() program {
	return program{"xdp", r.SpliceXdp, true, xdpPass, xdpDrop, xdpRedirect}
}

// skb is struct __sk_buff of linux/bpf.h, as far as BPF_PROG_RUN takes it.
type skb struct {
	_              [9]uint32
	IngressIfindex uint32
	Ifindex        uint32
	_              [29]uint32
	WireLen        uint32
	GSOSegs        uint32
	_              uint64 // sk
	GSOSize        uint32
	_              [3]uint32
}

// run gives a frame to a program and returns its answer and the frame behind it.
func run(t tester, p *ebpf.Program, frame []byte, ctx *skb) (uint32, []byte) {
	t.Helper()
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	if ctx != nil {
		o.Context = ctx
	}
	code, err := p.Run(&o)
	if err != nil {
		t.Fatal(err)
	}
	return code, o.DataOut
}

func (r *rig) putFlow(t tester, k bpf.SpliceFlowKey, f bpf.SpliceFlow) {
	t.Helper()
	if err := r.Flows.Put(k, &f); err != nil {
		t.Fatalf("put flow: %v", err)
	}
}

// flow returns nil when there is none.
func (r *rig) flow(t tester, k bpf.SpliceFlowKey) *bpf.SpliceFlow {
	t.Helper()
	var f bpf.SpliceFlow
	switch err := r.Flows.Lookup(k, &f); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return nil
	case err != nil:
		t.Fatalf("look up flow: %v", err)
	}
	return &f
}

// clear empties the maps that rows fill.
func (r *rig) clear(t tester) {
	t.Helper()
	clearMap[bpf.SpliceFlowKey, bpf.SpliceFlow](t, r.Flows)
	clearMap[bpf.SpliceUserKey, bpf.SpliceUser](t, r.Users)
	r.told(t)
}

func clearMap[K, V any](t tester, m *ebpf.Map) {
	t.Helper()
	var keys []K
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		keys = append(keys, k)
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if err := m.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
}

// told returns the events since the last call.
func (r *rig) told(t tester) []bpf.SpliceEvent {
	t.Helper()
	var all []bpf.SpliceEvent
	for {
		rec, err := r.events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(rec.RawSample) < int(unsafe.Sizeof(bpf.SpliceEvent{})) {
			t.Fatalf("event of %d bytes", len(rec.RawSample))
		}
		all = append(all, *(*bpf.SpliceEvent)(unsafe.Pointer(&rec.RawSample[0])))
	}
}

// counters returns packets and bytes of every verdict.
func (r *rig) counters(t tester) (c [bpf.SpliceVerdictVERDICT_MAX]bpf.SpliceCounter) {
	t.Helper()
	for i := range c {
		var perCPU []bpf.SpliceCounter
		if err := r.Counters.Lookup(uint32(i), &perCPU); err != nil {
			t.Fatal(err)
		}
		for _, n := range perCPU {
			c[i].Packets += n.Packets
			c[i].Bytes += n.Bytes
		}
	}
	return c
}

// counted checks that of all counters only v's has moved since before: by one packet.
func (r *rig) counted(t tester, before [bpf.SpliceVerdictVERDICT_MAX]bpf.SpliceCounter, v bpf.SpliceVerdict, bytes int) {
	t.Helper()
	for i, now := range r.counters(t) {
		want := before[i]
		if bpf.SpliceVerdict(i) == v {
			want.Packets++
			want.Bytes += uint64(bytes)
		}
		if now.Packets != want.Packets || now.Bytes != want.Bytes {
			t.Errorf("counter %s moved by %d packets, %d bytes; want %d, %d", enumNames("verdict")[uint32(i)],
				now.Packets-before[i].Packets, now.Bytes-before[i].Bytes, want.Packets-before[i].Packets, want.Bytes-before[i].Bytes)
		}
	}
}

var splicedTypes = sync.OnceValue(func() *btf.Spec {
	spec, err := bpf.LoadSplice()
	if err != nil {
		panic(err)
	}
	return spec.Types
})

// enumNames returns the values of an enum of usher.h by the object's own type
// information, so that nothing is forgotten here. VERDICT_MAX is not one.
func enumNames(name string) map[uint32]string {
	var e *btf.Enum
	if err := splicedTypes().TypeByName(name, &e); err != nil {
		panic(err)
	}
	names := map[uint32]string{}
	for _, v := range e.Values {
		if !strings.HasSuffix(v.Name, "_MAX") {
			names[uint32(v.Value)] = v.Name
		}
	}
	return names
}

// monotonic is the clock of bpf_ktime_get_ns.
func monotonic() uint64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint64(ts.Nano())
}

// onesDiff is the one's complement sum of (new - old), in native order.
func onesDiff(old, new []byte) uint16 {
	inverse := slices.Clone(old)
	for i := range inverse {
		inverse[i] = ^inverse[i]
	}
	return toNetwork(onesSum(inverse, new))
}
