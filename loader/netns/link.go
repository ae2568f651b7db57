package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Veth makes a pair of ethernet interfaces, nameA in a and nameB in b, joined by a cable. Both are up.
// mtu is in bytes, 0 for the kernel's default of 1500. Neither namespace may be nil.
func Veth(a, b *NS, nameA, nameB string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	attrs.MTU = mtu
	link := &netlink.Veth{
		LinkAttrs:     attrs,
		PeerName:      nameB,
		PeerMTU:       uint32(mtu),
		PeerNamespace: netlink.NsFd(b.Fd()), // made over there at once: it never exists in a third place
	}
	if err := a.handle.LinkAdd(link); err != nil {
		return fmt.Errorf("make veth %s to %s: %w", nameA, nameB, err)
	}
	if err := errors.Join(a.SetUp(nameA), b.SetUp(nameB)); err != nil {
		return err
	}
	return errors.Join(a.settle(nameA), b.settle(nameB))
}

// settle makes the kernel notice now that an interface has a cable. It would do so within a second by itself, and until
// then IPv6 does not answer on the interface: its first neighbour solicitations are lost, a second each.
func (ns *NS) settle(name string) error {
	v := ethtoolValue{cmd: unix.ETHTOOL_GLINK}
	if err := ns.ethtool(name, &v); err != nil {
		return fmt.Errorf("read link state of %s: %w", name, err)
	}
	if v.data == 0 {
		return fmt.Errorf("interface %s has no carrier", name)
	}
	return nil
}

// Bridge makes an ethernet switch out of interfaces of the namespace. It is up.
func (ns *NS) Bridge(name string, ports ...string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := ns.Netlink().LinkAdd(br); err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	for _, port := range ports {
		link, err := ns.link(port)
		if err != nil {
			return err
		}
		if err := ns.Netlink().LinkSetMaster(link, br); err != nil {
			return fmt.Errorf("put %s into bridge %s: %w", port, name, err)
		}
	}
	return ns.SetUp(name)
}

// settleTimeout bounds the wait for what the kernel does in its work queues; on a busy machine it takes milliseconds.
const settleTimeout = 10 * time.Second

// AddAddr gives an interface an address with the length of its network. The address is usable when it
// returns. For IPv6 that means without duplicate detection (nobody else can have it).
func (ns *NS) AddAddr(name string, prefix netip.Prefix) error {
	link, err := ns.link(name)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := ns.Netlink().AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", prefix, name, err)
	}
	if prefix.Addr().Is6() {
		return ns.awaitLocal(prefix.Addr())
	}
	return nil
}

// awaitLocal waits until an IPv6 address is in use. Even without duplicate detection that is the job of a work queue, which
// first joins the groups that neighbours ask in and then adds a route to the local table. A neighbour that
// asks too early gets no answer and asks again only after a second.
func (ns *NS) awaitLocal(addr netip.Addr) error {
	want := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: ipNet(netip.PrefixFrom(addr, 128))}
	for end := time.Now().Add(settleTimeout); ; time.Sleep(time.Millisecond) {
		routes, err := ns.Netlink().RouteListFiltered(unix.AF_INET6, want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		switch {
		case err != nil:
			return fmt.Errorf("list local routes: %w", err)
		case len(routes) > 0:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("address %s is not in use after %s", addr, settleTimeout)
		}
	}
}

// AddRoute sends packets for to by way of the neighbour via.
func (ns *NS) AddRoute(to netip.Prefix, via netip.Addr) error {
	if err := ns.Netlink().RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("add route to %s via %s: %w", to, via, err)
	}
	return nil
}

// SetUp switches an interface on.
func (ns *NS) SetUp(name string) error {
	link, err := ns.link(name)
	if err != nil {
		return err
	}
	if err := ns.Netlink().LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// Links returns the names of all interfaces, the loopback interface included.
func (ns *NS) Links() ([]string, error) {
	links, err := ns.Netlink().LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := make([]string, len(links))
	for i, l := range links {
		names[i] = l.Attrs().Name
	}
	return names, nil
}

// Index returns the number of an interface inside the namespace.
func (ns *NS) Index(name string) (int, error) {
	link, err := ns.link(name)
	if err != nil {
		return 0, err
	}
	return link.Attrs().Index, nil
}

func (ns *NS) link(name string) (netlink.Link, error) {
	link, err := ns.Netlink().LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return link, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}
}
