package netns

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sysctl reads a setting of the namespace by its dotted name, as "net.ipv4.ip_forward".
func (ns *NS) Sysctl(name string) (string, error) {
	var value []byte
	// /proc/sys/net shows the namespace of the thread that opens the file.
	err := ns.Do(func() (err error) {
		value, err = os.ReadFile(sysctlPath(name))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(value)), nil
}

// SetSysctl writes a setting of the namespace. Most of them concern sockets and interfaces made later.
func (ns *NS) SetSysctl(name, value string) error {
	err := ns.Do(func() error { return os.WriteFile(sysctlPath(name), []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", name, value, err)
	}
	return nil
}

func sysctlPath(name string) string {
	return "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
}

// Feature is something a network interface may do for the stack. Its value is the name that ethtool -k uses.
type Feature string

// The features that decide how packets look to a program on a veth interface.
const (
	TxChecksum Feature = "tx-checksumming"
	TSO        Feature = "tcp-segmentation-offload"
	GSO        Feature = "generic-segmentation-offload"
	GRO        Feature = "generic-receive-offload"
)

// ethtoolCommands are the ioctl subcommands that get and set each feature (linux/ethtool.h).
var ethtoolCommands = map[Feature]struct{ get, set uint32 }{
	TxChecksum: {unix.ETHTOOL_GTXCSUM, unix.ETHTOOL_STXCSUM},
	TSO:        {unix.ETHTOOL_GTSO, unix.ETHTOOL_STSO},
	GSO:        {unix.ETHTOOL_GGSO, unix.ETHTOOL_SGSO},
	GRO:        {unix.ETHTOOL_GGRO, unix.ETHTOOL_SGRO},
}

// ethtoolValue is struct ethtool_value (linux/ethtool.h).
type ethtoolValue struct{ cmd, data uint32 }

// Feature says whether an interface has a feature switched on.
func (ns *NS) Feature(name string, f Feature) (bool, error) {
	v := ethtoolValue{cmd: ethtoolCommands[f].get}
	if err := ns.ethtool(name, &v); err != nil {
		return false, fmt.Errorf("read %s of %s: %w", f, name, err)
	}
	return v.data != 0, nil
}

// SetFeature switches a feature of an interface on or off.
func (ns *NS) SetFeature(name string, f Feature, on bool) error {
	v := ethtoolValue{cmd: ethtoolCommands[f].set}
	if on {
		v.data = 1
	}
	if err := ns.ethtool(name, &v); err != nil {
		return fmt.Errorf("set %s of %s to %t: %w", f, name, on, err)
	}
	return nil
}

// ethtool runs one ioctl; the interface is looked up in the namespace that the socket was made in.
func (ns *NS) ethtool(name string, v *ethtoolValue) error {
	// struct ifreq: the name, then a pointer to the command, padded to the size of the largest member.
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}
	if len(name) >= len(req.name) {
		return unix.ENODEV
	}
	copy(req.name[:], name)
	req.data = unsafe.Pointer(v)
	return ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return errno
		}
		return nil
	})
}
