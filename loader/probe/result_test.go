package probe

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the expected output anew")

// sample is a machine where nearly everything is different.
func sample() *Result {
	r := &Result{
		Kernel: "6.1.0-37", Arch: "arm64", UID: 0, TookMS: 1234,
		Checks: []Check{
			checkKernel("6.1.0-37"),
			{Name: "CAP_BPF", State: Works, Detail: "to load programs and make maps, by CAP_SYS_ADMIN", Needed: kernelModes},
			{Name: "pin-path", State: Fails, Detail: "/srv/pins is not in a bpffs: mount -t bpf bpf DIR", Needed: kernelModes},
			{Name: "btf", State: Fails, Detail: "the kernel has no types of its own; not needed", Needed: []string{}},
			{Name: "helpers", State: Untried, Detail: "not without CAP_BPF", Needed: kernelModes},
		},
		Load: Load{State: Works, MS: 201.25, Programs: []Program{
			{"splice_tc", "SchedCLS", 93137, 7181},
			{"splice_xdp", "XDP", 0, 0},
		}},
		Modes: []Mode{
			{Mode: ModeXDP, Attach: AttachDriver, State: Fails, Reason: "ipv4: through the kernel: to the client: 0 of 2097152 bytes arrived", Note: "not shown", opened: true, MS: 4000},
			{Mode: ModeTC, Attach: AttachTCX, State: Fails, Reason: "Linux 6.1.0-37 has no tcx links, they came with 6.6", absent: true},
			{Mode: ModeTC, Attach: AttachClsact, State: Works, Works: true, opened: true, Note: "IPv4 only: no IPv6", Trials: []Trial{{"ipv4", 4 << 20, 2989}}},
			{Mode: ModeSplice, State: Works, Works: true, Trials: []Trial{{"ipv4", 4 << 20, 0}}},
			{Mode: ModeCopy, State: Works, Works: true, Trials: []Trial{{"ipv4", 4 << 20, 0}}},
		},
	}
	for _, i := range []struct {
		Interface
		features uint64
		known    bool
	}{
		{Interface{Name: "enp1s0f0", Driver: "mlx5_core", MTU: 1500, Used: true}, 7, true},
		{Interface{Name: "veth7", Driver: "veth", MTU: 1500, Used: true}, 7, true},
		{Interface{Name: "eth9", MTU: 9000, Used: true}, 0, false},
	} {
		i.XDP, i.XDPReason = judgeXDP(i.Driver, i.MTU, i.features, i.known)
		r.Interfaces = append(r.Interfaces, i.Interface)
	}
	r.Interfaces = append(r.Interfaces, Interface{Name: "wg0", Driver: "wireguard", MTU: 1420, XDP: "no", XDPReason: "not Ethernet: sessions through it stay in user space"})
	r.choose(nil)
	return r
}

// TestOutput holds the words for people and the names for scripts.
func TestOutput(t *testing.T) {
	r := sample()
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		if strings.TrimRight(line, " \n")+"\n" != line {
			t.Errorf("blanks at the end of %q", line)
		}
	}
	asJSON, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{"probe.txt": text.String(), "probe.json": string(asJSON) + "\n"} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
}

func TestChoose(t *testing.T) {
	mode := func(state State, opened, absent bool) Mode {
		return Mode{State: state, Reason: "why", opened: opened, absent: absent}
	}
	for _, row := range []struct {
		name                string
		tcx, clsact, splice Mode
		noInterface         bool
		want                string // mode, attach, state
	}{
		{"all work", mode(Works, true, false), mode(Works, true, false), mode(Works, false, false), false, "tc tcx works"},
		{"no tcx", mode(Fails, false, true), mode(Works, true, false), mode(Works, false, false), false, "tc clsact works"},
		{"old kernel", mode(Fails, false, true), mode(Fails, false, false), mode(Works, false, false), false, "splice  works"},
		{"no right", mode(Fails, false, false), mode(Fails, false, false), mode(Works, false, false), false, "splice  works"},
		// serve would attach and not notice.
		{"hand-over fails", mode(Fails, true, false), mode(Works, true, false), mode(Works, false, false), false, "tc tcx fails"},
		// The loader tries clsact only where the kernel knows no tcx.
		{"tcx refused", mode(Fails, false, false), mode(Works, true, false), mode(Works, false, false), false, "splice  works"},
		{"untried", mode(Untried, false, false), mode(Untried, false, false), mode(Works, false, false), false, "tc tcx untried"},
		{"no interface", mode(Works, true, false), mode(Works, true, false), mode(Works, false, false), true, "splice  works"},
		{"nothing works", mode(Fails, false, false), mode(Fails, false, false), mode(Fails, false, false), false, "splice  fails"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := &Result{Interfaces: []Interface{{Name: "eth0", Used: !row.noInterface}}}
			row.tcx.Mode, row.tcx.Attach = ModeTC, AttachTCX
			row.clsact.Mode, row.clsact.Attach = ModeTC, AttachClsact
			row.splice.Mode = ModeSplice
			r.Modes = []Mode{row.tcx, row.clsact, row.splice}
			r.choose(nil)
			a := r.Auto
			if got := a.Mode + " " + a.Attach + " " + string(a.State); got != row.want {
				t.Errorf("auto is %q, want %q", got, row.want)
			}
			if a.Reason == "" || a.Works != (a.State == Works) {
				t.Errorf("auto: %+v", a)
			}
			if err := r.Err(); (a.State == Fails) != errors.Is(err, ErrAuto) {
				t.Errorf("state %s, error %v", a.State, err)
			}
		})
	}
}

func TestJudgeXDP(t *testing.T) {
	for _, row := range []struct {
		driver   string
		mtu      int
		features uint64
		known    bool
		want     string
	}{
		{"mlx5_core", 1500, xdpBasic | xdpRedirect | xdpTarget, true, "likely"},
		{"virtio_net", 1500, xdpBasic | xdpRedirect, true, "maybe"},
		{"cdc_ether", 1500, 0, true, "no"},
		{"odd", 1500, xdpBasic, true, "no"},
		{"ice", 9000, xdpBasic | xdpRedirect | xdpTarget, true, "no"},
		{"ice", 1500, 0, false, "maybe"},
		{"new", 1500, 0, false, "unknown"},
		{"", 1500, 0, false, "unknown"},
		{"veth", 1500, xdpBasic | xdpRedirect | xdpTarget, true, "maybe"},
	} {
		if got, why := judgeXDP(row.driver, row.mtu, row.features, row.known); got != row.want || why == "" {
			t.Errorf("judgeXDP(%q, %d, %d, %t) = %s (%s), want %s", row.driver, row.mtu, row.features, row.known, got, why, row.want)
		}
	}
}

func TestCheckKernel(t *testing.T) {
	for release, want := range map[string]State{
		"6.18.44-vm": Works, "6.6": Works, "5.10.0": Works, "5.9.16": Fails, "4.19.0-27-amd64": Fails, "strange": Untried,
	} {
		if c := checkKernel(release); c.State != want || c.Detail == "" {
			t.Errorf("kernel %s: %+v, want %s", release, c, want)
		}
	}
}

func TestCheckPinPath(t *testing.T) {
	if c := checkPinPath(t.TempDir()+"/usher", true); c.State != Fails || !strings.Contains(c.Detail, "not in a bpffs") {
		t.Errorf("a directory on disk: %+v", c)
	}
	needRoot(t)
	dir, f, err := privatePins()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if c := checkPinPath(dir, false); c.State != Works {
		t.Errorf("a bpffs: %+v", c)
	}
	if err := os.MkdirAll(dir+"/layout-7", 0o700); err != nil {
		t.Fatal(err)
	}
	if c := checkPinPath(dir, false); c.State != Works || !strings.Contains(c.Detail, "layout-7") {
		t.Errorf("a bpffs in use: %+v", c)
	}
}
