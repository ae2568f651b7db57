// Package cluster builds the network of a site with several directors on one machine: clients, director
// nodes and mail backends, each node in a network namespace of its own.
//
//	client  10.77.1.1 ──┐
//	node 0  eth0 ───────┤   site (a bridge)        node 0  ring0 10.77.3.11 ──┐
//	node 1  eth0 ───────┤   clients 10.77.1.0/24   node 1  ring0 10.77.3.12 ──┼── ring (a bridge)
//	node 2  eth0 ───────┤   backends 10.77.2.0/24  node 2  ring0 10.77.3.13 ──┘
//	backend 10.77.2.101 ┘
//
// Node i has 10.77.1.11+i (for clients) and 10.77.2.11+i (towards backends) on its eth0. The ring has a
// network of its own, so that it can be cut while clients still reach every node: there is a second ring
// bridge, and Cut plugs nodes into that one. Those who are cut off hear nothing, not even a refusal.
//
// Everything lives in unnamed namespaces, as in package lab, and goes with Close or with the process.
package cluster

import (
	"errors"
	"fmt"
	"net/netip"

	"usher/loader/netns"
)

// Limits of the addresses' numbering.
const (
	maxNodes    = 50
	maxBackends = 100
)

// The bridges of the switch.
const (
	siteBridge = "site"
	ringBridge = "ring"
	cutBridge  = "cut" // the other side of a partition
)

// Options describe a cluster. The zero value is three nodes and three backends.
type Options struct {
	Nodes    int // 0: 3
	Backends int // addresses in the backend namespace; 0: 3
}

// Node is the place of one director.
type Node struct {
	NS      *netns.NS
	Service netip.Addr // where clients connect to
	Backend netip.Addr // its address towards the backends
	Ring    netip.Addr // its address in the ring
}

// Cluster is a running network.
type Cluster struct {
	Client, Backend *netns.NS
	Backends        []netip.Addr
	Nodes           []Node

	switches *netns.NS
	all      []*netns.NS // for Close
}

// New builds a cluster. Without root, or without network namespaces, it returns the error of
// netns.Available. After an error nothing is left.
func New(o Options) (*Cluster, error) {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Backends == 0 {
		o.Backends = 3
	}
	if o.Nodes > maxNodes || o.Backends > maxBackends {
		return nil, fmt.Errorf("cluster of %d nodes and %d backends: at most %d and %d", o.Nodes, o.Backends, maxNodes, maxBackends)
	}
	c := &Cluster{}
	if err := c.build(o); err != nil {
		return nil, errors.Join(fmt.Errorf("build cluster: %w", err), c.Close())
	}
	return c, nil
}

func (c *Cluster) build(o Options) (err error) {
	if c.switches, err = c.namespace(); err != nil {
		return err
	}
	if err := errors.Join(c.switches.Bridge(siteBridge), c.switches.Bridge(ringBridge), c.switches.Bridge(cutBridge)); err != nil {
		return err
	}
	if c.Client, err = c.namespace(); err != nil {
		return err
	}
	if c.Backend, err = c.namespace(); err != nil {
		return err
	}
	if err := c.plug(c.Client, "client", "eth0", siteBridge, address(1, 1)); err != nil {
		return err
	}
	for i := range o.Backends {
		c.Backends = append(c.Backends, address(2, 101+i))
	}
	if err := c.plug(c.Backend, "backend", "eth0", siteBridge, c.Backends...); err != nil {
		return err
	}
	for i := range o.Nodes {
		n := Node{Service: address(1, 11+i), Backend: address(2, 11+i), Ring: address(3, 11+i)}
		if n.NS, err = c.namespace(); err != nil {
			return err
		}
		c.Nodes = append(c.Nodes, n)
		err := errors.Join(
			c.plug(n.NS, sitePort(i), "eth0", siteBridge, n.Service, n.Backend),
			c.plug(n.NS, ringPort(i), "ring0", ringBridge, n.Ring))
		if err != nil {
			return err
		}
	}
	return nil
}

func sitePort(i int) string { return fmt.Sprint("site", i) }
func ringPort(i int) string { return fmt.Sprint("ring", i) }

// settings make a namespace behave alike on every machine; the reasons are those of package lab.
var settings = [][2]string{
	{"net.ipv4.tcp_congestion_control", "reno"},
	{"net.ipv4.conf.all.rp_filter", "0"},
	{"net.ipv4.conf.default.rp_filter", "0"},
	{"net.ipv4.conf.all.send_redirects", "0"},
	{"net.ipv4.conf.default.send_redirects", "0"},
	{"net.core.somaxconn", "65535"},
}

func (c *Cluster) namespace() (*netns.NS, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	c.all = append(c.all, ns)
	for _, s := range settings {
		if err := ns.SetSysctl(s[0], s[1]); err != nil {
			return nil, err
		}
	}
	return ns, nil
}

// plug gives a namespace an interface with addresses, whose cable ends in a bridge of the switch.
func (c *Cluster) plug(ns *netns.NS, port, name, bridge string, addrs ...netip.Addr) error {
	if err := netns.Veth(c.switches, ns, port, name, 0); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := ns.AddAddr(name, netip.PrefixFrom(a, 24)); err != nil {
			return err
		}
	}
	return c.move(port, bridge)
}

// move puts a port of the switch into a bridge.
func (c *Cluster) move(port, bridge string) error {
	h := c.switches.Netlink()
	link, err := h.LinkByName(port)
	if err != nil {
		return fmt.Errorf("port %s: %w", port, err)
	}
	to, err := h.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	if err := h.LinkSetMasterByIndex(link, to.Attrs().Index); err != nil {
		return fmt.Errorf("plug %s into %s: %w", port, bridge, err)
	}
	return nil
}

// Cut makes a partition of the ring: the named nodes hear each other only, and the rest hears the rest.
// Clients and backends are reached from both sides.
func (c *Cluster) Cut(nodes ...int) error { return c.plugRing(cutBridge, nodes) }

// Heal joins the ring's network again.
func (c *Cluster) Heal() error {
	nodes := make([]int, len(c.Nodes))
	for i := range nodes {
		nodes[i] = i
	}
	return c.plugRing(ringBridge, nodes)
}

func (c *Cluster) plugRing(bridge string, nodes []int) error {
	for _, i := range nodes {
		if err := c.move(ringPort(i), bridge); err != nil {
			return err
		}
	}
	return nil
}

// SetLink takes the cables of a node away, those to clients and backends and that of the ring, or puts them back.
func (c *Cluster) SetLink(node int, up bool) error {
	h := c.switches.Netlink()
	for _, port := range []string{sitePort(node), ringPort(node)} {
		link, err := h.LinkByName(port)
		if err != nil {
			return fmt.Errorf("port %s: %w", port, err)
		}
		// The switch's end, not the node's: the node keeps its addresses and routes, as with a real cable.
		set := h.LinkSetDown
		if up {
			set = h.LinkSetUp
		}
		if err := set(link); err != nil {
			return fmt.Errorf("set %s up=%v: %w", port, up, err)
		}
	}
	return nil
}

func address(net, host int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 77, byte(net), byte(host)})
}

// Close takes the cluster down. Processes started inside are killed.
func (c *Cluster) Close() error {
	var errs []error
	for _, ns := range c.all {
		errs = append(errs, ns.Close())
	}
	return errors.Join(errs...)
}
