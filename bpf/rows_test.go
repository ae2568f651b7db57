package bpf_test

import (
	"math"

	"slices"

	"usher/bpf"
)

var (
	finEvent     = eventKinds(bpf.SpliceEventKindEVENT_FIN)
	rstEvent     = eventKinds(bpf.SpliceEventKindEVENT_RST)
	synEvent     = eventKinds(bpf.SpliceEventKindEVENT_SYN)
	stoppedEvent = eventKinds(bpf.SpliceEventKindEVENT_STOPPED)
)

func flagged(flag uint8) func(*bpf.SpliceFlow) {
	return func(f *bpf.SpliceFlow) { f.Flags |= flag }
}

// options is a change to the options of the packet.
func options(o ...option) func(*scene) {
	return func(s *scene) { s.p.options = o }
}

func forwarded(name string, change func(*scene)) row {
	return row{name: name, change: change, result: result{verdict: verdictForwarded}}
}

// forwardedRows are packets of a spliced session. The wanted packet is translated().
var forwardedRows = []row{
	forwarded("good", nil),
	forwarded("bare ACK", func(s *scene) { s.p.payload, s.p.flags = nil, ack }),
	forwarded("bare ACK in a padded frame", func(s *scene) {
		s.p.payload, s.p.options, s.p.trailer = nil, nil, make([]byte, 6)
	}),
	forwarded("padding that is not zero", func(s *scene) { s.p.trailer = []byte("garbage") }),
	forwarded("even payload", func(s *scene) { s.p.payload = make([]byte, 1448) }),
	forwarded("odd payload", func(s *scene) { s.p.payload = []byte{0xff, 1, 2} }),
	forwarded("urgent", func(s *scene) { s.p.flags |= urg; s.p.urgent = 3 }),
	forwarded("no ACK flag: the field is not a number", func(s *scene) { s.p.flags = psh; s.p.ack = 0xdead_beef }),
	forwarded("fragmentation allowed", func(s *scene) { s.p.fragment = 0 }),
	forwarded("TTL 1", func(s *scene) { s.p.ttl = 1 }),
	forwarded("TTL 64", func(s *scene) { s.p.ttl = 64 }),
	forwarded("TTL 255", func(s *scene) { s.p.ttl = 255 }),
	forwarded("wrong checksum stays wrong", func(s *scene) { s.p.wrongChecksum = 1 }),
	forwarded("translation of nothing", func(s *scene) {
		s.flow.SeqAdd, s.flow.AckAdd, s.flow.TsAdd, s.flow.EcrAdd = 0, 0, 0, 0
		s.lead(clientAddr[s.family()], serviceAddr[s.family()])
	}),
	forwarded("difference of zero written as all ones", func(s *scene) {
		s.lead(clientAddr[s.family()], serviceAddr[s.family()])
		s.flow.AddrDiff, s.flow.PortDiff = 0, 0
	}),
	forwarded("retransmission moves nothing back", func(s *scene) { s.p.seq -= 5000; s.p.ack -= 3000 }),
	forwarded("end wraps around 2^32", func(s *scene) {
		s.p.seq = 0xffff_fff8
		s.flow.EndSeq = s.p.seq
		s.flow.SeqAdd = 7
	}),
	forwarded("ack wraps around 2^32", func(s *scene) { s.flow.MaxAck = 0xffff_fff0; s.p.ack = 16 }),
	forwarded("lowest seq", func(s *scene) { s.p.seq = s.flow.EndSeq - window(7) }),
	forwarded("highest seq", func(s *scene) { s.p.seq = s.flow.EndSeq + window(7) }),
	forwarded("lowest ack", func(s *scene) { s.p.ack = s.flow.MaxAck - window(7) }),
	forwarded("highest ack", func(s *scene) { s.p.ack = s.flow.MaxAck + window(7) }),
	forwarded("highest ack by the scale of the other side", func(s *scene) {
		s.flow.InScale, s.flow.OutScale = 2, 9
		s.p.ack = s.flow.MaxAck + window(9)
	}),
	forwarded("highest seq, scale 14", func(s *scene) { s.flow.WindowScale = 14; s.p.seq = s.flow.EndSeq + window(14) }),
	forwarded("keepalive probe", func(s *scene) { s.p.seq--; s.p.payload = []byte{0} }),
	forwarded("window scaled up", func(s *scene) { s.flow.InScale, s.flow.OutScale = 9, 3 }),
	forwarded("window scaled down", func(s *scene) { s.flow.InScale, s.flow.OutScale = 2, 9; s.p.window = 0xffff }),
	forwarded("window is capped", func(s *scene) { s.flow.InScale, s.flow.OutScale = 14, 0; s.p.window = 65535 }),
	forwarded("window just not capped", func(s *scene) { s.flow.InScale, s.flow.OutScale = 1, 0; s.p.window = 32767 }),
	forwarded("window rounded down to zero", func(s *scene) { s.flow.InScale, s.flow.OutScale = 0, 7; s.p.window = 127 }),
	forwarded("zero window", func(s *scene) { s.flow.InScale, s.flow.OutScale = 3, 7; s.p.window = 0 }),
	forwarded("largest window unscaled", func(s *scene) { s.flow.InScale, s.flow.OutScale = 14, 14; s.p.window = 65535 }),
	forwarded("ECN of both legs", func(s *scene) { s.p.tos |= 3; s.p.flags |= ece | cwr }),
	forwarded("ECT(0) of one leg", func(s *scene) { s.flow.Flags = flagNoECN; s.p.tos |= 2; s.p.flags |= ece }),
	forwarded("ECT(1) of one leg", func(s *scene) { s.flow.Flags = flagNoECN; s.p.tos |= 1; s.p.flags |= cwr }),
	forwarded("CE of one leg", func(s *scene) { s.flow.Flags = flagNoECN; s.p.tos |= 3; s.p.flags |= ece | cwr }),
	forwarded("no ECN to clear", func(s *scene) { s.flow.Flags = flagNoECN }),
	{name: "FIN", change: func(s *scene) { s.p.flags |= fin },
		result: result{verdict: verdictForwarded, events: finEvent, after: flagged(flagFIN)}},
	forwarded("FIN again", func(s *scene) { s.p.flags |= fin; s.flow.Flags = flagFIN }),
	{name: "exact RST", change: func(s *scene) { s.p.flags, s.p.payload = rst|ack, nil },
		result: result{verdict: verdictForwarded, events: rstEvent, after: flagged(flagRST)}},
	{name: "exact RST without ACK", change: func(s *scene) { s.p.flags, s.p.payload, s.p.ack = rst, nil, 0 },
		result: result{verdict: verdictForwarded, events: rstEvent, after: flagged(flagRST)}},
	{name: "exact RST with FIN", change: func(s *scene) { s.p.flags, s.p.payload = rst|fin|ack, nil },
		result: result{verdict: verdictForwarded, events: rstEvent, after: flagged(flagRST)}},
	{name: "RST behind data that is not acknowledged", change: func(s *scene) {
		s.p.flags, s.p.payload = rst, nil
		s.p.seq += 1000
		s.flow.EndSeq = s.p.seq
	}, result: result{verdict: verdictForwarded, events: rstEvent, after: flagged(flagRST)}},
	forwarded("exact RST again", func(s *scene) { s.p.flags = rst; s.flow.Flags = flagRST }),
	forwarded("RST one too high is not believed", func(s *scene) { s.p.flags, s.p.payload = rst, nil; s.p.seq++ }),
	forwarded("RST one too low is not believed", func(s *scene) { s.p.flags, s.p.payload = rst, nil; s.p.seq-- }),
	forwarded("RST with no other direction", func(s *scene) { s.p.flags, s.p.payload, s.noBack = rst, nil, true }),
	forwarded("in window after a SYN", func(s *scene) { s.flow.Flags = flagSYN }),
	{name: "GRO", only: "tc", change: func(s *scene) { s.ctx.GSOSegs, s.ctx.GSOSize = 3, 1448; s.p.payload = make([]byte, 3000) },
		result: result{verdict: verdictForwarded}},
	{name: "BIG TCP has no length", only: "tc", change: func(s *scene) {
		s.ctx.GSOSegs, s.ctx.GSOSize = 3, 1448
		s.p.payload = make([]byte, 3000)
		s.p.wrongLength = number(0)
	}, result: result{verdict: verdictForwarded}},
}

// optionRows are layouts of TCP options.
var optionRows = []row{
	forwarded("no options", options()),
	forwarded("TS without echo", options(nop(), nop(), ts(1000, 0))),
	forwarded("TS wraps", options(nop(), nop(), ts(0xffff_ffff, 0xffff_ffff))),
	forwarded("TS first", options(ts(1000, 2000), nop(), nop())),
	forwarded("TS first, without echo", options(ts(1000, 0), nop(), nop())),
	forwarded("TS at an odd offset", options(nop(), ts(1000, 2000), nop())),
	forwarded("TS at an odd offset of a word", options(nop(), nop(), nop(), ts(1000, 2000), nop(), nop(), nop())),
	forwarded("TS, EOL padding", options(ts(1000, 2000), eol(), eol())),
	forwarded("two TS", options(nop(), nop(), ts(1000, 2000), nop(), nop(), ts(3000, 4000))),
	forwarded("TS of another length", options(option{kind: 8, body: make([]byte, 6)})),
	forwarded("SACK of 1", options(nop(), nop(), sack(1, 2))),
	forwarded("SACK of 2", options(nop(), nop(), sack(1, 2, 0xffff_fff0, 3))),
	forwarded("SACK of 3", options(nop(), nop(), sack(1, 2, 3, 4, 5, 6))),
	forwarded("SACK of 4", options(nop(), nop(), sack(1, 2, 3, 4, 5, 6, 7, 8))),
	forwarded("SACK of 4 first", options(sack(1, 2, 3, 4, 5, 6, 7, 8), nop(), nop())),
	forwarded("SACK of 4 at an odd offset", options(nop(), sack(1, 2, 3, 4, 5, 6, 7, 8), nop())),
	forwarded("TS and SACK of 1", options(nop(), nop(), ts(1000, 2000), nop(), nop(), sack(1, 2))),
	forwarded("TS and SACK of 2", options(nop(), nop(), ts(1000, 2000), nop(), nop(), sack(1, 2, 3, 4))),
	forwarded("TS and SACK of 3", options(nop(), nop(), ts(1000, 2000), nop(), nop(), sack(1, 2, 3, 4, 5, 6))),
	forwarded("TS and SACK of 3, packed", options(ts(1000, 2000), sack(1, 2, 3, 4, 5, 6), eol(), eol(), eol(), eol())),
	forwarded("SACK and TS at odd offsets", options(nop(), sack(1, 2), nop(), ts(1000, 2000), nop(), nop(), nop(), nop(), nop(), nop())),
	forwarded("SACK with half a block", options(option{kind: 5, body: []byte{0, 0, 0, 9, 0xab, 0xcd}})),
	forwarded("SACK without blocks", options(sack(), nop(), nop())),
	forwarded("only NOPs", options(nop(), nop(), nop(), nop())),
	forwarded("40 NOPs", options(slices.Repeat([]option{nop()}, 40)...)),
	forwarded("EOL alone", options(eol(), eol(), eol(), eol())),
	forwarded("what looks like TS after EOL", options(eol(), nop(), ts(1000, 2000))),
	forwarded("what is malformed after EOL", options(eol(), raw(8, 0, 0))),
	forwarded("TS before EOL and junk", options(nop(), ts(1000, 2000), eol(), raw(5, 0, 0xff, 0xff))),
	forwarded("unknown kind", options(option{kind: 254, body: []byte{1, 2, 3, 4, 5}}, nop())),
	forwarded("unknown kind without body", options(option{kind: 99, body: []byte{}}, nop(), nop())),
	forwarded("unknown kind of 40 bytes", options(option{kind: 253, body: slices.Repeat([]byte{0xee}, 38)})),
	forwarded("MSS and window scale on no SYN", options(option{kind: 2, body: []byte{5, 0xb4}}, nop(), option{kind: 3, body: []byte{7}})),
	forwarded("MD5 and TS", options(option{kind: 19, body: make([]byte, 16)}, ts(1000, 2000))),
}

func refused(name string, v bpf.SpliceVerdict, change func(*scene)) row {
	return row{name: name, change: change, result: result{verdict: v}}
}

// refusedRows are packets of a spliced session that are not sent on.
var refusedRows = []row{
	{name: "SYN", change: func(s *scene) { s.p.flags, s.p.payload = syn, nil },
		result: result{verdict: verdictSYN, events: synEvent, after: flagged(flagSYN)}},
	{name: "SYN ACK", change: func(s *scene) { s.p.flags, s.p.payload = syn|ack, nil },
		result: result{verdict: verdictSYN, events: synEvent, after: flagged(flagSYN)}},
	{name: "SYN out of window, of a user that was moved", change: func(s *scene) { s.p.flags = syn; s.p.seq += 1 << 31; s.user.Epoch++ },
		result: result{verdict: verdictSYN, events: synEvent, after: flagged(flagSYN)}},
	refused("SYN again", verdictSYN, func(s *scene) { s.p.flags = syn; s.flow.Flags = flagSYN }),
	refused("seq out of window after a SYN", verdictAfterSYN, func(s *scene) { s.flow.Flags = flagSYN; s.p.seq += 1 << 31 }),
	refused("near the old numbers after a SYN, behind a FIN", verdictAfterSYN, func(s *scene) { s.flow.Flags = flagSYN | flagFIN }),
	refused("near the old numbers after a SYN, behind a RST", verdictAfterSYN, func(s *scene) { s.flow.Flags = flagSYN | flagRST }),
	refused("the new connection's first packet, near the old numbers", verdictAfterSYN, func(s *scene) {
		s.flow.Flags, s.flow.Deadline = flagSYN, 7<<32|uint64(s.p.seq)
	}),
	refused("ack out of window after a SYN", verdictAfterSYN, func(s *scene) { s.flow.Flags = flagSYN; s.p.ack += 1 << 31 }),
	refused("seq too low", verdictOutOfWindow, func(s *scene) { s.p.seq = s.flow.EndSeq - window(7) - 1 }),
	refused("seq too high", verdictOutOfWindow, func(s *scene) { s.p.seq = s.flow.EndSeq + window(7) + 1 }),
	refused("seq too high, scale 14", verdictOutOfWindow, func(s *scene) { s.flow.WindowScale = 14; s.p.seq = s.flow.EndSeq + window(14) + 1 }),
	refused("seq too high, scale 0", verdictOutOfWindow, func(s *scene) { s.flow.WindowScale = 0; s.p.seq = s.flow.EndSeq + window(0) + 1 }),
	refused("ack too low", verdictOutOfWindow, func(s *scene) { s.p.ack = s.flow.MaxAck - window(7) - 1 }),
	refused("ack too high", verdictOutOfWindow, func(s *scene) { s.p.ack = s.flow.MaxAck + window(7) + 1 }),
	refused("ack too high by both scales", verdictOutOfWindow, func(s *scene) {
		s.flow.InScale, s.flow.OutScale = 9, 2
		s.p.ack = s.flow.MaxAck + window(9) + 1
	}),
	refused("RST out of window", verdictOutOfWindow, func(s *scene) { s.p.flags = rst; s.p.seq += 1 << 31 }),
	refused("FIN out of window", verdictOutOfWindow, func(s *scene) { s.p.flags |= fin; s.p.seq += 1 << 31 }),
	{name: "user was moved", change: func(s *scene) { s.user.Epoch++ },
		result: result{verdict: verdictStopped, events: stoppedEvent, after: flagged(flagStopped)}},
	{name: "epoch of the future", change: func(s *scene) { s.flow.Epoch++ },
		result: result{verdict: verdictStopped, events: stoppedEvent, after: flagged(flagStopped)}},
	refused("user was moved, told before", verdictStopped, func(s *scene) { s.user.Epoch++; s.flow.Flags = flagStopped }),
	refused("user is gone", verdictNoUser, func(s *scene) { s.noUser = true }),
	refused("user of another tag", verdictNoUser, func(s *scene) { s.flow.UserTag++ }),
	{name: "IP options", family: 4, change: func(s *scene) { s.p.ipOptions = []byte{1, 1, 1, 0} }, result: result{verdict: verdictOdd}},
	{name: "40 bytes of IP options", family: 4, change: func(s *scene) { s.p.ipOptions = make([]byte, 40) }, result: result{verdict: verdictOdd}},
	{name: "first fragment", family: 4, change: func(s *scene) { s.p.fragment = 0x2000 }, result: result{verdict: verdictOdd}},
	refused("option of length 0", verdictBadOptions, options(raw(8, 0), nop(), nop())),
	refused("option of length 1", verdictBadOptions, options(nop(), raw(254, 1), nop())),
	refused("option without length", verdictBadOptions, options(nop(), nop(), nop(), raw(8))),
	refused("option over the end by one", verdictBadOptions, options(raw(254, 5, 0, 0))),
	refused("TS over the end", verdictBadOptions, options(nop(), nop(), nop(), raw(8, 10, 0, 0, 0, 0, 0, 0, 0))),
	refused("SACK over the end", verdictBadOptions, options(sack(1, 2), raw(5, 10))),
	refused("SACK of length 255", verdictBadOptions, options(raw(5, 255, 0, 0))),
	refused("malformed behind a good TS", verdictBadOptions, options(ts(1000, 2000), raw(8, 1))),
	refused("malformed at byte 39", verdictBadOptions, options(append(slices.Repeat([]option{nop()}, 39), raw(8))...)),
}

func recorded(name string, change func(*scene), after func(*bpf.SpliceFlow)) row {
	return row{name: "observe/" + name, change: change, result: result{verdict: verdictObserved, after: after}}
}

// book is what a packet is recorded as.
func book(flags uint8, endSeq, tsval uint32) func(*bpf.SpliceFlow) {
	return func(f *bpf.SpliceFlow) { f.Flags, f.EndSeq, f.Tsval = flags, endSeq, tsval }
}

const firstSeq, firstEnd = 0xffff_f000, 0xffff_f009 // of newScene's packet

// observeRows are packets of a session in user space.
var observeRows = []row{
	recorded("first packet", (*scene).observing, book(flagSeen|flagTS, firstEnd, 1000)),
	recorded("first packet, end in the lower half", func(s *scene) { s.observing(); s.p.seq = 1 << 31 }, book(flagSeen|flagTS, 1<<31+9, 1000)),
	recorded("next packet", func(s *scene) { s.seen(firstSeq, 900) }, book(flagSeen|flagTS, firstEnd, 1000)),
	recorded("SYN counts one", func(s *scene) { s.observing(); s.p.flags, s.p.payload = syn, nil }, book(flagSeen|flagTS, firstSeq+1, 1000)),
	recorded("SYN ACK counts one", func(s *scene) { s.observing(); s.p.flags, s.p.payload = syn|ack, nil }, book(flagSeen|flagTS, firstSeq+1, 1000)),
	recorded("FIN counts one", func(s *scene) { s.seen(firstSeq, 900); s.p.flags |= fin }, book(flagSeen|flagTS, firstEnd+1, 1000)),
	recorded("bare ACK", func(s *scene) { s.seen(firstSeq, 900); s.p.payload = nil }, book(flagSeen|flagTS, firstSeq, 1000)),
	recorded("retransmission", func(s *scene) { s.seen(firstSeq, 900); s.p.seq -= 100 }, book(flagSeen|flagTS, firstSeq, 1000)),
	recorded("end wraps around 2^32", func(s *scene) { s.p.seq = 0xffff_fffc; s.seen(s.p.seq, 900) }, book(flagSeen|flagTS, 5, 1000)),
	recorded("old end after the wrap", func(s *scene) { s.seen(5, 900); s.p.seq = 0xffff_fff0 }, book(flagSeen|flagTS, 5, 1000)),
	recorded("RST", func(s *scene) { s.seen(firstSeq, 900); s.p.flags, s.p.payload = rst, nil }, book(flagSeen|flagTS|flagRST, firstSeq, 1000)),
	{name: "observe/RST in HOLD", change: func(s *scene) {
		s.seen(firstSeq, 900)
		s.flow.State, s.flow.Deadline = holdState, math.MaxUint64
		s.p.flags, s.p.payload = rst, nil
	}, result: result{verdict: verdictObserved, after: func(f *bpf.SpliceFlow) { f.Flags |= flagRST }}},
	recorded("no TS", func(s *scene) { s.observing(); s.p.options = nil }, book(flagSeen, firstEnd, 0)),
	recorded("TS at an odd offset", func(s *scene) { s.observing(); s.p.options = []option{nop(), ts(1000, 0), nop()} }, book(flagSeen|flagTS, firstEnd, 1000)),
	recorded("TS behind SACK", func(s *scene) {
		s.observing()
		s.p.options = []option{sack(1, 2), ts(1000, 0)}
	}, book(flagSeen|flagTS, firstEnd, 1000)),
	recorded("old TS", func(s *scene) { s.seen(firstSeq, 1001) }, book(flagSeen|flagTS, firstEnd, 1001)),
	recorded("TS wraps around 2^32", func(s *scene) { s.seen(firstSeq, 0xffff_fff0) }, book(flagSeen|flagTS, firstEnd, 1000)),
	recorded("malformed options", func(s *scene) {
		s.observing()
		s.p.options = []option{ts(1000, 0), raw(8, 1)}
	}, book(flagSeen, firstEnd, 0)),
	{name: "observe/IP options", family: 4, change: func(s *scene) { s.observing(); s.p.ipOptions = []byte{1, 1, 1, 0} },
		result: result{verdict: verdictObserved, after: flagged(flagOdd)}},
	{name: "observe/first fragment", family: 4, change: func(s *scene) { s.seen(firstSeq, 900); s.p.fragment = 0x2000 },
		result: result{verdict: verdictObserved, after: flagged(flagOdd)}},
	recorded("a user that is gone does not matter", func(s *scene) { s.observing(); s.noUser = true }, book(flagSeen|flagTS, firstEnd, 1000)),
	refused("hold/in time", verdictHeld, func(s *scene) { s.holding(1e12) }),
	refused("hold/in time, SYN", verdictHeld, func(s *scene) { s.holding(1e12); s.p.flags = syn }),
	refused("hold/in time, first packet", verdictHeld, func(s *scene) { s.holding(1e12); s.flow.Flags = 0 }),
	{name: "hold/in time, IP options", family: 4, change: func(s *scene) { s.holding(1e12); s.p.ipOptions = []byte{1, 1, 1, 0} },
		result: result{verdict: verdictHeld}},
	{name: "hold/too late", change: func(s *scene) { s.holding(-1) },
		result: result{verdict: verdictHoldExpired, after: book(flagSeen|flagTS, firstEnd, 1000)}},
	{name: "hold/too late, IP options", family: 4, change: func(s *scene) { s.holding(-1); s.p.ipOptions = []byte{1, 1, 1, 0} },
		result: result{verdict: verdictHoldExpired, after: flagged(flagOdd)}},
}

// foreignRows are frames that are nobody's, or not TCP, or broken: the stack gets them.
var foreignRows = []row{
	refused("no flow", verdictNoFlow, func(s *scene) { s.noFlow = true }),
	refused("another port", verdictNoFlow, func(s *scene) { s.p.sport++; s.noFlow = false }),
	refused("direction reversed", verdictNoFlow, func(s *scene) {
		s.p.src, s.p.dst, s.p.sport, s.p.dport = s.p.dst, s.p.src, s.p.dport, s.p.sport
	}),
	{name: "IP options of nobody", family: 4, change: func(s *scene) { s.p.ipOptions = []byte{1, 1, 1, 0}; s.noFlow = true },
		result: result{verdict: verdictNoFlow}},
	refused("UDP", verdictNotTCP, func(s *scene) { s.p.wrongProtocol = protoUDP }),
	refused("ARP", verdictNotTCP, func(s *scene) { s.p.wrongEther = etherARP }),
	refused("VLAN", verdictNotTCP, func(s *scene) { s.p.wrongEther = etherVLAN }),
	// BPF_PROG_RUN of tc programs refuses frames that are too short for their own ethertype.
	{name: "frame of 15 bytes", only: "xdp", change: func(s *scene) { s.p.cut = 15 }, result: result{verdict: verdictNotTCP}},
	{name: "IP header cut", only: "xdp", change: func(s *scene) { s.p.cut = 33 }, result: result{verdict: verdictNotTCP}},
	refused("frame of 15 bytes, ARP", verdictNotTCP, func(s *scene) { s.p.wrongEther, s.p.cut = etherARP, 15 }),
	refused("IP header alone", verdictNotTCP, func(s *scene) { s.p.cut = s.p.tcpOffset() }),
	refused("TCP header cut", verdictNotTCP, func(s *scene) { s.p.cut = s.p.tcpOffset() + 19 }),
	refused("TCP options cut", verdictNotTCP, func(s *scene) { s.p.cut = s.p.tcpOffset() + 31 }),
	refused("payload cut", verdictNotTCP, func(s *scene) { s.p.cut = s.p.tcpOffset() + 32 + 8 }),
	refused("data offset 0", verdictNotTCP, func(s *scene) { s.p.wrongDataOff = number(0) }),
	refused("data offset 4", verdictNotTCP, func(s *scene) { s.p.wrongDataOff = number(4) }),
	refused("data offset over the end", verdictNotTCP, func(s *scene) { s.p.wrongDataOff = number(15); s.p.payload = make([]byte, 27) }),
	refused("IP length 0", verdictNotTCP, func(s *scene) { s.p.wrongLength = number(0) }),
	refused("IP length less than its header", verdictNotTCP, func(s *scene) { s.p.wrongLength = number(10) }),
	{name: "IP length without TCP options", family: 4, change: func(s *scene) { s.p.wrongLength = number(51) }, result: result{verdict: verdictNotTCP}},
	refused("IP length more than the frame", verdictNotTCP, func(s *scene) { s.p.wrongLength = number(200) }),
	refused("IP length 65535", verdictNotTCP, func(s *scene) { s.p.wrongLength = number(65535) }),
	{name: "later fragment", family: 4, change: func(s *scene) { s.p.fragment = 0x2000 | 100 }, result: result{verdict: verdictNotTCP}},
	{name: "last fragment", family: 4, change: func(s *scene) { s.p.fragment = 100 }, result: result{verdict: verdictNotTCP}},
	{name: "IP header length 4", family: 4, change: func(s *scene) { s.p.wrongIHL = 4 }, result: result{verdict: verdictNotTCP}},
	{name: "IP options over the end", family: 4, change: func(s *scene) { s.p.ipOptions = make([]byte, 40); s.p.cut = 14 + 60 + 3 },
		result: result{verdict: verdictNotTCP}},
	{name: "IPv6 fragment", family: 6, change: func(s *scene) { s.p.wrongProtocol = 44 }, result: result{verdict: verdictNotTCP}},
	{name: "IPv6 extension header", family: 6, change: func(s *scene) { s.p.wrongProtocol = 60 }, result: result{verdict: verdictNotTCP}},
}
