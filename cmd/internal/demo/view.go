package demo

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// The screen. Lines are made of pieces with a style, so that they can be cut to the width of the terminal.

type style string

// Styles are ANSI SGR parameters.
const (
	plain  style = ""
	bold   style = "1"
	faint  style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

type piece struct {
	text  string
	style style
}

type line []piece

func (l line) add(s style, format string, args ...any) line {
	return append(l, piece{fmt.Sprintf(format, args...), s})
}

// to fills up with blanks to a column.
func (l line) to(column int) line {
	if n := column - l.len(); n > 0 {
		return l.add(plain, "%*s", n, "")
	}
	return l
}

func (l line) len() (n int) {
	for _, p := range l {
		n += utf8.RuneCountInString(p.text)
	}
	return n
}

// render makes the line at most width columns wide.
func (l line) render(width int, color bool) string {
	var b strings.Builder
	for _, p := range l {
		text := []rune(p.text)
		text = text[:min(len(text), width)]
		width -= len(text)
		if len(text) == 0 {
			continue
		}
		if color && p.style != plain {
			fmt.Fprintf(&b, "\x1b[%sm%s\x1b[0m", p.style, string(text))
		} else {
			b.WriteString(string(text))
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// Columns of the screen.
const (
	margin    = 1
	labels    = margin + nameWidth + 4
	barWidth  = 22
	maxScreen = 100 // wider lines are hard to read
)

// screen is the whole view in at most height lines.
func (c *scene) screen(now time.Time, width, height int, color bool) []string {
	width = min(width, maxScreen)
	lines := []line{c.title(now, width)}
	if !c.built.IsZero() {
		lines = c.body(lines, width, false)
		if len(lines)+len(c.acts) > height {
			lines = c.body(lines[:1], width, true)
		}
		lines = append(lines, c.actLines(max(height-len(lines), 1), width)...)
	}
	lines = lines[:min(len(lines), height)]
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = l.render(width, color)
	}
	return out
}

// body is what stands between title and acts; tight when there is little room for those.
func (c *scene) body(lines []line, width int, tight bool) []line {
	gap := func() {
		if !tight {
			lines = append(lines, nil)
		}
	}
	for _, r := range []struct{ name, text string }{{"loopback", c.why}, {"mode " + c.kernel.Mode, c.kernel.Reason}} {
		if r.text == "" {
			continue
		}
		said := wrap(r.text, width-labels)
		if tight {
			said = []string{cut(r.text, width-labels)}
		}
		for i, part := range said {
			l := line{}
			if i == 0 {
				l = l.add(faint, " %s", r.name)
			}
			lines = append(lines, l.to(labels).add(yellow, "%s", part))
		}
	}
	gap()
	lines = append(lines, c.hostLines()...)
	gap()
	lines = append(lines, c.factLines()...)
	return append(lines, nil)
}

func (c *scene) title(now time.Time, width int) line {
	l := line{}.add(bold, " Usher")
	if c.built.IsZero() {
		return l.add(faint, "  builds a site")
	}
	l = l.add(plain, "  %s, %s, mode ", c.site, c.backends).add(bold, "%s", c.kernel.Mode)
	at := fmt.Sprintf("%s of %s", clock(min(now.Sub(c.begin), c.o.For)), clock(c.o.For))
	if c.ended {
		at = "took " + clock(now.Sub(c.begin))
	}
	return l.add(plain, "  ").to(width-len(at)-1).add(faint, "%s", at)
}

// wrap breaks text at blanks.
func wrap(text string, width int) (lines []string) {
	now := ""
	for _, word := range strings.Fields(text) {
		if now != "" && utf8.RuneCountInString(now)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, now)
			now = ""
		}
		if now != "" {
			now += " "
		}
		now += word
	}
	return append(lines, now)
}

// bar draws n of most in eighths of a cell.
func bar(n, most, width int) string {
	if most == 0 {
		return ""
	}
	eighths := n * width * 8 / most
	b := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		b += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return b
}

func (c *scene) hostLines() []line {
	const users, sessions, seen = labels + 6, labels + 6 + 2 + barWidth + 9, labels + 6 + 2 + barWidth + 9 + 10
	head := line{}.add(faint, " backend").to(users-5).add(faint, "users").to(sessions-8).add(faint, "sessions")
	hosts, answer := c.sample.hosts, c.sample.answer
	if c.ended {
		hosts, answer = c.peak.hosts, true
	}
	if len(hosts) > 0 && hosts[0].seen {
		head = head.to(seen-7).add(faint, "it sees")
	}
	lines := []line{head}
	most := 1
	for _, h := range hosts {
		most = max(most, h.users, h.seenUsers)
	}
	for _, h := range hosts {
		l := line{}.add(plain, " %v", h.addr)
		number := func(column, n int, known bool) {
			text := "–"
			if known {
				text = fmt.Sprint(n)
			}
			l = l.to(column-utf8.RuneCountInString(text)).add(plain, "%s", text)
		}
		length, look := h.users, cyan
		if !answer { // what the backend itself says is as good
			length, look = h.seenUsers, faint
		}
		number(users, h.users, answer)
		l = l.add(plain, "  ").add(look, "%s", bar(length, most, barWidth))
		number(sessions, h.sessions, answer)
		if h.seen {
			number(seen, h.seenSessions, true)
		}
		l = l.to(seen + 2)
		switch {
		case !answer || c.ended:
		case !h.up:
			l = l.add(yellow, "down")
		case h.weight != 100:
			l = l.add(yellow, "weight %d", h.weight)
		default:
			l = l.add(green, "up")
		}
		lines = append(lines, l)
	}
	return lines
}

func fact(name string) line { return line{}.add(faint, " %s", name).to(labels) }

func (c *scene) factLines() []line {
	s := &c.sample
	if c.ended {
		return c.totals()
	}
	sessions := fact("sessions")
	if s.answer {
		sessions = sessions.add(bold, "%d", s.sessions.Total).add(plain, "   %s", c.modes())
	} else {
		sessions = sessions.add(bold, "%d", s.inside).add(plain, "   by the clients' count")
	}
	kernel := fact("kernel")
	switch {
	case c.kernel.Program == "":
		kernel = kernel.add(plain, "no part in it")
	case s.estimated:
		kernel = kernel.add(bold, "%s", thousands(s.packets)).add(plain, " packets, %s/s, counted at the interfaces", thousands(uint64(s.packetRate)))
	default:
		kernel = kernel.add(bold, "%s", thousands(s.packets)).add(plain, " packets forwarded, %s/s, %s", thousands(uint64(s.packetRate)), mebibytes(s.bytes))
	}
	clients := fact("clients").add(bold, "%s", thousands(s.commands)).
		add(plain, " commands answered and checked, %s/s, ", thousands(uint64(s.commandRate))).errors(s.failed)
	usher := fact("usher")
	if s.alive {
		usher = usher.add(plain, "%s   CPU ", s.daemon).add(bold, "%.1f %%", s.cpu).add(plain, "   RSS ").add(bold, "%s", mebibytes(s.rss))
	} else {
		usher = usher.add(yellow, "%s", s.daemon)
	}
	return []line{sessions, kernel, clients, usher}
}

func (l line) errors(n int) line {
	if n == 0 {
		return l.add(green, "0 errors")
	}
	return l.add(red, "%s", some(n, "error"))
}

// totals are the facts about the whole time, for the screen that stays.
func (c *scene) totals() []line {
	kernel := fact("kernel")
	if c.kernel.Program == "" {
		kernel = kernel.add(plain, "no part in it")
	} else {
		kernel = kernel.add(bold, "%s", thousands(c.sample.packets)).add(plain, " packets forwarded")
	}
	return []line{
		fact("sessions").add(bold, "%d", c.peak.sessions).add(plain, " at the same time"),
		kernel,
		fact("clients").add(bold, "%s", thousands(c.sample.commands)).add(plain, " commands answered and checked, ").errors(c.sample.failed),
		fact("usher").add(plain, "CPU ").add(bold, "%.1f s", c.peak.cpuTime.Seconds()).add(plain, " in all, at most %.1f %%", c.peak.cpu).
			add(plain, "   RSS at most ").add(bold, "%s", mebibytes(c.peak.rss)),
	}
}

// modes counts the sessions by mode; those before login only while there are some.
func (c *scene) modes() string {
	n := c.sample.sessions
	text := ""
	for _, m := range []struct {
		name string
		n    int
	}{{"xdp", n.XDP}, {"tc", n.TC}, {"splice", n.Splice}, {"copy", n.Copy}, {"before login", n.Prelogin}} {
		if m.n > 0 || m.name == c.kernel.Mode {
			text += fmt.Sprintf("%s %d   ", m.name, m.n)
		}
	}
	return strings.TrimRight(text, " ")
}

// marks of the states.
var marks = map[state]piece{
	waiting: {"·", faint},
	running: {"▸", yellow},
	passed:  {"✓", green},
	wrong:   {"✗", red},
	broken:  {"–", yellow},
}

// actLines shows the acts around the present one when there is no room for all.
func (c *scene) actLines(room, width int) (lines []line) {
	now := 0
	for i, a := range c.acts {
		l := line{}.add(plain, " ")
		l = append(l, marks[a.state])
		name, text := bold, plain
		switch a.state {
		case waiting:
			name, text = faint, faint
		case wrong:
			text = red
		case running:
			name = yellow
		}
		l = l.add(plain, " ").add(name, "%s", a.name).to(labels)
		if a.state != waiting {
			said := a.text
			if a.state == running {
				said = a.plan
			}
			l = l.add(text, "%s", cut(said, width-labels))
			now = i
		}
		lines = append(lines, l)
	}
	if len(lines) > room {
		first := min(max(now-room+2, 0), len(lines)-room)
		lines = lines[first : first+room]
	}
	return lines
}

// cut shortens text visibly.
func cut(text string, width int) string {
	if r := []rune(text); len(r) > max(width, 1) {
		return string(r[:max(width, 1)-1]) + "…"
	}
	return text
}
