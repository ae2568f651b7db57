package wire

import (
	"net/netip"
	"strconv"

	"usher/director"
)

// The minor versions from which on a line has its present form (ring.md section 11).
const (
	minorHostState = 6 // state and name in HOST
	minorUserTime  = 9 // timestamp in USER, and U
)

// Append writes VERSION <TAB> name <TAB> major <TAB> minor.
func (l *Version) Append(b []byte, _ Peer) []byte {
	b = appendText(append(b, "VERSION\t"...), l.Name)
	b = strconv.AppendInt(append(b, '\t'), int64(l.Major), 10)
	b = strconv.AppendInt(append(b, '\t'), int64(l.Minor), 10)
	return append(b, '\n')
}

// Append writes usher= to everybody, since nobody knows yet whom it is talking to.
func (l *Me) Append(b []byte, _ Peer) []byte {
	b = appendAddrPort(append(b, "ME"...), l.Addr)
	b = appendTime(b, l.Time)
	if l.Usher != 0 {
		b = strconv.AppendUint(append(b, "\tusher="...), l.Usher, 10)
	}
	return append(b, '\n')
}

// Append writes DIRECTOR <TAB> ip <TAB> port.
func (l *Director) Append(b []byte, _ Peer) []byte {
	return append(appendAddrPort(append(b, "DIRECTOR"...), l.Addr), '\n')
}

// Append writes DIRECTOR-REMOVE <TAB> ip <TAB> port.
func (l *DirectorRemove) Append(b []byte, _ Peer) []byte {
	return append(appendAddrPort(append(b, "DIRECTOR-REMOVE"...), l.Addr), '\n')
}

// Append writes CONNECT <TAB> ip <TAB> port.
func (l *Connect) Append(b []byte, _ Peer) []byte {
	return append(appendAddrPort(append(b, "CONNECT"...), l.Addr), '\n')
}

// Append writes HOST-HAND-START <TAB> 0 or 1.
func (l *HandStart) Append(b []byte, _ Peer) []byte {
	return append(appendFlag(append(b, "HOST-HAND-START"...), l.Handshaked), '\n')
}

// Append writes HOST-HAND-END <TAB> 0 or 1.
func (l *HandEnd) Append(b []byte, _ Peer) []byte {
	return append(appendFlag(append(b, "HOST-HAND-END"...), l.Handshaked), '\n')
}

// Append writes HOST without an origin.
func (l *HandHost) Append(b []byte, to Peer) []byte {
	return append(appendHost(append(b, "HOST"...), l.HostUpdate, to), '\n')
}

// Append writes U, or USER with a time for peers before minor 9. The mark of a weak user is the fourth field, which
// is there but empty if an order time follows.
func (l *HandUser) Append(b []byte, to Peer) []byte {
	if to.Minor < minorUserTime {
		b = append(b, "USER"...)
	} else {
		b = append(b, 'U')
	}
	b = appendUint32(b, l.Hash)
	b = appendAddr(b, l.Host)
	b = appendTime(b, l.Refreshed)
	ordered := l.Ordered != 0 && to.Usher && to.Minor >= minorUserTime
	if l.Weak {
		b = append(b, "\tw"...)
	} else if ordered {
		b = append(b, '\t')
	}
	if ordered {
		b = appendTime(b, l.Ordered)
	}
	return append(b, '\n')
}

// Append writes USER. Before minor 9 it has no time, and the receiver takes its own.
func (l *User) Append(b []byte, to Peer) []byte {
	b = append(b, "USER"...)
	b = appendUint32(b, l.Hash)
	b = appendAddr(b, l.Host)
	ordered := l.Ordered != 0 && to.Usher
	if to.Minor >= minorUserTime && (l.Refreshed != 0 || ordered) {
		b = appendTime(b, l.Refreshed)
		if ordered {
			b = appendTime(b, l.Ordered)
		}
	}
	return append(b, '\n')
}

// Append writes USER-KILLED <TAB> hash.
func (l *UserKilled) Append(b []byte, _ Peer) []byte {
	return append(appendUint32(append(b, "USER-KILLED"...), l.Hash), '\n')
}

// Append writes the command of the message, its origin, and its arguments.
func (l *Told) Append(b []byte, to Peer) []byte {
	switch m := l.Message.(type) {
	case director.HostUpdate:
		b = appendHost(appendOrigin(append(b, "HOST"...), l.Origin), m, to)
	case director.HostGone:
		b = appendAddr(appendOrigin(append(b, "HOST-REMOVE"...), l.Origin), m.Addr)
	case director.HostForget:
		b = appendAddr(appendOrigin(append(b, "HOST-FLUSH"...), l.Origin), m.Addr)
	case director.UserWeak:
		b = appendAddr(appendUint32(appendOrigin(append(b, "USER-WEAK"...), l.Origin), m.Hash), m.Host)
	case director.UserMove:
		b = appendAddr(appendUint32(appendOrigin(append(b, "USER-MOVE"...), l.Origin), m.Hash), m.Host)
		if m.Ordered != 0 && to.Usher { // Dovecot insists on the exact number of arguments
			b = appendTime(b, m.Ordered)
		}
	case director.UserKick:
		b = append(appendOrigin(append(b, "USER-KICK"...), l.Origin), '\t')
		b = appendText(b, m.User)
	case director.UserKickAlt:
		b = append(appendOrigin(append(b, "USER-KICK-ALT"...), l.Origin), '\t')
		b = append(appendText(b, m.Field), '\t')
		b = appendText(b, m.Value)
	case director.UserKickHash:
		b = appendAddr(appendUint32(appendOrigin(append(b, "USER-KICK-HASH"...), l.Origin), m.Hash), m.Except)
	case director.UserKilledEverywhere:
		b = appendUint32(appendOrigin(append(b, "USER-KILLED-EVERYWHERE"...), l.Origin), m.Hash)
	default:
		panic("wire: a message that has no origin") // by the caller: peers cannot cause it
	}
	return append(b, '\n')
}

// Append writes USHER-HEALTH, origin, host, and up or down.
func (l *Health) Append(b []byte, _ Peer) []byte {
	b = appendAddr(appendOrigin(append(b, "USHER-HEALTH"...), l.Origin), l.Host)
	if l.Up {
		return append(b, "\tup\n"...)
	}
	return append(b, "\tdown\n"...)
}

// Append writes SYNC. Peers of minor 0 know neither version, time nor hash.
func (l *Sync) Append(b []byte, to Peer) []byte {
	b = appendAddrPort(append(b, "SYNC"...), l.Director)
	b = appendUint32(b, l.Seq)
	if to.Minor > 0 {
		b = strconv.AppendInt(append(b, '\t'), int64(l.Minor), 10)
		b = appendTime(b, l.Time)
		b = appendUint32(b, l.HostsHash)
	}
	return append(b, '\n')
}

// Append writes PING <TAB> time <TAB> queued bytes.
func (l *Ping) Append(b []byte, _ Peer) []byte {
	b = appendTime(append(b, "PING"...), l.Time)
	return append(strconv.AppendUint(append(b, '\t'), l.Queued, 10), '\n')
}

// Append writes PONG <TAB> time <TAB> queued bytes.
func (l *Pong) Append(b []byte, _ Peer) []byte {
	b = appendTime(append(b, "PONG"...), l.Time)
	return append(strconv.AppendUint(append(b, '\t'), l.Queued, 10), '\n')
}

// Append writes OPTIONS and what is set.
func (l *Options) Append(b []byte, _ Peer) []byte {
	b = append(b, "OPTIONS"...)
	if l.ConsistentHashing {
		b = append(b, "\tconsistent-hashing"...)
	}
	return append(b, '\n')
}

// Append writes DONE.
func (l *Done) Append(b []byte, _ Peer) []byte { return append(b, "DONE\n"...) }

// Append writes QUIT <TAB> reason.
func (l *Quit) Append(b []byte, _ Peer) []byte {
	return append(appendText(append(b, "QUIT\t"...), l.Reason), '\n')
}

func appendOrigin(b []byte, o Origin) []byte {
	return appendUint32(appendAddrPort(b, o.Director), o.Seq)
}

// appendHost writes a host as far as the peer's version goes.
func appendHost(b []byte, h director.HostUpdate, to Peer) []byte {
	b = appendAddr(b, h.Host.Addr)
	b = strconv.AppendInt(append(b, '\t'), int64(h.Host.Weight), 10)
	if to.Minor < minorHostState {
		if h.Host.Tag != "" {
			b = appendText(append(b, '\t'), h.Host.Tag)
		}
		return b
	}
	b = appendText(append(b, '\t'), h.Host.Tag)
	if h.Up {
		b = append(b, "\tU"...)
	} else {
		b = append(b, "\tD"...)
	}
	b = strconv.AppendInt(b, h.Changed, 10)
	b = appendText(append(b, '\t'), h.Host.Name)
	if to.Usher && (h.Ordered != 0 || h.Health) {
		b = appendTime(b, h.Ordered)
		if h.Health {
			b = append(b, "\th"...)
		}
	}
	return b
}

func appendAddr(b []byte, addr netip.Addr) []byte { return addr.AppendTo(append(b, '\t')) }

func appendAddrPort(b []byte, addr netip.AddrPort) []byte {
	return strconv.AppendUint(append(appendAddr(b, addr.Addr()), '\t'), uint64(addr.Port()), 10)
}

func appendUint32(b []byte, n uint32) []byte {
	return strconv.AppendUint(append(b, '\t'), uint64(n), 10)
}

func appendTime(b []byte, t int64) []byte { return strconv.AppendInt(append(b, '\t'), t, 10) }

func appendFlag(b []byte, set bool) []byte {
	if set {
		return append(b, "\t1"...)
	}
	return append(b, "\t0"...)
}
