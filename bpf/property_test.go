package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"usher/bpf"
)

// TestAnyPacket: any valid packet of a spliced session, with any layout of options,
// leaves as translated() says, by both programs.
func TestAnyPacket(t *testing.T) {
	r := newRig(t, rigOptions{})
	check := func(t *rapid.T) {
		s := anyScene(t)
		if err := r.Users.Put(bpf.SpliceUserKey{Hash: 42, Tag: 3}, &s.user); err != nil {
			t.Fatal(err)
		}
		want := translated(s.p, &s.flow)
		books := s.flow
		kept(&books, &s.p, 1)
		if s.p.flags&fin != 0 {
			books.Flags |= flagFIN
		}
		for _, prog := range []program{r.tc(), r.xdp()} {
			r.putFlow(t, s.key, s.flow)
			code, out := run(t, prog.prog, s.p.frame(), nil)
			if code != prog.redirect {
				t.Fatalf("%s: answer %d, want %d", prog.name, int32(code), prog.redirect)
			}
			if d := cmp.Diff(want.frame(), out); d != "" {
				t.Fatalf("%s: packet out (-want +got):\n%s", prog.name, d)
			}
			got := r.flow(t, s.key)
			books.LastSeen = got.LastSeen
			if d := cmp.Diff(books, *got); d != "" {
				t.Fatalf("%s: flow (-want +got):\n%s", prog.name, d)
			}
		}
		if err := r.Flows.Delete(s.key); err != nil {
			t.Fatal(err)
		}
		r.told(t)
	}
	for range 10 { // a check is a hundred packets
		rapid.Check(t, check)
	}
}

func anyScene(t *rapid.T) scene {
	u8, u16, u32 := rapid.Uint8(), rapid.Uint16(), rapid.Uint32()
	family := rapid.IntRange(0, 1).Draw(t, "family")
	end := func(name string) netip.AddrPort {
		n := []int{4, 16}[family]
		a, _ := netip.AddrFromSlice(rapid.SliceOfN(u8, n, n).Draw(t, name))
		return netip.AddrPortFrom(a, u16.Draw(t, name+" port"))
	}
	s := newScene(family)
	remote, local := end("remote"), end("local")
	if family == 1 && (remote.Addr().Is4In6() || local.Addr().Is4In6()) {
		t.Skip("no address on a wire")
	}
	s.p.src, s.p.sport, s.p.dst, s.p.dport = remote.Addr(), remote.Port(), local.Addr(), local.Port()
	s.key = flowKey(remote, local)
	s.lead(end("from"), end("to"))

	f := &s.flow
	f.SeqAdd, f.AckAdd = u32.Draw(t, "seq_add"), u32.Draw(t, "ack_add")
	f.TsAdd, f.EcrAdd = u32.Draw(t, "ts_add"), u32.Draw(t, "ecr_add")
	scale := rapid.Uint8Range(0, 14)
	f.InScale, f.OutScale, f.WindowScale = scale.Draw(t, "in_scale"), scale.Draw(t, "out_scale"), scale.Draw(t, "window_scale")
	f.EndSeq, f.MaxAck = u32.Draw(t, "end_seq"), u32.Draw(t, "max_ack")
	f.Flags = rapid.SampledFrom([]uint8{0, flagNoECN, flagFIN, flagSYN, flagTS | flagSeen}).Draw(t, "flags")

	p := &s.p
	near := func(name string, at uint32, scale uint8) uint32 {
		w := int64(window(scale))
		return at + uint32(rapid.Int64Range(-w, w).Draw(t, name))
	}
	p.seq, p.ack = near("seq", f.EndSeq, f.WindowScale), near("ack", f.MaxAck, max(f.InScale, f.OutScale))
	f.Deadline = uint64(p.seq + 1) // syn_next: not this packet
	p.flags = u8.Draw(t, "tcp flags") &^ (syn | rst)
	p.tos, p.ttl, p.window, p.urgent = u8.Draw(t, "tos"), u8.Draw(t, "ttl"), u16.Draw(t, "window"), u16.Draw(t, "urgent")
	p.id, p.fragment = u16.Draw(t, "id"), rapid.SampledFrom([]uint16{0, 0x4000}).Draw(t, "fragment")
	p.label = rapid.Uint32Range(0, 1<<20-1).Draw(t, "label")
	p.payload = rapid.SliceOfN(u8, 0, 60).Draw(t, "payload")
	p.trailer = rapid.SliceOfN(u8, 0, 6).Draw(t, "trailer")
	p.options = anyOptions(t)
	return s
}

// anyOptions fills up to 40 bytes with options of all kinds at all offsets.
func anyOptions(t *rapid.T) []option {
	u8, u32 := rapid.Uint8(), rapid.Uint32()
	var list []option
	size := 0
	for range rapid.IntRange(0, 12).Draw(t, "options") {
		var o option
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0, 1:
			o = nop()
		case 2:
			o = ts(u32.Draw(t, "tsval"), rapid.OneOf(u32, rapid.Just(uint32(0))).Draw(t, "tsecr"))
		case 3:
			n := 2 * rapid.IntRange(1, 4).Draw(t, "blocks")
			o = sack(rapid.SliceOfN(u32, n, n).Draw(t, "edges")...)
		case 4:
			o = option{kind: u8.Filter(func(k uint8) bool { return k > 8 }).Draw(t, "unknown"), body: rapid.SliceOfN(u8, 0, 18).Draw(t, "body")}
			if o.body == nil {
				o.body = []byte{}
			}
		case 5: // known kinds of unknown lengths
			o = option{kind: rapid.SampledFrom([]uint8{2, 3, 8}).Draw(t, "known"), body: rapid.SliceOfN(u8, 0, 7).Draw(t, "body")}
			if o.body == nil {
				o.body = []byte{}
			}
		}
		if n := len(o.bytes()); size+n <= 40 {
			list, size = append(list, o), size+n
		}
	}
	missing := (4 - size%4) % 4
	if missing > 0 && rapid.Bool().Draw(t, "pad with EOL") {
		list, missing = append(list, eol()), missing-1
		if junk := rapid.SliceOfN(u8, missing, missing).Draw(t, "junk"); missing > 0 {
			list = append(list, raw(junk...))
		}
		return list
	}
	return append(list, nops(missing)...)
}
