package bpf_test

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"

	"usher/bpf"
)

const (
	hopAsked = 0x5553 // HOP_ASKED of splice.bpf.c
	ms       = 1_000_000
)

// indexer is a program that puts a tc_index on a packet and goes on with the program
// under test; given the same packet again, it answers with the index that was left. The
// mark says which turn it is: it is nobody's business but the operator's.
func indexer(t *testing.T, p program, index int32) *ebpf.Program {
	t.Helper()
	const mark, tcIndex = 8, 44 // in struct __sk_buff
	table, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	if err := table.Put(uint32(0), p.prog); err != nil {
		t.Fatal(err)
	}
	x, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, mark, asm.Word),
			asm.JNE.Imm(asm.R2, 0, "again"),
			asm.Mov.Imm(asm.R2, 1),
			asm.StoreMem(asm.R1, mark, asm.R2, asm.Word),
			asm.Mov.Imm(asm.R2, index),
			asm.StoreMem(asm.R1, tcIndex, asm.R2, asm.Word),
			asm.LoadMapPtr(asm.R2, table.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 99), // not reached
			asm.Return(),
			asm.LoadMem(asm.R0, asm.R1, tcIndex, asm.Word).WithSymbol("again"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// twice gives an indexed packet to a program and returns its answer and the index it leaves.
func twice(t *testing.T, p program, index int32, frame []byte, ctx *skb, prepare func()) (answer, left uint32) {
	t.Helper()
	x := indexer(t, p, index)
	prepare()
	answer, _ = run(t, x, frame, ctx)
	prepare()
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Repeat: 2}
	if ctx != nil {
		o.Context = ctx
	}
	left, err := x.Run(&o)
	if err != nil {
		t.Fatal(err)
	}
	return answer, left
}

// TestHopChoice: the learnt next hop is used for what brings something new, soon after
// the packet before; the kernel is asked for the others, and its answer will be learnt.
func TestHopChoice(t *testing.T) {
	const asked = 98 // instead of what bpf_redirect_neigh answers
	idle := func(ns uint64, change func(*scene)) func(*scene) {
		return func(s *scene) {
			s.flow.LastSeen = monotonic() - ns
			if change != nil {
				change(s)
			}
		}
	}
	bare := func(ack uint32) func(*scene) {
		return func(s *scene) { s.p.payload, s.p.flags, s.p.ack = nil, 1<<4, ack }
	}
	for _, row := range []struct {
		name   string
		learnt bool // the programs are told not to ask
		index  int32
		change func(*scene)
		answer uint32
		left   uint32
	}{
		{"new data", false, 0, idle(0, nil), tcRedirect, 0},
		{"new data after a short while", false, 0, idle(200*ms, nil), tcRedirect, 0},
		{"new data after a pause", false, 0, idle(501*ms, nil), asked, hopAsked},
		{"new acknowledgement", false, 0, idle(0, bare(5001)), tcRedirect, 0},
		{"new acknowledgement after a pause", false, 0, idle(501*ms, bare(5001)), asked, hopAsked},
		{"duplicate acknowledgement", false, 0, idle(0, bare(5000)), asked, hopAsked},
		{"old acknowledgement", false, 0, idle(0, bare(4000)), asked, hopAsked},
		{"retransmission", false, 0, idle(0, func(s *scene) { s.p.seq -= uint32(len(s.p.payload)) }), asked, hopAsked},
		{"retransmission with new data", false, 0, idle(0, func(s *scene) { s.p.seq-- }), tcRedirect, 0},
		{"retransmission with a new acknowledgement", false, 0, idle(0, func(s *scene) { s.p.seq -= 1000; s.p.ack++ }), tcRedirect, 0},
		{"keepalive probe", false, 0, idle(0, func(s *scene) { s.p.seq--; s.p.payload = nil }), asked, hopAsked},
		{"FIN", false, 0, idle(0, func(s *scene) { s.p.flags |= fin; s.p.payload = nil }), tcRedirect, 0},
		{"somebody else's index", false, 7, idle(0, nil), asked, 7},
		{"somebody else's index after a pause", false, 7, idle(501*ms, nil), asked, 7},
		{"after a pause, never asking", true, 0, idle(501*ms, nil), tcRedirect, 0},
		{"retransmission, never asking", true, 0, idle(0, func(s *scene) { s.p.seq -= 1000 }), tcRedirect, 0},
	} {
		r := newRig(t, rigOptions{learntHop: row.learnt, fault: asm.FnRedirectNeigh, faultResult: asked})
		for family := range 2 {
			t.Run(fmt.Sprintf("%s/%d", row.name, family), func(t *testing.T) {
				s := newScene(family)
				row.change(&s)
				answer, left := twice(t, r.tc(), row.index, s.p.frame(), nil, func() {
					s := newScene(family)
					row.change(&s)
					r.putFlow(t, s.key, s.flow)
					r.putUser(t, bpf.SpliceUserKey{Hash: 42, Tag: 3}, 9)
				})
				if answer != row.answer || left != row.left {
					t.Errorf("answer %d, index %#x; want %d, %#x", answer, left, row.answer, row.left)
				}
			})
		}
	}
}

// hopScene is a packet that leaves for the backend, and its session.
type hopScene struct {
	p               packet
	index           int32
	ctx             skb
	client, backend *bpf.SpliceFlow // by whose packets they are for; nil: there is none
}

// TestHopLearntAgain: a packet for which the kernel was asked shows its flow the next hop.
func TestHopLearntAgain(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, row := range []struct {
		name   string
		change func(*hopScene)
		learns bool
		left   uint32
	}{
		{"another next hop", func(*hopScene) {}, true, 0},
		{"GSO", func(s *hopScene) {
			s.ctx.GSOSegs, s.ctx.GSOSize = 3, 1448
			s.p.payload = make([]byte, 3000)
		}, true, 0},
		{"the same", func(s *hopScene) { s.client.Dmac, s.client.Smac = backendMAC, innerMAC }, true, 0},
		{"not asked", func(s *hopScene) { s.index = 0 }, false, 0},
		{"somebody else's index", func(s *hopScene) { s.index = 7 }, false, 7},
		{"from a socket of this host", func(s *hopScene) { s.ctx.IngressIfindex = 0 }, false, hopAsked},
		{"on another interface", func(s *hopScene) { s.client.Ifindex = loIfindex + 1 }, false, 0},
		{"no flow of what comes back", func(s *hopScene) { s.backend = nil }, false, 0},
		{"no flow of the packet", func(s *hopScene) { s.client = nil }, false, 0},
		{"what comes back is held", func(s *hopScene) { s.backend.State = holdState }, false, 0},
		{"flow is held", func(s *hopScene) { s.client.State = holdState }, false, 0},
		{"flow is observed", func(s *hopScene) { s.client.State = observeState }, false, 0},
		{"not TCP", func(s *hopScene) { s.p.wrongProtocol = protoUDP }, false, 0},
		{"VLAN in the frame", func(s *hopScene) { s.p.wrongEther = etherVLAN }, false, 0},
	} {
		for family := range 2 {
			t.Run(fmt.Sprintf("%s/%d", row.name, family), func(t *testing.T) {
				r.clear(t)
				client, backend := keys(family)
				s := hopScene{
					p:     newEgressScene(family).p,
					index: hopAsked,
					ctx:   skb{IngressIfindex: loIfindex, Ifindex: loIfindex},
					client: &bpf.SpliceFlow{
						State: forwardState, Ifindex: loIfindex, Dmac: clientMAC, Smac: directorMAC,
						Saddr: backend.Local, Daddr: backend.Remote, Sport: backend.LocalPort, Dport: backend.RemotePort,
					},
					backend: &bpf.SpliceFlow{
						State: forwardState, Ifindex: loIfindex, Dmac: clientMAC, Smac: directorMAC,
						Saddr: client.Local, Daddr: client.Remote, Sport: client.LocalPort, Dport: client.RemotePort,
					},
				}
				row.change(&s)
				answer, left := twice(t, r.egress(), s.index, s.p.frame(), &s.ctx, func() {
					for key, f := range map[bpf.SpliceFlowKey]*bpf.SpliceFlow{client: s.client, backend: s.backend} {
						if f != nil {
							r.putFlow(t, key, *f)
						}
					}
				})
				if answer != tcNext || left != row.left {
					t.Errorf("answer %d, index %#x; want %d, %#x", int32(answer), left, -1, row.left)
				}
				if row.learns {
					s.client.Dmac, s.client.Smac = backendMAC, innerMAC
				}
				for key, want := range map[bpf.SpliceFlowKey]*bpf.SpliceFlow{client: s.client, backend: s.backend} {
					if d := cmp.Diff(want, r.flow(t, key)); d != "" {
						t.Errorf("flow (-want +got):\n%s", d)
					}
				}
			})
		}
	}
}
