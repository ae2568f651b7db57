package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Duration is a time span, written "15m", "2s", "1h30m" or "5ms".
type Duration time.Duration

// UnmarshalText refuses negative spans: no key has a use for one.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is no time span, write %q, %q or %q", text, "15m", "30s", "1h30m")
	}
	*d = Duration(v)
	return nil
}

// Std is the span as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return shortDuration(time.Duration(d)) }

func (*Duration) example() string { return "15m" }

// shortDuration leaves out the zeros of "15m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Size is a number of bytes, written "512K", "10M" or "1G" (powers of 1024), or plain "4096".
type Size int64

// UnmarshalText also takes Dovecot's spelling, "10 MB".
func (s *Size) UnmarshalText(text []byte) error {
	bad := fmt.Errorf("%q is no size, write %q, %q or %q", text, "512K", "10M", "1G")
	number := strings.TrimSuffix(strings.ToUpper(strings.TrimSpace(string(text))), "B")
	shift := 0
	if n := len(number); n > 0 {
		if i := strings.IndexByte("KMGT", number[n-1]); i >= 0 {
			number, shift = number[:n-1], 10*(i+1)
		}
	}
	v, err := strconv.ParseUint(strings.TrimSpace(number), 10, 63)
	if err != nil || v<<shift>>shift != v || int64(v<<shift) < 0 {
		return bad
	}
	*s = Size(v << shift)
	return nil
}

func (*Size) example() string { return "10M" }

// Network is an address range, written "10.0.0.0/8" or, for one address, "10.0.0.1".
type Network struct{ netip.Prefix }

func (n *Network) UnmarshalText(text []byte) error {
	s := string(text)
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		n.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		return nil
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("%q is no network, write %q or %q", s, "10.0.0.0/8", "fd00::/64")
	}
	if prefix != prefix.Masked() {
		return fmt.Errorf("%q has bits behind its mask, write %q", s, prefix.Masked().String())
	}
	n.Prefix = prefix
	return nil
}

func (*Network) example() string { return "10.0.0.0/8" }

// Listen is where a listener listens: an address and port, or the name of a socket that systemd
// hands over.
type Listen struct {
	netip.AddrPort
	Systemd string // name of the socket unit's FileDescriptorName; AddrPort is not valid then
}

func (l *Listen) UnmarshalText(text []byte) error {
	s := string(text)
	if name, ok := strings.CutPrefix(s, "systemd:"); ok {
		if name == "" || strings.ContainsAny(name, ": \t") {
			return fmt.Errorf("%q names no socket, write %q", s, "systemd:imap")
		}
		*l = Listen{Systemd: name}
		return nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return fmt.Errorf("%q is no address with a port, write %q, %q or %q", s, "[::]:143", "10.1.0.2:143", "systemd:imap")
	}
	*l = Listen{AddrPort: ap}
	return nil
}

func (l Listen) String() string {
	if l.Systemd != "" {
		return "systemd:" + l.Systemd
	}
	return l.AddrPort.String()
}

func (*Listen) example() string { return "[::]:143" }

// covers says whether nothing can listen on m when something listens on l.
func (l Listen) covers(m Listen) bool {
	if l.Systemd != "" || m.Systemd != "" {
		return l.Systemd == m.Systemd
	}
	// Port 0 lets the kernel choose a free one.
	if l.Port() != m.Port() || l.Port() == 0 {
		return false
	}
	a, b := l.Addr().Unmap(), m.Addr().Unmap()
	// "[::]" takes the IPv4 connections as well (bindv6only is 0 for Go's listeners).
	return a == b || a.IsUnspecified() && (a.Is6() || b.Is4())
}

// RingServer is a member of the ring: "10.1.0.2", "10.1.0.3:9090", "[fd00::3]:9090",
// "dir.example" (config.md section 2).
type RingServer struct {
	Host string // an address without brackets, or a name
	Port uint16 // 0: the port of ring_listen
}

func (r *RingServer) UnmarshalText(text []byte) error {
	s := string(text)
	bad := fmt.Errorf("%q is no director, write %q, %q, %q or %q", s, "10.1.0.2", "10.1.0.3:9090", "[fd00::3]:9090", "dir.example")
	if addr, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		*r = RingServer{Host: addr.Unmap().String()}
		return nil
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if ap.Port() == 0 {
			return bad
		}
		*r = RingServer{Host: ap.Addr().Unmap().String(), Port: ap.Port()}
		return nil
	}
	name, port, hasPort := strings.Cut(s, ":")
	var n uint64
	if hasPort {
		var err error
		if n, err = strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return bad
		}
	}
	if checkHostName(name) != nil {
		return bad
	}
	*r = RingServer{Host: name, Port: uint16(n)}
	return nil
}

func (*RingServer) example() string { return "10.1.0.2" }
