package bpf_test

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"usher/bpf"
)

// budgets bound the work of the verifier per program, in instructions that it looks
// at: a change that multiplies them makes every start slow, and the kernel's own
// limit of a million is no distance to drive at.
var budgets = map[string]uint32{
	bpf.SpliceProgSpliceTc:    120_000,
	bpf.SpliceProgSpliceXdp:   120_000,
	bpf.SpliceProgEgressTc:    2_000,
	bpf.SpliceProgFlowControl: 2_000,
}

func TestVerifierBudget(t *testing.T) {
	newRig(t, rigOptions{}) // skips without rights, and warms up
	spec, err := bpf.LoadSplice()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	set, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the set is loaded in %v", time.Since(begin).Round(time.Millisecond))
	defer set.Close()
	for name, p := range set.Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.VerifiedInstructions()
		if !ok {
			t.Skip("the kernel does not tell verified instructions (before Linux 5.16)")
		}
		t.Logf("%-14s %6d verified instructions", name, n)
		if budget, ok := budgets[name]; !ok || n > budget {
			t.Errorf("program %s: the verifier looks at %d instructions, budget %d", name, n, budget)
		}
	}
	if len(budgets) != len(set.Programs) {
		t.Errorf("%d budgets for %d programs", len(budgets), len(set.Programs))
	}
}

// TestSizes: the Go types are those of the maps, and an element of the flow map
// fits the slab that the comment at struct flow in usher.h speaks of.
func TestSizes(t *testing.T) {
	spec, err := bpf.LoadSplice()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name       string
		key, value uintptr
	}{
		{bpf.SpliceMapFlows, unsafe.Sizeof(bpf.SpliceFlowKey{}), unsafe.Sizeof(bpf.SpliceFlow{})},
		{bpf.SpliceMapUsers, unsafe.Sizeof(bpf.SpliceUserKey{}), unsafe.Sizeof(bpf.SpliceUser{})},
		{bpf.SpliceMapNames, unsafe.Sizeof(bpf.SpliceNameKey{}), unsafe.Sizeof(bpf.SpliceNamePiece{})},
		{bpf.SpliceMapCounters, 4, unsafe.Sizeof(bpf.SpliceCounter{})},
	} {
		if m := spec.Maps[row.name]; uintptr(m.KeySize) != row.key || uintptr(m.ValueSize) != row.value {
			t.Errorf("map %s: key %d, value %d bytes; Go has %d, %d", row.name, m.KeySize, m.ValueSize, row.key, row.value)
		}
	}
	if n := spec.Maps[bpf.SpliceMapCounters].MaxEntries; n != uint32(bpf.SpliceVerdictVERDICT_MAX) {
		t.Errorf("%d counters for %d verdicts", n, bpf.SpliceVerdictVERDICT_MAX)
	}
	text, err := os.ReadFile("usher.h")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?s)/\*\s+\* (\d+) bytes: .{0,160}?(\d+)-byte slab.{0,80}?\*/\s*struct flow \{`).FindSubmatch(text)
	if m == nil {
		t.Fatal("the comment at struct flow in usher.h does not say its size any more")
	}
	size, _ := strconv.Atoi(string(m[1]))
	slab, _ := strconv.Atoi(string(m[2]))
	if got := int(unsafe.Sizeof(bpf.SpliceFlow{})); got != size {
		t.Errorf("struct flow has %d bytes, usher.h promises %d", got, size)
	}
	// struct htab_elem, the key rounded up, the value; the allocator's own link before it.
	if got := 8 + 48 + int(unsafe.Sizeof(bpf.SpliceFlowKey{})+7)&^7 + size; got > slab {
		t.Errorf("an element of the flow map needs %d bytes, more than the slab of %d", got, slab)
	}
}

// TestElementFitsSlab asks the kernel what an element takes.
func TestElementFitsSlab(t *testing.T) {
	r := newRig(t, rigOptions{})
	memory := func() uint64 {
		info, err := r.Flows.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.Memlock()
		if !ok {
			t.Skip("the kernel does not tell a map's memory")
		}
		return n
	}
	const n = 1000
	empty := memory()
	for i := range uint16(n) {
		r.putFlow(t, bpf.SpliceFlowKey{LocalPort: i}, bpf.SpliceFlow{})
	}
	each := (memory() - empty) / n
	if each == 0 {
		t.Skip("the kernel does not count elements (before Linux 6.4)")
	}
	t.Logf("an element takes %d bytes", each)
	if each > 256 {
		t.Errorf("an element takes %d bytes, more than 256", each)
	}
}

// covers fails for every value of an enum of usher.h that no row has.
func covers(t *testing.T, enum string, has map[uint32]int) {
	t.Helper()
	for v, name := range enumNames(enum) {
		if has[v] == 0 {
			t.Errorf("%s has no row", name)
		}
		delete(has, v)
	}
	if len(has) > 0 {
		t.Error(fmt.Sprintf("rows with no value of enum %s: ", enum), has)
	}
}

// BenchmarkForward is the translation of one packet of a hot flow, with what the
// kernel's test run costs by itself. The flow translates to the same numbers, so
// that each turn finds the packet as the one before did.
func BenchmarkForward(b *testing.B) {
	r := newRig(b, rigOptions{})
	for _, layout := range []struct {
		name    string
		options []option
	}{
		{"timestamp", []option{nop(), nop(), ts(1000, 2000)}},
		{"timestamp and SACK", []option{nop(), nop(), ts(1000, 2000), nop(), nop(), sack(1, 2, 3, 4)}},
		{"none", nil},
	} {
		for _, prog := range []program{r.tc(), r.xdp()} {
			b.Run(layout.name+"/"+prog.name, func(b *testing.B) {
				s := newScene(0)
				s.p.options = layout.options
				s.lead(clientAddr[0], serviceAddr[0])
				s.flow.SeqAdd, s.flow.AckAdd, s.flow.TsAdd, s.flow.EcrAdd = 0, 0, 0, 0
				r.putFlow(b, s.key, s.flow)
				if err := r.Users.Put(bpf.SpliceUserKey{Hash: 42, Tag: 3}, &s.user); err != nil {
					b.Fatal(err)
				}
				code, each, err := prog.prog.Benchmark(s.p.frame(), b.N, b.ResetTimer)
				if err != nil || code != prog.redirect {
					b.Fatalf("answer %d, %v", code, err)
				}
				b.ReportMetric(float64(each.Nanoseconds()), "ns/op")
			})
		}
	}
}
