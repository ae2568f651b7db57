package probe

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteText writes the result for people; its last line says what mode "auto" comes to.
func (r *Result) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Linux %s (%s), user id %d\n", r.Kernel, r.Arch, r.UID)

	t := newTable(&b, "REQUIREMENT", "STATE", "DETAIL")
	for _, c := range r.Checks {
		t.row(c.Name, c.words(), c.Detail)
	}
	t.row("load", string(r.Load.State), r.Load.text())
	t.end()

	if len(r.Load.Programs) > 0 {
		t = newTable(&b, "PROGRAM", "TYPE", "VERIFIED INSTRUCTIONS", "MACHINE CODE")
		for _, p := range r.Load.Programs {
			code := "none: it is interpreted, which is slow (net.core.bpf_jit_enable)"
			if p.JITed > 0 {
				code = fmt.Sprintf("%d B", p.JITed)
			}
			verified := "-"
			if p.Verified > 0 {
				verified = fmt.Sprint(p.Verified)
			}
			t.row(p.Name, p.Type, verified, code)
		}
		t.end()
	}

	t = newTable(&b, "MODE", "ATTACHED BY", "STATE", "DETAIL")
	for _, m := range r.Modes {
		t.row(m.Mode, cmp.Or(m.Attach, "-"), string(m.State), m.text())
	}
	t.end()

	if len(r.Interfaces) > 0 {
		t = newTable(&b, "INTERFACE", "DRIVER", "MTU", "MODE", "XDP", "WHY")
		for _, i := range r.Interfaces {
			mode := i.Mode
			if i.Attach != "" {
				mode += " by " + i.Attach
			}
			t.row(i.Name, cmp.Or(i.Driver, "-"), fmt.Sprint(i.MTU), mode, i.XDP, i.XDPReason)
		}
		t.end()
	}

	fmt.Fprintf(&b, "\n%s\n", strings.ReplaceAll(r.Auto.text(), "\n", "; "))
	_, err := io.WriteString(w, b.String())
	return err
}

func (c Check) words() string {
	switch {
	case c.State == Works:
		return "ok"
	case c.State == Untried:
		return "unknown"
	case len(c.Needed) == 0:
		return "absent"
	}
	return "missing"
}

func (l Load) text() string {
	if l.State != Works {
		return l.Reason
	}
	return fmt.Sprintf("%s in %.1f ms", count(len(l.Programs), "program"), l.MS)
}

func (m Mode) text() string {
	var parts []string
	if m.Reason != "" {
		parts = append(parts, m.Reason)
	}
	for _, t := range m.Trials {
		part := fmt.Sprintf("%s: %.1f MiB compared", t.Family, float64(t.Bytes)/(1<<20))
		if t.Packets > 0 {
			part += fmt.Sprintf(" through %s of the kernel's", count(int(t.Packets), "packet"))
		}
		parts = append(parts, part)
	}
	if m.Note != "" && m.State == Works {
		parts = append(parts, m.Note)
	}
	return strings.Join(parts, "; ")
}

func (a Auto) text() string {
	mode := a.Mode
	if a.Attach != "" {
		mode += " by " + a.Attach
	}
	switch a.State {
	case Fails:
		mode += ", which does not work"
	case Untried:
		mode += ", untried"
	}
	return fmt.Sprintf("auto chooses %s: %s", mode, a.Reason)
}

// table aligns columns; the last one is as long as it likes.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer, header ...string) table {
	fmt.Fprintln(w)
	t := table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(header...)
	return t
}

func (t table) row(cells ...string) {
	// Some errors have several lines.
	fmt.Fprintln(t, strings.ReplaceAll(strings.Join(cells, "\t"), "\n", "; "))
}

// end writes to a strings.Builder, which does not fail.
func (t table) end() { _ = t.Flush() }
