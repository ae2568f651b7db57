package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"usher/loader/netns"
)

// family is one IP version's addresses at the site.
type family struct {
	name             string
	client, backend  netip.Addr // theirs
	service, towards netip.Addr // the director's, on the cable to the client and on the one to the backend
	bits             int
}

// The site is unreachable from anywhere. All the same: addresses that are nobody's (RFC 2544, RFC 3849).
var (
	ipv4 = family{
		"ipv4", netip.MustParseAddr("198.18.1.2"), netip.MustParseAddr("198.18.2.2"),
		netip.MustParseAddr("198.18.1.1"), netip.MustParseAddr("198.18.2.1"), 24,
	}
	ipv6 = family{
		"ipv6", netip.MustParseAddr("2001:db8:1::2"), netip.MustParseAddr("2001:db8:2::2"),
		netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:2::1"), 64,
	}
)

// site is three namespaces in a row.
type site struct {
	client, director, backend *netns.NS
	families                  []family
	noIPv6                    error // why ipv6 is not among them
}

// Names of the interfaces.
const (
	outer     = "eth0"     // the client's, and the backend's
	toClient  = "clients"  // the director's
	toBackend = "backends" // the director's
)

// newSite builds the site. forXDP makes its cables fit for native XDP: veth hands redirected packets only to a peer
// with NAPI, which GRO switches on, and must not be given packets whose checksum or segmentation is left to hardware.
func newSite(forXDP bool) (s *site, err error) {
	s = &site{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, ns := range []**netns.NS{&s.client, &s.director, &s.backend} {
		if *ns, err = netns.New(); err != nil {
			return s, err
		}
		// Absent when the kernel was started without IPv6, which addresses below notice.
		_ = (*ns).SetSysctl("net.ipv6.conf.all.disable_ipv6", "0")
		_ = (*ns).SetSysctl("net.ipv6.conf.default.disable_ipv6", "0")
	}
	if err := netns.Veth(s.client, s.director, outer, toClient, 0); err != nil {
		return s, err
	}
	if err := netns.Veth(s.backend, s.director, outer, toBackend, 0); err != nil {
		return s, err
	}
	if forXDP {
		for _, ns := range []*netns.NS{s.client, s.backend} {
			for _, f := range []netns.Feature{netns.TSO, netns.GSO, netns.TxChecksum} {
				if err := ns.SetFeature(outer, f, false); err != nil {
					return s, err
				}
			}
			if err := ns.SetFeature(outer, netns.GRO, true); err != nil {
				return s, err
			}
		}
	}
	if err := s.address(ipv4); err != nil {
		return s, err
	}
	s.families = []family{ipv4}
	if s.noIPv6 = s.address(ipv6); s.noIPv6 == nil {
		s.families = append(s.families, ipv6)
	}
	return s, nil
}

func (s *site) address(f family) error {
	for _, at := range []struct {
		ns   *netns.NS
		name string
		addr netip.Addr
	}{
		{s.client, outer, f.client}, {s.director, toClient, f.service},
		{s.director, toBackend, f.towards}, {s.backend, outer, f.backend},
	} {
		if err := at.ns.AddAddr(at.name, netip.PrefixFrom(at.addr, f.bits)); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) close() error {
	return errors.Join(s.client.Close(), s.director.Close(), s.backend.Close())
}

// privatePins makes a bpffs that is mounted nowhere: nobody else can see it, and it ends, with all pins in it, when
// its file is closed or the process dies. Needs Linux 5.2 and CAP_SYS_ADMIN.
func privatePins() (dir string, f *os.File, err error) {
	fs, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", nil, fmt.Errorf("make a private bpffs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return "", nil, fmt.Errorf("make a private bpffs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("make a private bpffs: %w", err)
	}
	root := fmt.Sprintf("/proc/self/fd/%d", fd)
	return root + "/usher", os.NewFile(uintptr(fd), root), nil
}
