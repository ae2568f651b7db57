package lab

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"usher/loader/netns"
)

// Topology is how the three parties are connected.
type Topology int

// The topologies; see the picture in the package comment.
const (
	TwoArm Topology = iota
	OneArm
	LoAddress
)

// Topologies are all of them, for tables.
var Topologies = []Topology{TwoArm, OneArm, LoAddress}

func (t Topology) String() string { return [...]string{"two-arm", "one-arm", "lo-address"}[t] }

// Options describe a site. The zero value is a usable one: two arms, IPv4 and IPv6, three backends.
type Options struct {
	Topology Topology
	Family   int // 4, 6, or 0 for both
	Backends int // addresses in the backend namespace; 0 means 3, at most 200
	Clients  int // addresses in the client namespace; 0 means 1, at most 200: more of them mean more source ports
	MTU      int // of all interfaces, bytes; 0 means 1500

	// Settings by dotted name ("net.ipv4.tcp_timestamps"), written before anything can connect.
	ClientSysctl, DirectorSysctl, BackendSysctl map[string]string
}

// Net is the site in one address family.
type Net struct {
	Service         netip.Addr   // where clients connect to
	Clients         []netip.Addr // source addresses of clients; the first is the kernel's choice
	Backends        []netip.Addr
	DirectorClients netip.Addr // the director's address towards the clients; equals Service unless LoAddress
	DirectorBackend netip.Addr // the director's address towards the backends
}

// Lab is a running site.
type Lab struct {
	Client, Director, Backend *netns.NS

	V4, V6 Net // the zero Net when the family was not asked for

	// The director's interfaces; the same name twice with OneArm.
	ClientLink, BackendLink string

	nodes   []*netns.NS // all of them, for Close
	senders []end       // where packets for the director begin
	peers   []end       // the other ends of the director's cables
	saved   []feature   // what XDPReady changed
}

type end struct {
	ns   *netns.NS
	name string
}

type feature struct {
	end
	name netns.Feature
	on   bool
}

// defaults make a namespace behave alike on every machine.
var defaults = map[string]string{
	// Usable at once: nobody else can have the address.
	"net.ipv6.conf.all.accept_dad":     "0",
	"net.ipv6.conf.default.accept_dad": "0",
	"net.ipv6.conf.all.disable_ipv6":   "0",
	// A namespace inherits the machine's congestion control, may not choose a restricted one, and some
	// (bbr) pace: that would be measured instead of the proxy. Reno is always there and always allowed.
	"net.ipv4.tcp_congestion_control": "reno",
	"net.ipv4.conf.all.rp_filter":     "0",
	"net.ipv4.conf.default.rp_filter": "0",
	"net.core.somaxconn":              "65535",
}

// directorDefaults: with one arm a forwarding director would tell the parties to talk directly.
var directorDefaults = map[string]string{
	"net.ipv4.conf.all.send_redirects":     "0",
	"net.ipv4.conf.default.send_redirects": "0",
}

// New builds a site. Without root, or without network namespaces, it returns the error of
// netns.Available. After an error nothing is left.
func New(o Options) (*Lab, error) {
	if o.Backends == 0 {
		o.Backends = 3
	}
	if o.Clients == 0 {
		o.Clients = 1
	}
	if o.Backends > 200 || o.Clients > 200 {
		return nil, fmt.Errorf("lab with %d clients and %d backends: at most 200 of each", o.Clients, o.Backends)
	}
	l := &Lab{ClientLink: "clients0", BackendLink: "backends0"}
	if err := l.build(o); err != nil {
		return nil, errors.Join(fmt.Errorf("build %s lab: %w", o.Topology, err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(o Options) error {
	for _, n := range []struct {
		to   **netns.NS
		sets []map[string]string
	}{
		{&l.Client, []map[string]string{defaults, o.ClientSysctl}},
		{&l.Director, []map[string]string{defaults, directorDefaults, o.DirectorSysctl}},
		{&l.Backend, []map[string]string{defaults, o.BackendSysctl}},
	} {
		ns, err := l.node(n.sets...)
		if err != nil {
			return err
		}
		*n.to = ns
	}
	if err := l.cables(o); err != nil {
		return err
	}
	for _, family := range []int{4, 6} {
		if o.Family != 0 && o.Family != family {
			continue
		}
		n, err := l.addresses(o, family)
		if err != nil {
			return err
		}
		*l.net(family) = n
	}
	return nil
}

// node makes a namespace; later settings win.
func (l *Lab) node(sets ...map[string]string) (*netns.NS, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	l.nodes = append(l.nodes, ns)
	merged := map[string]string{}
	for _, s := range sets {
		maps.Copy(merged, s)
	}
	for _, name := range slices.Sorted(maps.Keys(merged)) {
		if err := ns.SetSysctl(name, merged[name]); err != nil {
			return nil, err
		}
	}
	return ns, nil
}

func (l *Lab) cables(o Options) error {
	l.senders = []end{{l.Client, "eth0"}, {l.Backend, "eth0"}}
	if o.Topology != OneArm {
		l.peers = l.senders
		return errors.Join(
			netns.Veth(l.Director, l.Client, l.ClientLink, "eth0", o.MTU),
			netns.Veth(l.Director, l.Backend, l.BackendLink, "eth0", o.MTU))
	}
	l.ClientLink, l.BackendLink = "eth0", "eth0"
	sw, err := l.node(defaults)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		port string
		ns   *netns.NS
	}{{"clients", l.Client}, {"director", l.Director}, {"backends", l.Backend}} {
		if err := netns.Veth(sw, c.ns, c.port, "eth0", o.MTU); err != nil {
			return err
		}
	}
	l.peers = []end{{sw, "director"}}
	return sw.Bridge("switch", "clients", "director", "backends")
}

// addresses numbers the site in one family.
func (l *Lab) addresses(o Options, family int) (Net, error) {
	n := Net{DirectorClients: address(family, 1, 1), DirectorBackend: address(family, 2, 1)}
	n.Service = n.DirectorClients
	bits := 24
	if family == 6 {
		bits = 64
	}
	type assignment struct {
		end
		prefix netip.Prefix
	}
	todo := []assignment{
		{end{l.Director, l.ClientLink}, netip.PrefixFrom(n.DirectorClients, bits)},
		{end{l.Director, l.BackendLink}, netip.PrefixFrom(n.DirectorBackend, bits)},
	}
	for i := range o.Clients {
		a := address(family, 1, 2+i)
		n.Clients = append(n.Clients, a)
		todo = append(todo, assignment{end{l.Client, "eth0"}, netip.PrefixFrom(a, bits)})
	}
	for i := range o.Backends {
		a := address(family, 2, 11+i)
		n.Backends = append(n.Backends, a)
		todo = append(todo, assignment{end{l.Backend, "eth0"}, netip.PrefixFrom(a, bits)})
	}
	if o.Topology == LoAddress {
		n.Service = address(family, 0, 1)
		todo = append(todo, assignment{end{l.Director, "lo"}, netip.PrefixFrom(n.Service, n.Service.BitLen())})
	}
	// The kernel prefers the address that came last in IPv6 and the first in IPv4; Clients[0] is to be the choice.
	if family == 6 {
		slices.Reverse(todo)
	}
	for _, a := range todo {
		if err := a.ns.AddAddr(a.name, a.prefix); err != nil {
			return Net{}, err
		}
	}
	far := func(net int) netip.Prefix { return netip.PrefixFrom(address(family, net, 0), bits) }
	err := errors.Join(
		l.Client.AddRoute(far(2), n.DirectorClients),
		l.Backend.AddRoute(far(1), n.DirectorBackend))
	if o.Topology == LoAddress {
		err = errors.Join(err, l.Client.AddRoute(netip.PrefixFrom(n.Service, n.Service.BitLen()), n.DirectorClients))
	}
	return n, err
}

// address is host number host in network number net, of 10.77.net.host or fd77:0:0:net::host.
func address(family, net, host int) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte{10, 77, byte(net), byte(host)})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 7: byte(net), 15: byte(host)})
}

func (l *Lab) net(family int) *Net {
	if family == 4 {
		return &l.V4
	}
	return &l.V6
}

// Net returns the site's addresses in family 4 or 6.
func (l *Lab) Net(family int) Net { return *l.net(family) }

// Nets returns the site's address families that exist, IPv4 first.
func (l *Lab) Nets() []Net {
	return slices.DeleteFunc([]Net{l.V4, l.V6}, func(n Net) bool { return !n.Service.IsValid() })
}

// SetForwarding lets the director route packets between clients and backends like any router, or not
// (the default). With it a client may connect to a backend's address directly: the measure that a proxy is compared with.
func (l *Lab) SetForwarding(on bool) error {
	v := "0"
	if on {
		v = "1"
	}
	return errors.Join(
		l.Director.SetSysctl("net.ipv4.ip_forward", v),
		l.Director.SetSysctl("net.ipv6.conf.all.forwarding", v))
}

// XDPReady prepares the interfaces around the director for a native XDP program on it, or puts them back to what they
// were. Call it before a program is attached, and the way back after it is detached: attaching changes features, too.
//
// Without it veth silently loses what XDP redirects: packets into a peer without NAPI (which GRO switches
// on), and packets whose sender left the checksum to hardware that is not there.
func (l *Lab) XDPReady(on bool) error {
	var errs []error
	if !on {
		for _, f := range slices.Backward(l.saved) {
			errs = append(errs, f.ns.SetFeature(f.end.name, f.name, f.on))
		}
		l.saved = nil
		return errors.Join(errs...)
	}
	for _, e := range l.senders {
		// In this order: without checksums the kernel switches segmentation off by itself.
		for _, f := range []netns.Feature{netns.TSO, netns.GSO, netns.TxChecksum} {
			errs = append(errs, l.change(e, f, false))
		}
	}
	for _, e := range l.peers {
		errs = append(errs, l.change(e, netns.GRO, true))
	}
	return errors.Join(errs...)
}

// change sets a feature and remembers what it was.
func (l *Lab) change(e end, f netns.Feature, on bool) error {
	was, err := e.ns.Feature(e.name, f)
	if err != nil || was == on {
		return err
	}
	l.saved = append(l.saved, feature{e, f, was})
	return e.ns.SetFeature(e.name, f, on)
}

// Close takes the site down. Processes started inside are killed; sockets still open keep their part of it
// alive until they are closed.
func (l *Lab) Close() error {
	var errs []error
	for _, ns := range l.nodes {
		errs = append(errs, ns.Close())
	}
	return errors.Join(errs...)
}
