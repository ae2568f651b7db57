package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names of what is pinned per interface: KIND-IFINDEX. (bpffs allows no dots, so
// no interface names.)
const (
	kindTC     = "tc"
	kindXDP    = "xdp"
	kindEgress = "egress"
	kindClsact = "clsact" // programs, for the filters that have no link
)

// attach puts the programs on every wanted interface, replacing those of an
// earlier daemon atomically, and takes them off the others.
func (k *Kernel) attach() error {
	nl, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	links, err := interfaces(nl, k.cfg.Interfaces)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, l := range links {
		a := l.Attrs()
		if err := k.attachTo(nl, a.Index, keep); err != nil {
			return fmt.Errorf("attach to interface %s: %w", a.Name, err)
		}
		k.attached = append(k.attached, a.Name)
	}
	return k.detachOthers(keep)
}

func (k *Kernel) attachTo(nl *netlink.Handle, index int, keep map[string]bool) error {
	pin := func(kind string) string {
		name := kind + "-" + strconv.Itoa(index)
		keep[name] = true
		return filepath.Join(k.dir, name)
	}
	if k.cfg.Mode == ModeXDP {
		path := pin(kindXDP)
		err := renew(path, k.objs.SpliceXdp, func() (link.Link, error) {
			return link.AttachXDP(link.XDPOptions{Interface: index, Program: k.objs.SpliceXdp, Flags: link.XDPDriverMode})
		})
		if err != nil {
			return err
		}
	}
	if !k.cfg.Clsact {
		err := k.attachTCX(index, pin)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
		k.cfg.Log.Info().Msg("no tcx links before Linux 6.6: attaching by clsact")
		delete(keep, kindTC+"-"+strconv.Itoa(index))
		delete(keep, kindEgress+"-"+strconv.Itoa(index))
	}
	return k.attachClsact(nl, index, pin(kindClsact))
}

func (k *Kernel) attachTCX(index int, pin func(string) string) error {
	tcx := func(kind string, p *ebpf.Program, at ebpf.AttachType) error {
		return renew(pin(kind), p, func() (link.Link, error) {
			return link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: at, Anchor: link.Head()})
		})
	}
	if err := tcx(kindEgress, k.objs.EgressTc, ebpf.AttachTCXEgress); err != nil {
		return err
	}
	if k.cfg.Mode == ModeXDP {
		return nil
	}
	return tcx(kindTC, k.objs.SpliceTc, ebpf.AttachTCXIngress)
}

// renew swaps the program of a pinned link, or attaches and pins a new one.
func renew(path string, p *ebpf.Program, attach func() (link.Link, error)) error {
	if old, err := link.LoadPinnedLink(path, nil); err == nil {
		err := old.Update(p)
		old.Close()
		if err == nil {
			return nil
		}
		// Its interface has gone, and the index is another one's now.
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove stale link: %w", err)
		}
	}
	l, err := attach()
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

// clsact filters live in the kernel by themselves; the marker file (a pinned
// program) only remembers where they are.
func (k *Kernel) attachClsact(nl *netlink.Handle, index int, marker string) error {
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := nl.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	add := func(parent uint32, p *ebpf.Program, name string) error {
		err := nl.FilterReplace(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
			Fd:          p.FD(), Name: name, DirectAction: true,
		})
		if err != nil {
			return fmt.Errorf("add filter %s: %w", name, err)
		}
		return nil
	}
	if err := add(netlink.HANDLE_MIN_EGRESS, k.objs.EgressTc, "usher_egress"); err != nil {
		return err
	}
	if k.cfg.Mode != ModeXDP {
		if err := add(netlink.HANDLE_MIN_INGRESS, k.objs.SpliceTc, "usher_splice"); err != nil {
			return err
		}
	}
	if err := os.Remove(marker); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p, err := k.objs.EgressTc.Clone() // Pin moves the name of what it pins
	if err != nil {
		return err
	}
	defer p.Close()
	return p.Pin(marker)
}

// detachOthers removes what an earlier daemon attached in another mode or to
// interfaces that are not wanted any more.
func (k *Kernel) detachOthers(keep map[string]bool) error {
	found, err := os.ReadDir(k.dir)
	if err != nil {
		return fmt.Errorf("read pin path: %w", err)
	}
	for _, e := range found {
		kind, index, ok := strings.Cut(e.Name(), "-")
		if !ok || keep[e.Name()] {
			continue
		}
		if kind == kindClsact {
			removeFilters(index)
		}
		if err := os.Remove(filepath.Join(k.dir, e.Name())); err != nil {
			return fmt.Errorf("detach %s: %w", e.Name(), err)
		}
	}
	return nil
}

func detachClsact(dir string) {
	found, _ := filepath.Glob(filepath.Join(dir, kindClsact+"-*"))
	for _, f := range found {
		_, index, _ := strings.Cut(filepath.Base(f), "-")
		removeFilters(index)
	}
}

// removeFilters removes our filters and leaves the qdisc, which may be others' too.
func removeFilters(index string) {
	i, err := strconv.Atoi(index)
	if err != nil {
		return
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		_ = netlink.FilterDel(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: i, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		})
	}
}

// interfaces returns the named ones, or every Ethernet interface that carries a
// unicast route: client and backend packets pass one of them.
func interfaces(nl *netlink.Handle, names []string) ([]netlink.Link, error) {
	var found []netlink.Link
	for _, name := range names {
		l, err := nl.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, err)
		}
		found = append(found, l)
	}
	if len(names) > 0 {
		return found, nil
	}
	links, err := routedLinks(nl)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if Ethernet(l) {
			found = append(found, l)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no Ethernet interface carries a route: name some in steer.interfaces")
	}
	return found, nil
}

// Ethernet reports whether the programs can be attached to an interface.
func Ethernet(l netlink.Link) bool { return l.Attrs().EncapType == "ether" }

// RoutedLinks returns every interface of the calling thread's namespace that carries a unicast
// route, except loopback. Those that are Ethernet are the ones Open attaches to when none is named.
func RoutedLinks() ([]netlink.Link, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	return routedLinks(nl)
}

func routedLinks(nl *netlink.Handle) ([]netlink.Link, error) {
	routed := map[int]bool{}
	routes, err := nl.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST {
			continue
		}
		routed[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			routed[hop.LinkIndex] = true
		}
	}
	all, err := nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var found []netlink.Link
	for _, l := range all {
		if routed[l.Attrs().Index] && l.Attrs().EncapType != "loopback" {
			found = append(found, l)
		}
	}
	return found, nil
}
