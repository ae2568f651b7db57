package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// State is what is known of a requirement or a mode.
type State string

// The states.
const (
	Works   State = "works"   // tried, or asked and there
	Fails   State = "fails"   // does not work, or is missing
	Untried State = "untried" // nothing speaks against it, but it could not be tried here
)

// Names in Mode.Mode, as in steer.mode, and in Mode.Attach.
const (
	ModeXDP    = "xdp"
	ModeTC     = "tc"
	ModeSplice = "splice"
	ModeCopy   = "copy"

	AttachDriver = "driver" // native XDP
	AttachTCX    = "tcx"    // tcx links, Linux 6.6
	AttachClsact = "clsact" // filters of a clsact qdisc
)

// Result is the answer of Run. The JSON names are an interface: more may be added.
type Result struct {
	Kernel     string      `json:"kernel"` // release, "6.18.44"
	Arch       string      `json:"arch"`   // as Go calls it
	UID        int         `json:"uid"`    // effective
	Checks     []Check     `json:"checks"`
	Load       Load        `json:"load"`
	Modes      []Mode      `json:"modes"` // xdp, tc by tcx, tc by clsact, splice, copy: always all of them, in this order
	Interfaces []Interface `json:"interfaces"`
	Auto       Auto        `json:"auto"`
	TookMS     int64       `json:"took_ms"`
}

// Check is one requirement.
type Check struct {
	Name   string   `json:"name"` // "kernel", "CAP_BPF", "pin-path", …
	State  State    `json:"state"`
	Detail string   `json:"detail"`     // what was found, or what is missing and what would help
	Needed []string `json:"needed_for"` // modes that do not work without; "trial": only the trial does not; empty: nothing
}

// Load says how the kernel took the programs.
type Load struct {
	State    State     `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	MS       float64   `json:"ms"` // for all programs and maps, verification included
	Programs []Program `json:"programs"`
}

// Program is one program as the kernel sees it.
type Program struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Verified uint32 `json:"verified_instructions"` // processed by the verifier; 0 before Linux 5.16; the limit is 1,000,000
	JITed    uint32 `json:"jited_bytes"`           // machine code; 0: it would be interpreted
}

// Mode is one way to carry sessions.
type Mode struct {
	Mode    string   `json:"mode"`
	Attach  string   `json:"attach,omitempty"` // kernel modes only
	State   State    `json:"state"`
	Works   bool     `json:"works"`             // State is Works
	Reason  string   `json:"reason,omitempty"`  // why not
	Missing []string `json:"missing,omitempty"` // names of the checks behind the reason
	Note    string   `json:"note,omitempty"`
	Trials  []Trial  `json:"trials,omitempty"` // what was carried and compared
	MS      float64  `json:"ms"`               // for building, loading, and all trials

	opened bool // the programs were loaded and attached: serve would stay with this mode
	absent bool // the kernel does not know this way to attach
}

// Trial is one session whose bytes were compared.
type Trial struct {
	Family  string `json:"family"`  // "ipv4", "ipv6"
	Bytes   uint64 `json:"bytes"`   // compared, of both directions; in kernel modes after the hand-over
	Packets uint64 `json:"packets"` // forwarded by the programs: of the flows' own counters
}

// Interface is one of the machine's that carries routes.
type Interface struct {
	Name   string `json:"name"`
	Driver string `json:"driver"` // "" when it does not say
	MTU    int    `json:"mtu"`
	Used   bool   `json:"used"` // usher would attach to it
	Mode   string `json:"mode"` // what mode "auto" would use on it
	Attach string `json:"attach,omitempty"`
	// XDP is "likely", "maybe", "no" or "unknown": only an attached program would tell.
	XDP       string `json:"xdp"`
	XDPReason string `json:"xdp_reason"`
}

// Auto is what steer.mode = "auto" comes to here.
type Auto struct {
	Mode   string `json:"mode"`
	Attach string `json:"attach,omitempty"`
	State  State  `json:"state"`
	Works  bool   `json:"works"`
	Reason string `json:"reason"`
}

// ErrAuto is what Result.Err wraps.
var ErrAuto = errors.New("what mode auto chooses does not work here")

// Err is nil unless what "auto" chooses is known to fail. A choice that could not be tried is no error.
func (r *Result) Err() error {
	if r.Auto.State != Fails {
		return nil
	}
	return fmt.Errorf("%w: %s: %s", ErrAuto, r.Auto.Mode, r.Auto.Reason)
}

// Mode finds a mode by its names.
func (r *Result) Mode(mode, attach string) (Mode, bool) {
	i := slices.IndexFunc(r.Modes, func(m Mode) bool { return m.Mode == mode && m.Attach == attach })
	if i < 0 {
		return Mode{}, false
	}
	return r.Modes[i], true
}

// Print is `usher probe`: it runs the probe and writes the result, for people or as JSON.
func Print(ctx context.Context, w io.Writer, asJSON bool, o Options) error {
	r := Run(ctx, o)
	if err := ctx.Err(); err != nil {
		return err
	}
	var err error
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else {
		err = r.WriteText(w)
	}
	return errors.Join(err, r.Err())
}
