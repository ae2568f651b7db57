package config

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strings"
)

// HostSpec is one item of backend.hosts: an address, a range of addresses, or a host name
// (protocol document config.md, section 3).
type HostSpec struct {
	First, Last netip.Addr // inclusive; equal for a single address; not valid for a name
	Name        string     // a host name: all its addresses are meant
}

// UnmarshalText also explains what Dovecot's own syntax becomes here.
func (h *HostSpec) UnmarshalText(text []byte) error {
	s := string(text)
	if addr, err := netip.ParseAddr(s); err == nil {
		if err := checkHostAddr(addr); err != nil {
			return err
		}
		*h = HostSpec{First: addr.Unmap(), Last: addr.Unmap()}
		return nil
	}
	if from, to, ok := strings.Cut(s, "-"); ok {
		// "mail-1.example" is a name: only what begins like a range is one.
		if first, err := netip.ParseAddr(from); err == nil {
			last, err := netip.ParseAddr(to)
			if err != nil {
				return fmt.Errorf("%q is no range, write %q", s, "10.2.0.11-10.2.0.30")
			}
			return h.setRange(s, first.Unmap(), last.Unmap())
		}
	}
	if name, tag, ok := strings.Cut(s, "@"); ok {
		return fmt.Errorf("%q has a tag; a tag is a key of its own: write hosts = [%q] and tag = %q", s, name, tag)
	}
	if _, err := netip.ParseAddrPort(s); err == nil || strings.Contains(s, ":") {
		return fmt.Errorf("%q has a port; the port is the listener's backend_port", s)
	}
	if err := checkHostName(s); err != nil {
		return err
	}
	*h = HostSpec{Name: strings.ToLower(s)}
	return nil
}

func (h *HostSpec) setRange(s string, first, last netip.Addr) error {
	if first.Is4() != last.Is4() {
		return fmt.Errorf("%q mixes IPv4 and IPv6", s)
	}
	for _, a := range []netip.Addr{first, last} {
		if err := checkHostAddr(a); err != nil {
			return err
		}
	}
	// The same limits as Dovecot's: a slip of the finger must not make millions of hosts.
	fixed := 24
	if first.Is6() {
		fixed = 112
	}
	if p, _ := first.Prefix(fixed); !p.Contains(last) {
		return fmt.Errorf("%q is too large, only the last %d bits may differ", s, first.BitLen()-fixed)
	}
	if last.Less(first) {
		return fmt.Errorf("%q is reversed, write %q", s, last.String()+"-"+first.String())
	}
	*h = HostSpec{First: first, Last: last}
	return nil
}

// Addrs yields the addresses that are known without asking anybody: none for a name.
func (h HostSpec) Addrs() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		if h.Name != "" || !h.First.IsValid() {
			return
		}
		for a := h.First; ; a = a.Next() {
			if !yield(a) || a == h.Last {
				return
			}
		}
	}
}

func (h HostSpec) String() string {
	switch {
	case h.Name != "":
		return h.Name
	case h.First == h.Last:
		return h.First.String()
	}
	return h.First.String() + "-" + h.Last.String()
}

func (*HostSpec) example() string { return "10.2.0.11-10.2.0.30" }

// Host is one backend host. It has the fields of director.Host, so that one converts to the other.
type Host struct {
	Addr   netip.Addr
	Name   string // when it came from a name
	Tag    string
	Weight int
}

// Resolver is what a host name is asked from; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Hosts lists all backend hosts; names are resolved through r, all errors are joined.
// Two names of one host are one host (the first name is kept) unless they disagree on tag or weight.
func (c *Config) Hosts(ctx context.Context, r Resolver) ([]Host, error) {
	var hosts []Host
	var errs []error
	seen := map[netip.Addr]Host{}
	add := func(h Host) {
		old, ok := seen[h.Addr]
		switch {
		case !ok:
			seen[h.Addr] = h
			hosts = append(hosts, h)
		case old.Tag != h.Tag || old.Weight != h.Weight:
			errs = append(errs, fmt.Errorf("host %s (%s) is also %s with another tag or weight",
				h.Addr, h.Name, cmp.Or(old.Name, "listed by its address")))
		}
	}
	for _, b := range c.Backends {
		for _, spec := range b.Hosts {
			for addr := range spec.Addrs() {
				add(Host{Addr: addr, Tag: b.Tag, Weight: b.Weight})
			}
			if spec.Name == "" {
				continue
			}
			addrs, err := addressesOf(ctx, r, spec.Name)
			if err != nil {
				errs = append(errs, fmt.Errorf("resolve backend %s: %w", spec.Name, err))
			}
			for _, addr := range addrs {
				add(Host{Addr: addr, Name: spec.Name, Tag: b.Tag, Weight: b.Weight})
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return hosts, nil
}

func checkHostAddr(a netip.Addr) error {
	switch {
	case a.Zone() != "":
		return fmt.Errorf("%q has a zone; link-local addresses cannot be steered to", a)
	case a.IsUnspecified(), a.IsMulticast():
		return fmt.Errorf("%q is not the address of a host", a)
	}
	return nil
}

// checkHostName takes the names of RFC 1123 and the underscore, which people use.
func checkHostName(s string) error {
	bad := fmt.Errorf("%q is no address, range or host name, write %q, %q or %q", s, "10.2.0.11", "10.2.0.11-10.2.0.30", "mail1.example")
	labels := strings.Split(strings.TrimSuffix(s, "."), ".")
	if len(s) > 253 {
		return bad
	}
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad
		}
		for _, r := range label {
			if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_') {
				return bad
			}
		}
	}
	// No top level domain is a number: "10.2.0.300" is a mistyped address.
	if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		return bad
	}
	return nil
}
