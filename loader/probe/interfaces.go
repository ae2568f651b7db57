package probe

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"usher/loader"
)

// What the drivers of an interface may say of XDP (linux/netdev.h, enum netdev_xdp_act).
const (
	xdpBasic    = 1 << 0 // runs native programs
	xdpRedirect = 1 << 1 // they may redirect
	xdpTarget   = 1 << 2 // others may redirect to it
)

// xdpDrivers are known to run native programs that redirect, for kernels that cannot be asked (before 6.3).
var xdpDrivers = []string{
	"atlantic", "bnxt_en", "cpsw", "ena", "enetc", "fec", "fsl_dpaa2_eth", "fsl_dpa", "gve", "hv_netvsc", "i40e", "ice", "igb", "igc",
	"ixgbe", "ixgbevf", "mana", "mlx4_en", "mlx5_core", "mvneta", "mvpp2", "nfp", "nicvf", "qede", "sfc", "stmmac", "tun", "virtio_net", "vmxnet3",
}

// interfaces looks at every interface that carries a unicast route, and changes none.
func interfaces() ([]Interface, error) {
	links, err := loader.RoutedLinks()
	if err != nil {
		return []Interface{}, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return []Interface{}, fmt.Errorf("look at interfaces: %w", err)
	}
	defer unix.Close(fd)
	found := []Interface{}
	for _, l := range links {
		a := l.Attrs()
		i := Interface{Name: a.Name, MTU: a.MTU, Used: loader.Ethernet(l)}
		if info, err := unix.IoctlGetEthtoolDrvinfo(fd, a.Name); err == nil {
			i.Driver = unix.ByteSliceToString(info.Driver[:])
		}
		if i.Used {
			features, known := xdpFeatures(a.Index)
			i.XDP, i.XDPReason = judgeXDP(i.Driver, i.MTU, features, known)
		} else {
			i.XDP, i.XDPReason = "no", "not Ethernet: sessions through it stay in user space"
		}
		found = append(found, i)
	}
	return found, nil
}

// judgeXDP says whether mode xdp looks possible on an interface. Only attaching would tell: the number of
// queues, other offloads and the firmware have a say, too.
func judgeXDP(driver string, mtu int, features uint64, known bool) (verdict, why string) {
	// One page, less headroom and tail: the program does not take packets in fragments.
	const largest = 3498
	name := driver
	if name == "" {
		name = "its driver"
	}
	switch {
	case driver == "veth":
		return "maybe", "veth: only while both peers send without tx-checksumming and tcp-segmentation-offload and have generic-receive-offload on; " +
			"otherwise packets get lost"
	case mtu > largest:
		return "no", fmt.Sprintf("mtu %d: native programs see packets of one page, at most %d", mtu, largest)
	case !known && slices.Contains(xdpDrivers, driver):
		return "maybe", name + " is known for it; kernels before 6.3 do not tell"
	case !known:
		return "unknown", name + " is not known, and kernels before 6.3 do not tell"
	case features&xdpBasic == 0:
		return "no", name + " has no native XDP"
	case features&xdpRedirect == 0:
		return "no", name + " cannot redirect"
	case features&xdpTarget == 0:
		return "maybe", name + " redirects; whether it takes redirected packets it tells with a program attached"
	}
	return "likely", name + " redirects and takes redirected packets"
}

// xdpFeatures asks the kernel's netdev family (Documentation/netlink/specs/netdev.yaml, Linux 6.3).
func xdpFeatures(index int) (features uint64, known bool) {
	const (
		commandDevGet   = 1
		attrIfindex     = 1
		attrXDPFeatures = 3
	)
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return 0, false
	}
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	req.AddData(genericHeader{commandDevGet, 1})
	req.AddData(nl.NewRtAttr(attrIfindex, nl.Uint32Attr(uint32(index))))
	answers, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil || len(answers) == 0 || len(answers[0]) < len(genericHeader{}) {
		return 0, false
	}
	attrs, err := nl.ParseRouteAttr(answers[0][len(genericHeader{}):])
	if err != nil {
		return 0, false
	}
	for _, a := range attrs {
		if a.Attr.Type == attrXDPFeatures && len(a.Value) == 8 {
			return binary.NativeEndian.Uint64(a.Value), true
		}
	}
	return 0, false
}

// genericHeader is struct genlmsghdr: command, version, and two bytes that the kernel wants to be zero. (nl.Genlmsg
// has no room for those two and sends what lies behind it in memory.)
type genericHeader [4]byte

func (h genericHeader) Len() int          { return len(h) }
func (h genericHeader) Serialize() []byte { return h[:] }
