package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"usher/bpf"
)

// TCP flags, as RFC 9293 numbers them.
const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
	urg
	ece
	cwr
)

const (
	etherIPv4, etherIPv6, etherVLAN, etherARP = 0x0800, 0x86dd, 0x8100, 0x0806

	protoTCP, protoUDP = 6, 17
)

var big = binary.BigEndian

// option is one TCP option; one without length (NOP, EOL) has a nil body.
// junk is what stands in the header without being an option.
type option struct {
	kind uint8
	body []byte
	junk []byte
}

func nop() option          { return option{kind: 1} }
func eol() option          { return option{kind: 0} }
func raw(b ...byte) option { return option{junk: b} }
func ts(val, echo uint32) option {
	return option{kind: 8, body: big.AppendUint32(big.AppendUint32(nil, val), echo)}
}
func sack(edges ...uint32) option {
	o := option{kind: 5, body: []byte{}}
	for _, e := range edges {
		o.body = big.AppendUint32(o.body, e)
	}
	return o
}

func (o option) bytes() []byte {
	switch {
	case o.junk != nil:
		return o.junk
	case o.body == nil:
		return []byte{o.kind}
	}
	return append([]byte{o.kind, uint8(len(o.body) + 2)}, o.body...)
}

// packet is a TCP packet in an Ethernet frame. Fields called `wrong…` replace,
// when they are set, what a correct packet has there.
type packet struct {
	dmac, smac    [6]byte
	src, dst      netip.Addr
	sport, dport  uint16
	tos           uint8  // traffic class
	label         uint32 // IPv6: flow label
	ttl           uint8  // hop limit
	id, fragment  uint16 // IPv4: identification, flags and offset
	ipOptions     []byte
	seq, ack      uint32
	flags         uint8
	window        uint16
	urgent        uint16
	options       []option
	payload       []byte
	trailer       []byte // Ethernet padding
	wrongEther    uint16
	wrongProtocol uint8
	wrongIHL      uint8 // in words
	wrongLength   *int  // of the IP packet (IPv6: of its payload)
	wrongDataOff  *int  // in words
	wrongChecksum uint16
	cut           int // bytes of the frame that are there; 0: all
}

func (p *packet) v4() bool { return p.src.Is4() }

func (p *packet) optionBytes() []byte {
	var b []byte
	for _, o := range p.options {
		b = append(b, o.bytes()...)
	}
	if len(b)%4 != 0 {
		panic("options do not fill their words")
	}
	return b
}

// tcp returns the TCP header and the payload, with a checksum from scratch.
func (p *packet) tcp() []byte {
	options := p.optionBytes()
	words := 5 + len(options)/4
	if p.wrongDataOff != nil {
		words = *p.wrongDataOff
	}
	b := big.AppendUint16(nil, p.sport)
	b = big.AppendUint16(b, p.dport)
	b = big.AppendUint32(b, p.seq)
	b = big.AppendUint32(b, p.ack)
	b = append(b, uint8(words)<<4, p.flags)
	b = big.AppendUint16(b, p.window)
	b = append(b, 0, 0) // checksum
	b = big.AppendUint16(b, p.urgent)
	b = append(append(b, options...), p.payload...)

	pseudo := append(p.src.AsSlice(), p.dst.AsSlice()...)
	pseudo = big.AppendUint32(pseudo, uint32(len(b)))
	pseudo = big.AppendUint32(pseudo, protoTCP)
	big.PutUint16(b[16:], ^onesSum(pseudo, b)+p.wrongChecksum)
	return b
}

// onesSum is the one's complement sum of big-endian words; an odd part is padded with zero.
func onesSum(parts ...[]byte) uint16 {
	var sum uint64
	for _, b := range parts {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint64(big.Uint16(b))
		}
		if len(b) == 1 {
			sum += uint64(b[0]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

func (p *packet) frame() []byte {
	segment := p.tcp()
	b := append(slices.Clone(p.dmac[:]), p.smac[:]...)
	ether := uint16(etherIPv6)
	if p.v4() {
		ether = etherIPv4
	}
	if p.wrongEther != 0 {
		ether = p.wrongEther
	}
	b = big.AppendUint16(b, ether)
	if p.wrongEther == etherVLAN {
		b = append(b, 0, 5)
		b = big.AppendUint16(b, etherIPv4)
	}
	b = append(append(b, p.ipHeader(len(segment))...), segment...)
	b = append(b, p.trailer...)
	if p.cut != 0 {
		b = b[:p.cut]
	}
	return b
}

func (p *packet) ipHeader(segment int) []byte {
	protocol := uint8(protoTCP)
	if p.wrongProtocol != 0 {
		protocol = p.wrongProtocol
	}
	if p.v4() {
		length := 20 + len(p.ipOptions) + segment
		if p.wrongLength != nil {
			length = *p.wrongLength
		}
		words := uint8(5 + len(p.ipOptions)/4)
		if p.wrongIHL != 0 {
			words = p.wrongIHL
		}
		b := []byte{4<<4 | words, p.tos}
		b = big.AppendUint16(b, uint16(length))
		b = big.AppendUint16(b, p.id)
		b = big.AppendUint16(b, p.fragment)
		b = append(b, p.ttl, protocol, 0, 0)
		b = append(append(b, p.src.AsSlice()...), p.dst.AsSlice()...)
		b = append(b, p.ipOptions...)
		big.PutUint16(b[10:], ^onesSum(b))
		return b
	}
	length := segment
	if p.wrongLength != nil {
		length = *p.wrongLength
	}
	b := big.AppendUint32(nil, 6<<28|uint32(p.tos)<<20|p.label)
	b = big.AppendUint16(b, uint16(length))
	b = append(b, protocol, p.ttl)
	return append(append(b, p.src.AsSlice()...), p.dst.AsSlice()...)
}

func (p *packet) tcpOffset() int {
	if p.v4() {
		return 14 + 20
	}
	return 14 + 40
}

// translated is what must leave for p under a flow: the definition that the
// programs are held against. It works on fields, not on bytes, and frame()
// computes every checksum anew.
func translated(p packet, f *bpf.SpliceFlow) packet {
	noECN := f.Flags&uint8(bpf.SpliceFlowFlagFLAG_NO_ECN) != 0
	p.dmac, p.smac = f.Dmac, f.Smac
	p.src, p.dst = netip.AddrFrom16(f.Saddr).Unmap(), netip.AddrFrom16(f.Daddr).Unmap()
	p.sport, p.dport = fromNetwork(f.Sport), fromNetwork(f.Dport)
	p.ttl = 64
	p.seq += f.SeqAdd
	if p.flags&ack != 0 {
		p.ack += f.AckAdd
	}
	if noECN {
		p.flags &^= ece | cwr
		p.tos &^= 3
	}
	if f.InScale != f.OutScale {
		p.window = uint16(min(uint64(p.window)<<f.InScale>>f.OutScale, 65535))
	}
	p.options = slices.Clone(p.options)
	for i, o := range p.options {
		if o.kind == 0 && o.junk == nil {
			break // the end of the list
		}
		word := func(at int) uint32 { return big.Uint32(o.body[at:]) }
		switch {
		case o.kind == 8 && len(o.body) == 8:
			echo := word(4)
			if echo != 0 {
				echo += f.EcrAdd
			}
			p.options[i] = ts(word(0)+f.TsAdd, echo)
		case o.kind == 5:
			var edges []uint32
			for at := 0; at+4 <= len(o.body); at += 4 {
				edges = append(edges, word(at)+f.AckAdd)
			}
			rest := o.body[len(o.body)/4*4:]
			p.options[i] = sack(edges...)
			p.options[i].body = append(p.options[i].body, rest...)
		}
	}
	return p
}

// fromNetwork reads a number whose bytes in memory are in network order.
func fromNetwork(v uint16) uint16 {
	return big.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}

func toNetwork(v uint16) uint16 {
	return binary.NativeEndian.Uint16(big.AppendUint16(nil, v))
}
