package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"usher/bpf"
)

// flag bits as the type that they have in a flow.
const (
	flagSeen    = uint8(bpf.SpliceFlowFlagFLAG_SEEN)
	flagFIN     = uint8(bpf.SpliceFlowFlagFLAG_FIN)
	flagRST     = uint8(bpf.SpliceFlowFlagFLAG_RST)
	flagSYN     = uint8(bpf.SpliceFlowFlagFLAG_SYN)
	flagOdd     = uint8(bpf.SpliceFlowFlagFLAG_ODD)
	flagStopped = uint8(bpf.SpliceFlowFlagFLAG_STOPPED)
	flagNoECN   = uint8(bpf.SpliceFlowFlagFLAG_NO_ECN)
	flagTS      = uint8(bpf.SpliceFlowFlagFLAG_TS)
)

// The session of the tests, IPv4 and IPv6: a client's connection to the service
// address and the director's to the backend.
var (
	ap           = netip.MustParseAddrPort
	clientAddr   = [2]netip.AddrPort{ap("192.0.2.10:40000"), ap("[2001:db8:1::10]:40000")}
	serviceAddr  = [2]netip.AddrPort{ap("198.51.100.1:143"), ap("[2001:db8:2::1]:143")}
	directorAddr = [2]netip.AddrPort{ap("10.0.0.1:50123"), ap("[fd00::1]:50123")}
	backendAddr  = [2]netip.AddrPort{ap("10.0.0.9:10143"), ap("[fd00::9]:10143")}

	clientMAC   = [6]byte{2, 0, 0, 0, 0, 0x10}
	directorMAC = [6]byte{2, 0, 0, 0, 0, 0x01}
	innerMAC    = [6]byte{2, 0, 0, 0, 0, 0x02}
	backendMAC  = [6]byte{2, 0, 0, 0, 0, 0x09}
)

const loIfindex = 1 // in every namespace: where the packets of BPF_PROG_RUN seem to be

func flowKey(remote, local netip.AddrPort) bpf.SpliceFlowKey {
	return bpf.SpliceFlowKey{
		Remote: remote.Addr().As16(), RemotePort: toNetwork(remote.Port()),
		Local: local.Addr().As16(), LocalPort: toNetwork(local.Port()),
	}
}

// keys returns the keys of the session's flows.
func keys(family int) (client, backend bpf.SpliceFlowKey) {
	return flowKey(clientAddr[family], serviceAddr[family]), flowKey(backendAddr[family], directorAddr[family])
}

// scene is what a program finds: a packet from the client and the maps.
type scene struct {
	p              packet
	key            bpf.SpliceFlowKey
	flow           bpf.SpliceFlow // of the packet
	back           bpf.SpliceFlow // of the other direction
	user           bpf.SpliceUser
	noFlow, noBack bool
	noUser         bool
	ctx            skb // tc only
}

// newScene is a good packet, next in order, on a flow that is being forwarded.
func newScene(family int) scene {
	s := scene{
		p: packet{
			dmac: directorMAC, smac: clientMAC,
			src: clientAddr[family].Addr(), sport: clientAddr[family].Port(),
			dst: serviceAddr[family].Addr(), dport: serviceAddr[family].Port(),
			tos: 0x28, label: 0x12345, ttl: 57, id: 0x1234, fragment: 0x4000,
			seq: 0xffff_f000, ack: 5000, flags: ack | psh, window: 501,
			options: []option{nop(), nop(), ts(1000, 2000)},
			payload: []byte("a1 NOOP\r\n"), // odd length
		},
		flow: bpf.SpliceFlow{
			State: forwardState, Ifindex: 11, Dmac: backendMAC, Smac: innerMAC,
			SeqAdd: 0x1234_5678, AckAdd: 0xfedc_ba98, TsAdd: 0xffff_fff0, EcrAdd: 77_777,
			InScale: 7, OutScale: 7, WindowScale: 7,
			EndSeq: 0xffff_f000, MaxAck: 5000, Tsval: 900, Window: 64000,
			UserHash: 42, UserTag: 3, Epoch: 9, Name: 1, Protocol: 1,
			Since: 1, LastSeen: 2, Packets: 5, Bytes: 1000,
		},
		back: bpf.SpliceFlow{State: forwardState, UserHash: 42, UserTag: 3, Epoch: 9},
		user: bpf.SpliceUser{Epoch: 9, Flags: uint32(bpf.SpliceUserFlagUSER_ACTIVE), LastSeen: 3},
	}
	s.key, _ = keys(family)
	s.back.MaxAck = s.flow.EndSeq + s.flow.SeqAdd
	s.back.AckAdd = -s.flow.SeqAdd
	s.lead(directorAddr[family], backendAddr[family])
	s.user.Host = backendAddr[family].Addr().As16()
	return s
}

func (s *scene) family() int {
	if s.p.v4() {
		return 0
	}
	return 1
}

// lead sets where the flow's packets go to, with the checksum differences that user
// space computes.
func (s *scene) lead(from, to netip.AddrPort) {
	f := &s.flow
	f.Saddr, f.Daddr = from.Addr().As16(), to.Addr().As16()
	f.Sport, f.Dport = toNetwork(from.Port()), toNetwork(to.Port())
	old, new := s.p, s.p
	new.src, new.dst = from.Addr(), to.Addr()
	text := func(p *packet) []byte { return append(p.src.AsSlice(), p.dst.AsSlice()...) }
	ports := func(a, b uint16) []byte { return big.AppendUint16(big.AppendUint16(nil, a), b) }
	f.AddrDiff = onesDiff(text(&old), text(&new))
	f.PortDiff = onesDiff(ports(s.p.sport, s.p.dport), ports(from.Port(), to.Port()))
}

// observing makes the flow one whose session is in user space. Nothing was seen yet.
func (s *scene) observing() {
	s.flow = bpf.SpliceFlow{State: observeState, Ifindex: 11, Dmac: clientMAC, Smac: directorMAC}
}

// seen is observing, after some packets.
func (s *scene) seen(endSeq, tsval uint32) {
	s.observing()
	s.flow.Flags = flagSeen | flagTS
	s.flow.EndSeq, s.flow.Tsval = endSeq, tsval
}

// holding is seen, with a hand-over in progress whose deadline is after the given time from now.
func (s *scene) holding(ns int64) {
	s.seen(s.p.seq, 900)
	s.flow.State = holdState
	s.flow.Deadline = monotonic() + uint64(ns)
}

// kept is what a forwarded packet leaves in its flow: by fields, as translated.
func kept(f *bpf.SpliceFlow, p *packet, segments uint64) {
	end := p.seq + uint32(len(p.payload))
	if p.flags&fin != 0 {
		end++
	}
	if int32(end-f.EndSeq) > 0 {
		f.EndSeq = end
	}
	if p.flags&ack != 0 && int32(p.ack-f.MaxAck) >= 0 {
		f.MaxAck, f.Window = p.ack, uint32(p.window)<<f.InScale
	}
	for _, o := range p.options {
		if o.kind == 0 && o.junk == nil {
			break
		}
		if o.kind == 8 && len(o.body) == 8 {
			f.Tsval = big.Uint32(o.body)
		}
	}
	f.Packets += segments
	f.Bytes += uint64(len(p.payload))
}

// result is what is wanted of a program in a scene.
type result struct {
	verdict bpf.SpliceVerdict
	events  []bpf.SpliceEventKind
	after   func(*bpf.SpliceFlow) // what else changes in the flow
	out     func(*packet)         // what else changes in the packet
}

// play runs one program in one scene and compares everything it could have changed.
func (s scene) play(t *testing.T, r *rig, prog program, want result) {
	t.Helper()
	r.clear(t)
	key := s.key
	_, backKey := keys(s.family())
	if !s.noFlow {
		r.putFlow(t, key, s.flow)
	}
	if !s.noBack {
		r.putFlow(t, backKey, s.back)
	}
	userKey := bpf.SpliceUserKey{Hash: 42, Tag: 3}
	if !s.noUser {
		if err := r.Users.Put(userKey, &s.user); err != nil {
			t.Fatal(err)
		}
	}
	var ctx *skb
	segments := uint64(1)
	if s.ctx != (skb{}) {
		ctx = &s.ctx
		segments = max(1, uint64(s.ctx.GSOSegs))
	}
	frame, before, begin := s.p.frame(), r.counters(t), monotonic()
	code, out := run(t, prog.prog, frame, ctx)
	end := monotonic()
	r.counted(t, before, want.verdict, len(frame))

	wantPacket, wantCode := s.p, prog.drop
	flow, user := s.flow, s.user
	touched := func(last uint64) bool { return last >= begin && last <= end }
	switch want.verdict {
	case verdictForwarded:
		wantPacket, wantCode = translated(s.p, &s.flow), prog.redirect
		kept(&flow, &s.p, segments)
	case verdictNotTCP, verdictNoFlow, verdictObserved, verdictHoldExpired, verdictSYN, verdictAfterSYN,
		verdictEgress, verdictEgressLearnt, verdictEgressStripped:
		wantCode = prog.pass
	}
	if code != wantCode {
		t.Errorf("answer %d, want %d", int32(code), int32(wantCode))
	}
	if want.out != nil {
		want.out(&wantPacket)
	}
	if want.verdict == verdictRewriteFailed {
		kept(&flow, &s.p, segments) // too late to undo, and the packet is lost
	} else if d := cmp.Diff(wantPacket.frame(), out); d != "" {
		t.Errorf("packet out (-want +got), in was %x:\n%s", frame, d)
	}

	if want.verdict == verdictSYN {
		flow.Deadline = flow.Deadline>>32<<32 | uint64(s.p.seq+1) // syn_next
	}
	if want.after != nil {
		want.after(&flow)
	}
	if got := r.flow(t, key); s.noFlow != (got == nil) {
		t.Errorf("flow is there: %v", got != nil)
	} else if got != nil {
		if flow.Packets != s.flow.Packets {
			if !touched(got.LastSeen) {
				t.Errorf("last_seen of the flow is %d, want between %d and %d", got.LastSeen, begin, end)
			}
			flow.LastSeen = got.LastSeen
		}
		if d := cmp.Diff(flow, *got); d != "" {
			t.Errorf("flow (-want +got):\n%s", d)
		}
	}
	if got := r.flow(t, backKey); !s.noBack && *got != s.back {
		t.Errorf("flow of the other direction has changed:\n%s", cmp.Diff(s.back, *got))
	}
	if !s.noUser {
		var got bpf.SpliceUser
		if err := r.Users.Lookup(userKey, &got); err != nil {
			t.Fatal(err)
		}
		switch want.verdict {
		case verdictForwarded, verdictBadOptions, verdictRewriteFailed:
			if !touched(got.LastSeen) {
				t.Errorf("last_seen of the user is %d, want between %d and %d", got.LastSeen, begin, end)
			}
			user.LastSeen = got.LastSeen
		}
		if got != user {
			t.Errorf("user (-want +got):\n%s", cmp.Diff(user, got))
		}
	}
	var events []bpf.SpliceEventKind
	for _, e := range r.told(t) {
		if e.Key != key {
			t.Errorf("event of flow %v, want %v", e.Key, key)
		}
		events = append(events, bpf.SpliceEventKind(e.Kind))
	}
	if d := cmp.Diff(want.events, events); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}
