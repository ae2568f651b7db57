package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"usher/steer/handover"
)

// Dialer connects to backends, in such a way that the kernel can take the
// connection over later: it chooses the source port itself, so that the flow can be
// observed from the first packet, and so that no port is used twice that a
// forwarded session, which has no socket, still needs.
type Dialer struct {
	Kernel  handover.Kernel // nil: nothing is observed
	Sources []netip.Addr    // source addresses; empty: the kernel's choice
	Timeout time.Duration   // for one connection; 0: 30 s, Dovecot's login_proxy_timeout
	// Control is called for each new socket before it is bound; may be nil.
	Control func(network, address string, c syscall.RawConn) error

	mu     sync.Mutex
	routes map[netip.Addr]route
}

// Conn is a connection to a backend.
type Conn struct {
	*net.TCPConn
	Tuple handover.Tuple
	// NotObserved says why the connection has no entry in the flow map. When it has
	// one (handover.Spliced), its user must Forget it, unless handover.Run was called.
	NotObserved handover.Reason
}

const (
	dialTimeout = 30 * time.Second
	// portTries bounds the search for a free source port: at 90 % use of the range
	// each try fails with 0.9, so all of them with less than one in 10^5.
	portTries = 110
	// routeLife is how long the kernel's choice of a source address is believed.
	routeLife = time.Second
)

type route struct {
	source netip.Addr
	until  time.Time
}

// Dial connects to a backend for a client. strip and mss are those of
// handover.Options; an mss of 0 is not set. The error wraps the system's.
func (d *Dialer) Dial(ctx context.Context, to netip.AddrPort, strip handover.Strip, mss int) (*Conn, error) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = dialTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	source, err := d.source(to.Addr())
	if err != nil {
		return nil, err
	}
	if d.Kernel == nil {
		return d.connect(ctx, netip.AddrPortFrom(source, 0), to, mss, handover.ModeOff)
	}
	low, high := ports()
	for range portTries {
		local := netip.AddrPortFrom(source, uint16(low+rand.IntN(high-low+1)))
		tuple := handover.Tuple{Remote: to, Local: local}
		why := handover.Spliced
		switch err := d.Kernel.Observe(tuple, strip); {
		case errors.Is(err, handover.ErrTaken):
			continue
		case errors.Is(err, handover.ErrFull):
			why = handover.MapFull // and not taken: the port may be used
		case err != nil:
			why = handover.KernelFailed
		}
		c, err := d.connect(ctx, local, to, mss, why)
		if err == nil {
			return c, nil
		}
		if why == handover.Spliced {
			d.Kernel.Forget(tuple)
		}
		// Somebody else on this host has the port.
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("connect to %v: no free source port at %v in %d tries: more source_addresses are needed", to, source, portTries)
}

func (d *Dialer) connect(ctx context.Context, local, to netip.AddrPort, mss int, why handover.Reason) (*Conn, error) {
	c, err := d.dial(ctx, local, to, mss)
	if err != nil {
		return nil, err
	}
	return &Conn{TCPConn: c, Tuple: handover.TupleOf(c), NotObserved: why}, nil
}

func (d *Dialer) dial(ctx context.Context, local, to netip.AddrPort, mss int) (*net.TCPConn, error) {
	nd := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(local),
		KeepAlive: -1, // handover decides
		Control: func(network, address string, c syscall.RawConn) error {
			if d.Control != nil {
				if err := d.Control(network, address, c); err != nil {
					return err
				}
			}
			return prepare(c, mss)
		},
	}
	nd.SetMultipathTCP(false)
	c, err := nd.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, fmt.Errorf("connect to backend: %w", err)
	}
	return c.(*net.TCPConn), nil
}

func prepare(c syscall.RawConn, mss int) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		// Many connections share a source port, towards different backends.
		err = os.NewSyscallError("set SO_REUSEADDR", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		if err == nil && mss > 0 {
			// A backend must not send larger segments than the client takes.
			err = os.NewSyscallError("set TCP_MAXSEG", unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, mss))
		}
	})
	return errors.Join(cerr, err)
}

// source returns the address from which to connect.
func (d *Dialer) source(to netip.Addr) (netip.Addr, error) {
	var fitting []netip.Addr
	for _, a := range d.Sources {
		if a.Is4() == to.Is4() {
			fitting = append(fitting, a)
		}
	}
	if len(fitting) > 0 {
		return fitting[rand.IntN(len(fitting))], nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r, ok := d.routes[to]; ok && time.Now().Before(r.until) {
		return r.source, nil
	}
	// Connecting a datagram socket sends nothing and shows the kernel's choice.
	nd := net.Dialer{Control: d.Control}
	c, err := nd.Dial("udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find route to backend: %w", err)
	}
	defer c.Close()
	source := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	if d.routes == nil {
		d.routes = map[netip.Addr]route{}
	}
	d.routes[to] = route{source, time.Now().Add(routeLife)}
	return source, nil
}

// ports returns the range that the kernel itself would choose from (ip(7), ip_local_port_range).
var ports = sync.OnceValues(func() (low, high int) {
	low, high = 32768, 60999
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return low, high
	}
	var l, h int
	if _, err := fmt.Fscan(strings.NewReader(string(b)), &l, &h); err == nil && 0 < l && l < h {
		low, high = l, h
	}
	return low, high
})
