package bpf_test

import (
	"fmt"
	"testing"

	"usher/bpf"
)

const (
	verdictEgress         = bpf.SpliceVerdictVERDICT_EGRESS
	verdictEgressLearnt   = bpf.SpliceVerdictVERDICT_EGRESS_LEARNT
	verdictEgressStripped = bpf.SpliceVerdictVERDICT_EGRESS_STRIPPED

	stripTS   = uint8(bpf.SpliceFlowStripSTRIP_TS)
	stripSACK = uint8(bpf.SpliceFlowStripSTRIP_SACK)
)

func (r *rig) egress() program {
	return program{"egress", r.EgressTc, false, tcNext, tcShot, tcRedirect}
}

// newEgressScene is our socket's packet to the backend, on a leg that is observed.
func newEgressScene(family int) scene {
	s := newScene(family)
	s.key = flowKey(backendAddr[family], directorAddr[family])
	s.noBack = true
	s.p.src, s.p.sport = directorAddr[family].Addr(), directorAddr[family].Port()
	s.p.dst, s.p.dport = backendAddr[family].Addr(), backendAddr[family].Port()
	s.p.dmac, s.p.smac = backendMAC, innerMAC
	s.flow = bpf.SpliceFlow{State: observeState}
	return s
}

// The options of a SYN as Linux writes them.
func mss() option                { return option{kind: 2, body: []byte{5, 0xb4}} }
func sackOK() option             { return option{kind: 4, body: []byte{}} }
func wscale() option             { return option{kind: 3, body: []byte{7}} }
func linuxSYN() []option         { return []option{mss(), sackOK(), ts(1000, 0), nop(), wscale()} }
func linuxWithoutSACK() []option { return []option{mss(), nop(), nop(), ts(1000, 0), nop(), wscale()} }
func linuxWithoutTS() []option   { return []option{mss(), nop(), nop(), sackOK(), nop(), wscale()} }

func nops(n int) (o []option) {
	for range n {
		o = append(o, nop())
	}
	return o
}

// replaced makes the wanted packet one with these options.
func replaced(parts ...[]option) func(*packet) {
	return func(p *packet) {
		p.options = nil
		for _, o := range parts {
			p.options = append(p.options, o...)
		}
	}
}

func ourSYN(strip uint8, o []option) func(*scene) {
	return func(s *scene) { s.p.flags, s.p.payload, s.flow.Strip, s.p.options = syn, nil, strip, o }
}

func learnt(f *bpf.SpliceFlow) { f.Ifindex, f.Dmac, f.Smac = loIfindex, backendMAC, innerMAC }

func stripped(name string, change func(*scene), out func(*packet)) row {
	return row{name: name, change: change, result: result{verdict: verdictEgressStripped, after: learnt, out: out}}
}

func learns(name string, change func(*scene)) row {
	return row{name: name, change: change, result: result{verdict: verdictEgressLearnt, after: learnt}}
}

var (
	head = []option{mss()}
	tail = []option{nop(), wscale()}
)

var egressRows = []row{
	learns("data", nil),
	learns("the next hop has changed", func(s *scene) { s.flow.Ifindex, s.flow.Dmac, s.flow.Smac = 9, clientMAC, directorMAC }),
	learns("nothing new", func(s *scene) { learnt(&s.flow) }),
	learns("SYN with nothing to strip", ourSYN(0, linuxSYN())),
	learns("SYN ACK", func(s *scene) { ourSYN(stripTS|stripSACK, linuxSYN())(s); s.p.flags |= ack }),
	learns("data of a leg whose SYN was stripped", func(s *scene) { s.flow.Strip = stripTS }),
	stripped("TS", ourSYN(stripTS, linuxSYN()), replaced(head, []option{sackOK()}, nops(10), tail)),
	stripped("SACK", ourSYN(stripSACK, linuxSYN()), replaced(head, nops(2), []option{ts(1000, 0)}, tail)),
	stripped("TS and SACK", ourSYN(stripTS|stripSACK, linuxSYN()), replaced(head, nops(12), tail)),
	stripped("TS, host without SACK", ourSYN(stripTS, linuxWithoutSACK()), replaced(head, nops(12), tail)),
	stripped("SACK, host without SACK", ourSYN(stripSACK, linuxWithoutSACK()), nil),
	stripped("SACK, host without TS", ourSYN(stripSACK, linuxWithoutTS()), replaced(head, nops(4), tail)),
	stripped("TS, host without TS", ourSYN(stripTS, linuxWithoutTS()), nil),
	stripped("host with MSS alone", ourSYN(stripTS|stripSACK, head), nil),
	stripped("host with window scale alone", ourSYN(stripTS|stripSACK, []option{mss(), nop(), wscale()}), nil),
	stripped("what looks like TS does not fit", ourSYN(stripTS, []option{mss(), nop(), nop(), raw(8, 10)}), nil),
	stripped("what looks like TS reaches into the payload", func(s *scene) {
		ourSYN(stripTS, []option{mss(), nop(), nop(), raw(8, 10)})(s)
		s.p.payload = make([]byte, 20)
	}, nil),
	refused("no flow", verdictEgress, func(s *scene) { s.noFlow = true }),
	refused("hand-over in progress", verdictEgress, func(s *scene) { s.flow.State = holdState }),
	refused("spliced", verdictEgress, func(s *scene) { s.flow.State = forwardState }),
	refused("forwarded, not ours", verdictEgress, func(s *scene) { s.ctx.IngressIfindex = loIfindex; s.ctx.Ifindex = loIfindex }),
	refused("UDP", verdictEgress, func(s *scene) { s.p.wrongProtocol = protoUDP }),
	refused("ARP", verdictEgress, func(s *scene) { s.p.wrongEther = etherARP }),
	refused("VLAN", verdictEgress, func(s *scene) { s.p.wrongEther = etherVLAN }),
	{name: "IP options", family: 4, change: func(s *scene) { s.p.ipOptions = []byte{1, 1, 1, 0} }, result: result{verdict: verdictEgress}},
}

func TestEgress(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, row := range egressRows {
		for family, name := range []string{"ipv4", "ipv6"} {
			if row.family != 0 && row.family != 4+2*family {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", row.name, name), func(t *testing.T) {
				s := newEgressScene(family)
				if row.change != nil {
					row.change(&s)
				}
				s.play(t, r, r.egress(), row.result)
			})
		}
	}
}
