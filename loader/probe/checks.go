package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"usher/loader/netns"
)

var kernelModes = []string{ModeXDP, ModeTC}

// checkAll asks for everything that can be asked. What may not be asked, for lack of a capability, is Untried and
// blames nothing: the capability is told by itself.
func checkAll(pinPath string) []Check {
	caps := effective()
	checks := []Check{checkKernel(release())}
	checks = append(checks, checkCapabilities(caps)...)
	return append(checks,
		checkUserNamespace(),
		checkNamespaces(caps[unix.CAP_SYS_ADMIN]),
		checkPinPath(pinPath, caps[unix.CAP_SYS_ADMIN]),
		checkBTF(),
		checkFeatures("program-types", []feature{
			{"sched_cls", features.HaveProgramType(ebpf.SchedCLS)},
			{"xdp", features.HaveProgramType(ebpf.XDP)},
		}),
		checkFeatures("map-types", []feature{
			{"hash", features.HaveMapType(ebpf.Hash)},
			{"percpu_array", features.HaveMapType(ebpf.PerCPUArray)},
			{"ringbuf", features.HaveMapType(ebpf.RingBuf)},
			{"no_prealloc", features.HaveMapFlag(features.BPF_F_NO_PREALLOC)},
		}),
		checkFeatures("helpers", []feature{
			{"redirect_neigh", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectNeigh)},
			{"l4_csum_replace", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnL4CsumReplace)},
			{"skb_pull_data", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnSkbPullData)},
			{"ringbuf_reserve", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRingbufReserve)},
			{"spin_lock", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnSpinLock)},
			{"xdp redirect", features.HaveProgramHelper(ebpf.XDP, asm.FnRedirect)},
		}),
		checkRepair(),
	)
}

// release is the kernel's, or "unknown".
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func checkKernel(release string) Check {
	c := Check{Name: "kernel", State: Works, Needed: kernelModes}
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		c.State, c.Detail = Untried, fmt.Sprintf("release %q is no version", release)
		return c
	}
	since := func(ma, mi int) bool { return major > ma || major == ma && minor >= mi }
	switch {
	case since(6, 6):
		c.Detail = release + ": tcx links, replaced atomically"
	case since(5, 10):
		c.Detail = release + ": clsact only, tcx links came with 6.6"
	default:
		c.State, c.Detail = Fails, release+" is too old: 5.10 is the first with redirect_neigh and ring buffers, 6.6 the first with tcx"
	}
	return c
}

// effective returns the capabilities that count now. User ids say nothing: services have some without
// being root, and root in a container has not all.
func effective() map[int]bool {
	caps := map[int]bool{}
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return caps
	}
	for line := range strings.Lines(string(status)) {
		value, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		bits, _ := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		for i := range 64 {
			caps[i] = bits>>i&1 != 0
		}
	}
	return caps
}

func checkCapabilities(caps map[int]bool) []Check {
	var checks []Check
	for _, need := range []struct {
		bit          int
		name, detail string
		byAdmin      bool // CAP_SYS_ADMIN includes it (capabilities(7))
		needed       []string
	}{
		{unix.CAP_BPF, "CAP_BPF", "to load programs and make maps", true, kernelModes},
		{unix.CAP_PERFMON, "CAP_PERFMON", "to load programs that compute addresses", true, kernelModes},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "to attach programs, and for TCP_REPAIR", false, kernelModes},
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "for this trial's private namespaces; serve does not need it once a bpffs is mounted", false, []string{"trial"}},
	} {
		c := Check{Name: need.name, State: Works, Detail: need.detail, Needed: need.needed}
		switch {
		case caps[need.bit]:
		case need.byAdmin && caps[unix.CAP_SYS_ADMIN]:
			c.Detail += ", by CAP_SYS_ADMIN"
		default:
			c.State = Fails
		}
		checks = append(checks, c)
	}
	return checks
}

// checkUserNamespace: bpf(2) asks for capabilities in the first user namespace, a container's own do not count.
func checkUserNamespace() Check {
	const first = "user:[4026531837]" // PROC_USER_INIT_INO of linux/proc_ns.h
	c := Check{Name: "user-namespace", State: Works, Detail: "the first one: capabilities count", Needed: kernelModes}
	switch own, err := os.Readlink("/proc/self/ns/user"); {
	case err != nil:
		c.State, c.Detail = Untried, err.Error()
	case own != first:
		c.State, c.Detail = Fails, "this is a container with users of its own, whose capabilities do not count for bpf(2)"
	}
	return c
}

func checkNamespaces(admin bool) Check {
	c := Check{Name: "network-namespaces", State: Works, Detail: "can be made, for this trial", Needed: []string{"trial"}}
	if !admin {
		c.State, c.Detail = Untried, "not without CAP_SYS_ADMIN"
	} else if err := netns.Available(); err != nil {
		c.State, c.Detail = Fails, "for this trial: "+cause(err)
	}
	return c
}

// checkPinPath looks where serve would pin. It must neither make nor lock anything.
func checkPinPath(path string, admin bool) Check {
	const usual = "/sys/fs/bpf"
	c := Check{Name: "pin-path", State: Fails, Needed: kernelModes}
	at := filepath.Clean(path)
	for {
		_, err := os.Stat(at)
		if err == nil {
			break
		}
		if at == "/" || !errors.Is(err, os.ErrNotExist) {
			c.Detail = fmt.Sprintf("%s cannot be looked at: %s", path, cause(err))
			return c
		}
		at = filepath.Dir(at)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		c.Detail = fmt.Sprintf("%s cannot be looked at: %v", path, err)
		return c
	}
	// As ensureBPFFS of the loader does: it mounts at the usual place only.
	below := path == usual || strings.HasPrefix(path, usual+"/")
	switch {
	case st.Type == unix.BPF_FS_MAGIC:
		if err := unix.Faccessat(unix.AT_FDCWD, at, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
			c.Detail = fmt.Sprintf("%s is in a bpffs, but %s cannot be written: %v", path, at, err)
			return c
		}
		c.State, c.Detail = Works, fmt.Sprintf("%s is in a bpffs and can be written", path)
		// Not opened: a lock taken here, however briefly, could refuse a daemon its start.
		if layouts, _ := filepath.Glob(filepath.Join(path, "layout-*")); len(layouts) > 0 {
			c.Detail += "; an usher has pins there: " + filepath.Base(layouts[0])
		}
	case below && admin:
		c.State, c.Detail = Works, fmt.Sprintf("no bpffs is mounted on %s: serve mounts one", usual)
	case below:
		c.Detail = fmt.Sprintf("no bpffs is mounted on %s, and mounting one needs CAP_SYS_ADMIN", usual)
	default:
		c.Detail = fmt.Sprintf("%s is not in a bpffs: mount -t bpf bpf DIR", path)
	}
	return c
}

// checkBTF is for information: the programs carry their own types and relocate nothing.
func checkBTF() Check {
	const file = "/sys/kernel/btf/vmlinux"
	if _, err := os.Stat(file); err != nil {
		return Check{Name: "btf", State: Fails, Detail: "the kernel has no types of its own; not needed", Needed: []string{}}
	}
	return Check{Name: "btf", State: Works, Detail: file + "; not needed", Needed: []string{}}
}

type feature struct {
	name string
	err  error // of the features package: nil, ErrNotSupported, or inconclusive
}

func checkFeatures(name string, all []feature) Check {
	c := Check{Name: name, State: Works, Needed: kernelModes}
	var have, lack []string
	var unknown error
	for _, f := range all {
		switch {
		case f.err == nil:
			have = append(have, f.name)
		case errors.Is(f.err, ebpf.ErrNotSupported):
			lack = append(lack, f.name)
		default:
			unknown = f.err
		}
	}
	switch {
	case len(lack) > 0:
		c.State, c.Detail = Fails, "this kernel has no "+strings.Join(lack, ", ")
	case errors.Is(unknown, unix.EPERM):
		// Whoever may not ask lacks a capability, which is told as such.
		c.State, c.Detail = Untried, "not without CAP_BPF"
	case unknown != nil:
		c.State, c.Detail = Untried, unknown.Error()
	default:
		c.Detail = strings.Join(have, ", ")
	}
	return c
}

// checkRepair switches a socket to repair mode and back.
func checkRepair() Check {
	c := Check{Name: "tcp-repair", State: Works, Detail: "freezes sockets during a hand-over", Needed: kernelModes}
	err := func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		for _, v := range []int{1, -1} { // on; off without a window probe, Linux 4.19
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, v); err != nil {
				return fmt.Errorf("set TCP_REPAIR to %d: %w", v, err)
			}
		}
		return nil
	}()
	switch {
	case errors.Is(err, unix.EPERM):
		c.State, c.Detail = Untried, "not without CAP_NET_ADMIN"
	case err != nil:
		c.State, c.Detail = Fails, err.Error()
	}
	return c
}

// cause is the part of an error that people need to read: the system's word, when there is one.
func cause(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
