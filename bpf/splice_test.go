package bpf_test

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"usher/bpf"
)

const (
	verdictNotTCP        = bpf.SpliceVerdictVERDICT_NOT_TCP
	verdictNoFlow        = bpf.SpliceVerdictVERDICT_NO_FLOW
	verdictObserved      = bpf.SpliceVerdictVERDICT_OBSERVED
	verdictHeld          = bpf.SpliceVerdictVERDICT_HELD
	verdictHoldExpired   = bpf.SpliceVerdictVERDICT_HOLD_EXPIRED
	verdictForwarded     = bpf.SpliceVerdictVERDICT_FORWARDED
	verdictSYN           = bpf.SpliceVerdictVERDICT_SYN
	verdictAfterSYN      = bpf.SpliceVerdictVERDICT_AFTER_SYN
	verdictOutOfWindow   = bpf.SpliceVerdictVERDICT_OUT_OF_WINDOW
	verdictStopped       = bpf.SpliceVerdictVERDICT_STOPPED
	verdictNoUser        = bpf.SpliceVerdictVERDICT_NO_USER
	verdictOdd           = bpf.SpliceVerdictVERDICT_ODD
	verdictBadOptions    = bpf.SpliceVerdictVERDICT_BAD_OPTIONS
	verdictRewriteFailed = bpf.SpliceVerdictVERDICT_REWRITE_FAILED
)

// row is one packet: the good one of newScene, changed, and what is wanted.
type row struct {
	name   string
	family int    // 4, 6, or 0: both
	only   string // program "tc", "xdp", or "": both
	change func(*scene)
	result
}

func eventKinds(k ...bpf.SpliceEventKind) []bpf.SpliceEventKind { return k }

func number(n int) *int { return &n }

// window is how far a sequence number may be away, for a window scale.
func window(scale uint8) uint32 { return 65535<<scale + 65536 }

func allRows() []row {
	var all []row
	for _, part := range [][]row{forwardedRows, optionRows, refusedRows, observeRows, foreignRows} {
		all = append(all, part...)
	}
	return all
}

func TestSplice(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, row := range allRows() {
		for family, name := range []string{"ipv4", "ipv6"} {
			if row.family != 0 && row.family != 4+2*family {
				continue
			}
			for _, prog := range []program{r.tc(), r.xdp()} {
				if row.only != "" && row.only != prog.name {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", row.name, name, prog.name), func(t *testing.T) {
					s := newScene(family)
					if row.change != nil {
						row.change(&s)
					}
					s.play(t, r, prog, row.result)
				})
			}
		}
	}
}

// TestLearntHop: the other way to send gives the same packet.
func TestLearntHop(t *testing.T) {
	r := newRig(t, rigOptions{learntHop: true})
	for family := range 2 {
		newScene(family).play(t, r, r.tc(), result{verdict: verdictForwarded})
	}
}

// faultRows are what only a failing helper brings about.
var faultRows = []struct {
	row
	helper asm.BuiltinFunc
	answer int32
}{
	{row{name: "checksum cannot be written", only: "tc", result: result{verdict: verdictRewriteFailed}}, asm.FnL4CsumReplace, -14},
	{row{name: "event buffer is full", change: func(s *scene) { s.p.flags |= fin },
		result: result{verdict: verdictForwarded, after: func(f *bpf.SpliceFlow) { f.Flags = flagFIN }}}, asm.FnRingbufReserve, 0},
}

func TestFaults(t *testing.T) {
	for _, row := range faultRows {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, rigOptions{fault: row.helper, faultResult: row.answer})
			for family := range 2 {
				for _, prog := range []program{r.tc(), r.xdp()} {
					if row.only != "" && row.only != prog.name {
						continue
					}
					s := newScene(family)
					if row.change != nil {
						row.change(&s)
					}
					s.play(t, r, prog, row.result)
				}
			}
		})
	}
}

// TestVLANInMetadata: a tag that the interface has taken off the frame is beside it
// in the skb, and would be sent along. A program of the test puts it there.
func TestVLANInMetadata(t *testing.T) {
	r := newRig(t, rigOptions{})
	table, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for i, row := range []struct {
		prog   program
		scene  func(family int) scene
		tag    int32
		result result
	}{
		{r.tc(), newScene, 5, result{verdict: verdictNotTCP}},
		{r.tc(), newScene, 0xe000 | 5, result{verdict: verdictNotTCP}},
		{r.tc(), newScene, 0xe000, result{verdict: verdictForwarded}}, // a priority only
		{r.egress(), newEgressScene, 5, result{verdict: verdictEgress}},
		{r.egress(), newEgressScene, 0xe000, result{verdict: verdictEgressLearnt, after: learnt}},
	} {
		if err := table.Put(uint32(0), row.prog.prog); err != nil {
			t.Fatal(err)
		}
		row.prog.prog = tagger(t, table, row.tag)
		for family := range 2 {
			t.Run(fmt.Sprintf("%d/%s/%d", i, row.prog.name, family), func(t *testing.T) {
				row.scene(family).play(t, r, row.prog, row.result)
			})
		}
	}
}

// tagger is a program that puts a VLAN tag beside the frame and goes on with the
// first program of a table.
func tagger(t *testing.T, table *ebpf.Map, tag int32) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.Mov.Imm(asm.R2, int32(toNetwork(etherVLAN))),
			asm.Mov.Imm(asm.R3, tag),
			asm.FnSkbVlanPush.Call(),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, table.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 99), // not reached
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestEveryVerdictHasARow: a new way out of a program comes with a packet that takes it.
func TestEveryVerdictHasARow(t *testing.T) {
	has := map[uint32]int{}
	for _, row := range allRows() {
		has[uint32(row.verdict)]++
	}
	for _, row := range faultRows {
		has[uint32(row.verdict)]++
	}
	for _, row := range egressRows {
		has[uint32(row.verdict)]++
	}
	covers(t, "verdict", has)
}

// TestEveryEventHasARow: the same for what user space is told.
func TestEveryEventHasARow(t *testing.T) {
	has := map[uint32]int{}
	for _, row := range allRows() {
		for _, e := range row.events {
			has[uint32(e)]++
		}
	}
	covers(t, "event_kind", has)
}
