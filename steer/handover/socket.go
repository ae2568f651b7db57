package handover

import (
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Values of linux/tcp.h that x/sys does not name.
const (
	repairOn          = 1
	repairOffSilently = -1 // TCP_REPAIR_OFF_NO_WP: no window probe (4.19)
	queueReceive      = 1  // TCP_RECV_QUEUE
	queueSend         = 2  // TCP_SEND_QUEUE
	tcpIsMPTCP        = 43 // TCP_IS_MPTCP (6.0)
	tcpEstablished    = 1
	maxSeg            = 32767 // largest value of TCP_MAXSEG; loopback has more

	optTimestamps = 1 // TCPI_OPT_TIMESTAMPS
	optSACK       = 2 // TCPI_OPT_SACK
	optECN        = 8 // TCPI_OPT_ECN
)

// repairWindow is struct tcp_repair_window of linux/tcp.h.
type repairWindow struct {
	sndWl1, sndWnd, maxWindow, rcvWnd, rcvWup uint32
}

// frozen is what a socket in repair mode tells.
type frozen struct {
	sndNxt, rcvNxt uint32
	ts             uint32 // our timestamp clock on this leg, now
	window         repairWindow
	info           *unix.TCPInfo
}

// options is what both ends of a connection agreed on.
type options struct {
	timestamps, sack, ecn bool
	sndScale, rcvScale    uint8  // of the remote host's windows, and of ours
	sndMSS, advMSS        uint32 // what the remote host takes, and what we told it, in bytes without options
	mptcp                 bool
}

func optionsOf(fd int, ti *unix.TCPInfo) options {
	// snd_wscale and rcv_wscale are four bits each behind `options`; x/sys leaves them out.
	scales := (*[8]byte)(unsafe.Pointer(ti))[6]
	o := options{
		timestamps: ti.Options&optTimestamps != 0,
		sack:       ti.Options&optSACK != 0,
		ecn:        ti.Options&optECN != 0,
		sndScale:   scales & 15,
		rcvScale:   scales >> 4,
		sndMSS:     ti.Snd_mss,
		advMSS:     ti.Advmss,
	}
	if o.timestamps {
		o.sndMSS += 12 // tcpi_snd_mss is what is left for payload
	}
	if v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, tcpIsMPTCP); err == nil && v == 1 {
		o.mptcp = true
	}
	return o
}

// TupleOf returns the Tuple of a connection; an IPv4 address that a socket of [::] shows
// as ::ffff:a.b.c.d is IPv4.
func TupleOf(c *net.TCPConn) Tuple {
	end := func(a net.Addr) netip.AddrPort {
		p := a.(*net.TCPAddr).AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return Tuple{Remote: end(c.RemoteAddr()), Local: end(c.LocalAddr())}
}

// Options returns what to take out of a SYN towards a backend so that this
// backend's connection can agree with the client's, and the segment size to
// offer: what the client takes, in bytes; 0 when that is no restriction.
func Options(client *net.TCPConn) (Strip, int, error) {
	var strip Strip
	var mss int
	err := control(client, func(fd int) error {
		ti, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return fmt.Errorf("read TCP_INFO: %w", err)
		}
		o := optionsOf(fd, ti)
		if !o.timestamps {
			strip |= StripTimestamps
		}
		if !o.sack {
			strip |= StripSACK
		}
		if o.sndMSS <= maxSeg {
			mss = int(o.sndMSS)
		}
		return nil
	})
	return strip, mss, err
}

// mismatch names the first thing two legs do not agree on, or Spliced.
func mismatch(c, b options) Reason {
	switch {
	case c.mptcp || b.mptcp:
		return MPTCP
	case c.advMSS > maxSeg || b.advMSS > maxSeg:
		return Unobserved // only the loopback interface has such packets: the peer is on this host
	case c.timestamps != b.timestamps:
		return Timestamps
	case c.sack != b.sack:
		return SACK
	case c.advMSS > b.sndMSS || b.advMSS > c.sndMSS:
		return MSS
	}
	return Spliced
}

func control(c *net.TCPConn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func setRepair(fd, v int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, v); err != nil {
		return fmt.Errorf("set TCP_REPAIR to %d: %w", v, err)
	}
	return nil
}

// unrepair lets a frozen socket live again. The kernel forbids address reuse when
// repair ends, which would keep a listener from starting again: allow it anew.
func unrepair(fd int) {
	_ = setRepair(fd, repairOffSilently)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}

func empty(fd int) bool {
	in, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil || in != 0 {
		return false
	}
	out, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	return err == nil && out == 0
}

// readFrozen reads a socket in repair mode.
func readFrozen(fd int) (frozen, error) {
	var f frozen
	for _, q := range []struct {
		queue int
		to    *uint32
	}{{queueSend, &f.sndNxt}, {queueReceive, &f.rcvNxt}} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, q.queue); err != nil {
			return f, fmt.Errorf("set TCP_REPAIR_QUEUE: %w", err)
		}
		v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		if err != nil {
			return f, fmt.Errorf("read TCP_QUEUE_SEQ: %w", err)
		}
		*q.to = uint32(v)
	}
	ts, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP)
	if err != nil {
		return f, fmt.Errorf("read TCP_TIMESTAMP: %w", err)
	}
	f.ts = uint32(ts)
	size := uint32(unsafe.Sizeof(f.window))
	if _, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW,
		uintptr(unsafe.Pointer(&f.window)), uintptr(unsafe.Pointer(&size)), 0); e != 0 {
		return f, fmt.Errorf("read TCP_REPAIR_WINDOW: %w", e)
	}
	f.info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return f, fmt.Errorf("read TCP_INFO: %w", err)
	}
	return f, nil
}

// quietIn reports whether a frozen socket has received, read, relayed and
// acknowledged everything that the program let pass.
func (f frozen) quietIn(fd int, o Observed) bool {
	return f.info.State == tcpEstablished && empty(fd) &&
		f.rcvNxt == o.EndSeq && f.window.rcvWup == f.rcvNxt
}

// sockaddr makes the address that bind and connect want.
func sockaddr(a netip.AddrPort) (unix.Sockaddr, int) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}, unix.AF_INET6
}
