package loader

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"usher/bpf"
)

// HostOrder is what an operator ordered of a backend at run time. A restart of the
// daemon must not undo it: a host that was taken down stays down.
type HostOrder struct {
	Weight     int
	Configured int // the weight in the configuration at that time
	Down       bool
}

// PutHost remembers an order.
func (k *Kernel) PutHost(addr netip.Addr, o HostOrder) error {
	v := bpf.SpliceHost{Weight: uint32(o.Weight), Configured: uint32(o.Configured)}
	if o.Down {
		v.Flags = uint32(bpf.SpliceHostFlagHOST_DOWN)
	}
	if err := k.objs.Hosts.Put(bpf.SpliceHostKey{Addr: addr.As16()}, &v); err != nil {
		return fmt.Errorf("remember order for host %v: %w", addr, err)
	}
	return nil
}

// Host returns the last order for a host; false if there was none.
func (k *Kernel) Host(addr netip.Addr) (HostOrder, bool, error) {
	var v bpf.SpliceHost
	if err := k.objs.Hosts.Lookup(bpf.SpliceHostKey{Addr: addr.As16()}, &v); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return HostOrder{}, false, nil
		}
		return HostOrder{}, false, fmt.Errorf("read order for host %v: %w", addr, err)
	}
	return HostOrder{
		Weight: int(v.Weight), Configured: int(v.Configured), Down: v.Flags&uint32(bpf.SpliceHostFlagHOST_DOWN) != 0,
	}, true, nil
}
