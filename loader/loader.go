package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"usher/bpf"
	"usher/steer/handover"
)

// layout must be bumped together with USHER_LAYOUT in bpf/usher.h.
const layout = 1

// layoutDir is the directory under the pin path that has our layout.
var layoutDir = fmt.Sprintf("layout-%d", layout)

// Modes of the kernel path; "tc" attaches by tcx where the kernel has it (6.6),
// by clsact otherwise.
const (
	ModeTC  = "tc"
	ModeXDP = "xdp"
)

// Errors of Open.
var (
	// ErrLayout: pin_path holds the state of a version with another map layout.
	ErrLayout = errors.New("pinned state has another layout")
	// ErrInUse: another daemon uses pin_path.
	ErrInUse = errors.New("pin path is in use by another process")
)

// Config says what to load and where.
type Config struct {
	PinPath    string   // directory in a bpffs; created, and a bpffs mounted, when missing
	MaxFlows   int      // entries in the flow map; a session takes two
	Mode       string   // ModeTC or ModeXDP
	Interfaces []string // names; empty: every Ethernet interface that carries a unicast route
	Clsact     bool     // attach by clsact even where tcx works
	LearntHop  bool     // tc: send to the next hop learnt at the login for ever, never ask the kernel again
	Log        zerolog.Logger
}

// Kernel is the loaded and attached set of programs. It implements the Kernel
// interface of steer/handover and the store of steer/route.
type Kernel struct {
	cfg      Config
	dir      string
	lock     *os.File
	objs     bpf.SpliceObjects
	events   *ringbuf.Reader
	attached []string // interface names

	verdicts []string
	names    names
	tags     tags
	once     sync.Once
}

// Open loads the programs, adopts the maps that are pinned, and attaches. The
// error wraps ErrLayout, ErrInUse, ebpf.ErrNotSupported or a permission error.
func Open(cfg Config) (_ *Kernel, err error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		// The first thing for which rights are missing.
		return nil, fmt.Errorf("needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: lift the memlock limit: %w", err)
	}
	dir, err := openDir(cfg.PinPath)
	if err != nil {
		return nil, err
	}
	k := &Kernel{cfg: cfg, dir: dir}
	defer func() {
		if err != nil {
			k.Close()
		}
	}()
	if k.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	if err := k.load(); err != nil {
		return nil, err
	}
	if err := k.loadNames(); err != nil {
		return nil, err
	}
	if k.events, err = ringbuf.NewReader(k.objs.Events); err != nil {
		return nil, fmt.Errorf("open event ring buffer: %w", err)
	}
	if err := k.attach(); err != nil {
		return nil, err
	}
	return k, nil
}

// openDir makes the directory of our layout, and refuses others.
func openDir(pinPath string) (string, error) {
	if err := ensureBPFFS(pinPath); err != nil {
		return "", err
	}
	if err := os.MkdirAll(pinPath, 0o700); err != nil {
		return "", fmt.Errorf("make pin path: %w", err)
	}
	found, err := os.ReadDir(pinPath)
	if err != nil {
		return "", fmt.Errorf("read pin path: %w", err)
	}
	for _, e := range found {
		if strings.HasPrefix(e.Name(), "layout-") && e.Name() != layoutDir {
			return "", fmt.Errorf("%w: %s holds %s, this version uses %s; the sessions in it go on until their end: "+
				"run the version that made it, or end them with `usher unpin --pin-path %s`",
				ErrLayout, pinPath, e.Name(), layoutDir, pinPath)
		}
	}
	dir := filepath.Join(pinPath, layoutDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make %s: %w", dir, err)
	}
	return dir, nil
}

const bpffsRoot = "/sys/fs/bpf"

// ensureBPFFS mounts a bpffs at its usual place when the path is to be there and
// nothing is mounted yet, as systemd does; elsewhere one has to be there.
func ensureBPFFS(path string) error {
	existing := filepath.Clean(path)
	for {
		if _, err := os.Stat(existing); err == nil {
			break
		} else if existing == "/" || !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("look at pin path %s: %w", path, err)
		}
		existing = filepath.Dir(existing)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(existing, &st); err != nil {
		return fmt.Errorf("look at pin path %s: %w", path, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if path == bpffsRoot || strings.HasPrefix(path, bpffsRoot+"/") {
		if err := unix.Mount("bpf", bpffsRoot, "bpf", 0, "mode=0700"); err != nil {
			return fmt.Errorf("mount bpffs on %s: %w", bpffsRoot, err)
		}
		return nil
	}
	return fmt.Errorf("pin path %s is not in a bpffs: mount one there (mount -t bpf bpf DIR) or use a path below %s", path, bpffsRoot)
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open pin path: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrInUse, dir)
		}
		return nil, fmt.Errorf("lock pin path: %w", err)
	}
	return f, nil
}

// load makes the maps or opens the pinned ones, and loads the programs.
func (k *Kernel) load() error {
	spec, err := bpf.LoadSplice()
	if err != nil {
		return fmt.Errorf("read embedded programs: %w", err)
	}
	if k.verdicts, err = verdictNames(spec.Types); err != nil {
		return err
	}
	if err := spec.Variables["redirect_neigh"].Set(!k.cfg.LearntHop); err != nil {
		return fmt.Errorf("set redirect_neigh: %w", err)
	}
	sizes := map[string]uint32{"flows": uint32(k.cfg.MaxFlows), "users": uint32(k.cfg.MaxFlows), "names": 2 * uint32(k.cfg.MaxFlows), "counters": 0}
	for name, size := range sizes {
		m := spec.Maps[name]
		m.Pinning = ebpf.PinByName
		if size != 0 {
			m.MaxEntries = size
		}
		old, err := ebpf.LoadPinnedMap(filepath.Join(k.dir, name), nil)
		if err != nil {
			continue // load below makes it, or says why not
		}
		if n := old.MaxEntries(); n != m.MaxEntries {
			k.cfg.Log.Warn().Str("map", name).Uint32("entries", n).Uint32("wanted", m.MaxEntries).
				Msg("a pinned map keeps its size until `usher unpin`")
			m.MaxEntries = n
		}
		old.Close()
	}
	if err := spec.LoadAndAssign(&k.objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: k.dir}}); err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	return nil
}

// Close lets go of everything but leaves it pinned: sessions go on.
func (k *Kernel) Close() error {
	var errs []error
	k.once.Do(func() {
		if k.events != nil {
			errs = append(errs, k.events.Close())
		}
		errs = append(errs, k.objs.Close())
		if k.lock != nil {
			errs = append(errs, k.lock.Close())
		}
	})
	return errors.Join(errs...)
}

// Interfaces returns the names of the interfaces the programs are attached to.
func (k *Kernel) Interfaces() []string { return k.attached }

// Mode returns ModeTC or ModeXDP.
func (k *Kernel) Mode() string { return k.cfg.Mode }

// Program describes the attached program for people: name and tag of the kernel.
func (k *Kernel) Program() string {
	p := k.objs.SpliceTc
	if k.cfg.Mode == ModeXDP {
		p = k.objs.SpliceXdp
	}
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s/%s", info.Name, info.Tag)
}

// Unpin detaches the programs and removes everything under pinPath, of any layout.
// The sessions in it end: both peers of those in our layout get a RST. It fails with
// ErrInUse while a daemon runs.
func Unpin(pinPath string) error {
	layouts, err := filepath.Glob(filepath.Join(pinPath, "layout-*"))
	if err != nil {
		return err
	}
	var orphans []handover.Flow
	for _, dir := range layouts {
		lock, err := lockDir(dir)
		if err != nil {
			return err
		}
		flows := flowsIn(dir)
		detachClsact(dir)
		if err = os.RemoveAll(dir); err == nil {
			// The kernel detaches the links a moment later: until then they must not find the flows.
			orphans = append(orphans, flows.take()...)
		}
		flows.Close()
		lock.Close()
		if err != nil {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
	}
	if err := os.Remove(pinPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove pin path: %w", err)
	}
	// From here on a packet of theirs finds neither flow nor socket; who is silent is told.
	byTuple := make(map[handover.Key]handover.Flow, len(orphans))
	for _, f := range orphans {
		byTuple[f.Tuple.Key()] = f
	}
	for _, f := range orphans {
		if other, ok := byTuple[f.Other.Key()]; ok {
			_ = f.Reset(other)
		}
	}
	return nil
}

// Left returns how many flows an earlier daemon has left in the kernel under pinPath: 0
// also when that cannot be seen.
func Left(pinPath string) int {
	flows := flowsIn(filepath.Join(pinPath, layoutDir))
	defer flows.Close()
	return len(flows.all())
}

// pinnedFlows is a flow map without its daemon; the zero value has no flows.
type pinnedFlows struct{ *ebpf.Map }

// flowsIn opens the flow map of a pin directory; it has no flows if that has another layout.
func flowsIn(dir string) pinnedFlows {
	if filepath.Base(dir) != layoutDir {
		return pinnedFlows{}
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "flows"), nil)
	if err != nil {
		return pinnedFlows{}
	}
	return pinnedFlows{m}
}

// all returns the forwarded flows.
func (p pinnedFlows) all() (all []handover.Flow) {
	if p.Map == nil {
		return nil
	}
	k := &Kernel{}
	k.objs.Flows = p.Map
	_ = k.Flows(func(f handover.Flow) bool {
		all = append(all, f)
		return true
	})
	return all
}

// take is all, and removes them.
func (p pinnedFlows) take() []handover.Flow {
	all := p.all()
	for _, f := range all {
		_ = p.Delete(flowKey(f.Tuple))
	}
	return all
}
