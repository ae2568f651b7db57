package config

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Ring lists the members of the ring (sorted, without duplicates) and finds this director among them
// (config.md section 2). Names are asked from r; all addresses of a name are directors. A director
// without servers has no ring: self is not valid then. Errors are Problems.
//
// With a specific address in ring_listen that one is us; otherwise the first of the members whose
// address isLocal, as MayBind tells.
func (c *Config) Ring(ctx context.Context, r Resolver, isLocal func(netip.Addr) bool) (self netip.AddrPort, members []netip.AddrPort, err error) {
	if len(c.Director.Servers) == 0 {
		return self, nil, nil
	}
	listen := netip.AddrPortFrom(c.Director.RingListen.Addr().Unmap(), c.Director.RingListen.Port())
	var problems Problems
	for i, s := range c.Director.Servers {
		key := fmt.Sprintf("director.servers[%d]", i)
		addrs, err := addressesOf(ctx, r, s.Host)
		if err != nil {
			problems = append(problems, c.problem(key, "resolve %s: %v", s.Host, err))
		}
		for _, a := range addrs {
			if err := checkHostAddr(a); err != nil {
				problems = append(problems, c.problem(key, "%s: %v", s.Host, err))
				continue
			}
			members = append(members, netip.AddrPortFrom(a, cmp.Or(s.Port, listen.Port())))
		}
	}
	if err := problems.Err(); err != nil {
		return self, nil, err
	}
	slices.SortFunc(members, netip.AddrPort.Compare) // IPv4 comes first, as in the ring
	members = slices.Compact(members)

	us := func(m netip.AddrPort) bool {
		if !listen.Addr().IsUnspecified() {
			return m.Addr() == listen.Addr()
		}
		// A listener of IPv4 alone cannot be reached by IPv6.
		return (listen.Addr().Is6() || m.Addr().Is4()) && isLocal(m.Addr())
	}
	// Two directors may share a machine, by their ports.
	ours := slices.DeleteFunc(slices.Clone(members), func(m netip.AddrPort) bool { return !us(m) })
	for _, m := range ours {
		if m.Port() == listen.Port() {
			return m, members, nil
		}
	}
	var list []string
	for _, m := range members {
		list = append(list, m.String())
	}
	text := fmt.Sprintf("does not list this director: none of %s is an address of this machine", strings.Join(list, ", "))
	switch {
	case len(ours) > 0:
		text = fmt.Sprintf("lists this director as %v, but ring_listen is %v", ours[0], listen)
	case !listen.Addr().IsUnspecified():
		text = fmt.Sprintf("does not list this director: ring_listen is %v, and there are %s", listen, strings.Join(list, ", "))
	}
	return self, nil, Problems{c.problem("director.servers", "%s", text)}
}

// addressesOf returns the addresses of an address or a name.
func addressesOf(ctx context.Context, r Resolver, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	addrs, err := r.LookupNetIP(ctx, "ip", host)
	if err == nil && len(addrs) == 0 {
		err = errors.New("it has no address")
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// MayBind reports whether an address is one of this machine, by listening there for a moment.
func MayBind(a netip.Addr) bool {
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		return false
	}
	l.Close()
	return true
}
