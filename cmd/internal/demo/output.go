package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"usher/cmd/internal/cli"
)

const (
	frameEvery = 250 * time.Millisecond
	lineEvery  = 4 * time.Second // of plain output, in a demo of a minute; shorter ones speak more often
)

// output shows the board on a terminal, as lines, or as one JSON object at the end.
type output struct {
	w      io.Writer
	o      cli.DemoOptions
	board  *board
	cancel context.CancelCauseFunc // nobody reads any more
	broken bool

	terminal *os.File // nil: lines or JSON
	color    bool
	drawn    int // lines of the last frame

	told  []state // acts as the lines have told them
	intro bool
	next  time.Time // of the next line about the site
}

func newOutput(w io.Writer, o cli.DemoOptions, b *board, cancel context.CancelCauseFunc) *output {
	out := &output{w: w, o: o, board: b, cancel: cancel}
	f, ok := w.(*os.File)
	if !ok || o.JSON || os.Getenv("TERM") == "dumb" {
		return out
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
		out.terminal = f
		out.color = os.Getenv("NO_COLOR") == ""
	}
	return out
}

// run shows until ctx ends.
func (o *output) run(ctx context.Context) {
	tick := time.NewTicker(frameEvery)
	defer tick.Stop()
	if o.terminal != nil {
		o.print("\x1b[?25l") // hide the cursor
	}
	for {
		o.show()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (o *output) show() {
	switch s := o.board.snapshot(); {
	case o.o.JSON:
	case o.terminal != nil:
		o.frame(s)
	default:
		o.lines(s)
	}
}

// finish shows the end and what all of it was worth.
func (o *output) finish() error {
	o.show()
	s := o.board.snapshot()
	if o.o.JSON {
		e := json.NewEncoder(o.w)
		e.SetIndent("", "  ")
		return e.Encode(s.summary())
	}
	if o.terminal != nil {
		o.print("\x1b[?25h")
	}
	if !s.built.IsZero() {
		o.print(fmt.Sprintf("\n %s\n", s.result()))
	}
	return nil
}

// print writes at once, so that a terminal never shows half a frame.
func (o *output) print(text string) {
	if o.broken {
		return
	}
	if _, err := io.WriteString(o.w, text); err != nil {
		o.broken = true
		o.cancel(fmt.Errorf("write the view: %w", err))
	}
}

// frame draws over the last one.
func (o *output) frame(s scene) {
	width, height := 80, 24
	if size, err := unix.IoctlGetWinsize(int(o.terminal.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 && size.Row > 0 {
		width, height = int(size.Col), int(size.Row)
	}
	// The cursor stays on the line below, which must not push the first one out.
	lines := s.screen(time.Now(), width, max(height-1, 1), o.color)
	var b bytes.Buffer
	if up := min(o.drawn, height-1); up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", up)
	}
	b.WriteByte('\r')
	for _, l := range lines {
		b.WriteString(l + "\x1b[K\r\n")
	}
	b.WriteString("\x1b[J")
	o.drawn = len(lines)
	o.print(b.String())
}

// lines tells what is new since the last time.
func (o *output) lines(s scene) {
	now := time.Now()
	say := func(at time.Time, format string, args ...any) {
		o.print(fmt.Sprintf("%6.1fs  %s\n", at.Sub(s.begin).Seconds(), fmt.Sprintf(format, args...)))
	}
	if s.built.IsZero() {
		return
	}
	if !o.intro {
		o.intro = true
		say(s.built, "%s, %s, mode %s, for %v", s.site, s.backends, s.kernel.Mode, s.o.For)
		if s.why != "" {
			say(s.built, "loopback: %s", s.why)
		}
		if s.kernel.Reason != "" {
			say(s.built, "mode %s: %s", s.kernel.Mode, s.kernel.Reason)
		}
		o.told = make([]state, len(s.acts))
		o.next = now.Add(o.pause())
	}
	for i, a := range s.acts {
		if a.state == o.told[i] {
			continue
		}
		if o.told[i] == waiting {
			say(a.begin, "%s %-*s  %s", marks[running].text, nameWidth, a.name, a.plan)
		}
		if a.state > running {
			say(a.begin.Add(a.took), "%s %-*s  %s", marks[a.state].text, nameWidth, a.name, a.text)
		}
		o.told[i] = a.state
	}
	if (now.After(o.next) || s.ended) && !s.sample.at.IsZero() {
		o.next = now.Add(o.pause())
		if s.ended {
			for _, l := range s.totals() {
				say(now, " %s", l.render(maxScreen, false))
			}
			return
		}
		say(now, "  %s", s.inALine())
	}
}

func (o *output) pause() time.Duration {
	return min(max(o.o.For/15, time.Second), lineEvery)
}

// inALine is the view for those without a terminal.
func (s *scene) inALine() string {
	c := &s.sample
	parts := []string{}
	var users []string
	for _, h := range c.hosts {
		if c.answer {
			users = append(users, fmt.Sprint(h.users))
		} else if h.seen {
			users = append(users, fmt.Sprint(h.seenUsers))
		}
	}
	if len(users) > 0 {
		parts = append(parts, "users "+strings.Join(users, "/"))
	}
	if c.answer {
		parts = append(parts, fmt.Sprintf("sessions %d (%s)", c.sessions.Total, strings.ReplaceAll(s.modes(), "   ", ", ")))
	} else {
		parts = append(parts, fmt.Sprintf("sessions %d", c.inside))
	}
	if s.kernel.Program != "" {
		parts = append(parts, fmt.Sprintf("kernel %s packets, %s/s", thousands(c.packets), thousands(uint64(c.packetRate))))
	}
	parts = append(parts, fmt.Sprintf("clients %s commands, %s/s, %s", thousands(c.commands), thousands(uint64(c.commandRate)), some(c.failed, "error")))
	usher := "usher " + c.daemon
	if c.alive {
		usher += fmt.Sprintf(", CPU %.1f %%, RSS %s", c.cpu, mebibytes(c.rss))
	}
	return strings.Join(append(parts, usher), " | ")
}
