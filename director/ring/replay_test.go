package ring

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"usher/director"

	"github.com/google/go-cmp/cmp"
)

// TestReplay plays what was recorded between a test peer and a real director of 2.3.19.1: the peer says the same
// as then, and our Ring, with the real Director, must answer what the real one did. The recordings are in
// testdata/transcripts; lines with "node" were added: what happened at the director itself. What differs on
// purpose stands in lines with "theirs" and "ours"; what cannot be the same is cleaned away, of both.
func TestReplay(t *testing.T) {
	for _, name := range []string{
		"ring-peer-behaviours", "ring-weak-user", "ring-flush-and-ping-timeout", "ring-hostname-and-stuck-weak", "ring-minor-versions",
	} {
		text, err := os.ReadFile(filepath.Join("testdata", "transcripts", name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		for i, part := range regexp.MustCompile(`(?m)^==.*$`).Split(string(text), -1) {
			if strings.TrimSpace(part) == "" || strings.Contains(part, "peer stops answering PING") {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", name, i), func(t *testing.T) { newReplay(t, part).run(part) })
		}
	}
}

// replay is one director, and the peer as a text.
type replay struct {
	t        *testing.T
	start    time.Time // of the recording
	ring     *Ring
	director *director.Director
	conns    map[string]Conn // IN: we connect; OUT: the peer connects
	names    map[Conn]string
	partial  map[Conn]string
	over     bool   // the recording ends before the connections do
	mute     bool   // the peer does not answer PINGs
	sync     string // our last SYNC
	request  uint64
	said     map[string][]string // by connection
	want     map[string][]string
	self     string
	capture  bool // recorded between real directors, not by a peer
	answers  []director.Effect
}

var (
	self = netip.MustParseAddrPort("127.0.1.1:9090")
	fake = netip.MustParseAddrPort("127.0.1.2:9090")

	aTime   = regexp.MustCompile(`^ *(\d+\.\d{3}) (.*)$`)
	aSaying = regexp.MustCompile(`^(d1|fake)->(IN|OUT) (.*)$`)
	stamp   = regexp.MustCompile(`17954\d{5}\b`)
)

func newReplay(t *testing.T, text string) *replay {
	// The first ME has the clock at about its moment.
	m := regexp.MustCompile(`(?m)^ *(\d+\.\d+) .*ME<TAB>127.0.1.\d<TAB>9090<TAB>(\d+)`).FindStringSubmatch(text)
	at, _ := strconv.ParseFloat(m[1], 64)
	unix, _ := strconv.ParseInt(m[2], 10, 64)
	r := &replay{
		t: t, start: time.Unix(unix, 0).Add(500*time.Millisecond - time.Duration(at*1e9)).UTC(),
		conns: map[string]Conn{}, names: map[Conn]string{}, partial: map[Conn]string{},
		said: map[string][]string{}, want: map[string][]string{}, self: "127.0.1.1",
	}
	expire := 15 * time.Minute
	if m := regexp.MustCompile(`node expire (\S+)`).FindStringSubmatch(text); m != nil {
		expire, _ = time.ParseDuration(m[1])
	}
	r.director = director.New(director.Config{
		Ring: true, UserExpire: expire, KickDelay: 2 * time.Second, FlushCommand: strings.Contains(text, "node flushed"),
	})
	r.ring = New(Config{Self: self, Members: []netip.AddrPort{self, fake}}, r.director)
	r.configure(text)
	return r
}

// configure puts the hosts of lines "node configured ADDRESS WEIGHT [TAG NAME]".
func (r *replay) configure(text string) (found bool) {
	for _, m := range regexp.MustCompile(`node configured (\S+) (\d+) ?(\S*) ?(\S*)`).FindAllStringSubmatch(text, -1) {
		weight, _ := strconv.Atoi(m[2])
		r.step(r.start, director.HostPut{Configured: true, Host: director.Host{
			Addr: netip.MustParseAddr(m[1]), Weight: weight, Tag: m[3], Name: m[4],
		}})
		found = true
	}
	return found
}

func (r *replay) step(now time.Time, ev director.Event) { r.carry(now, r.ring.Step(now, ev)) }
func (r *replay) hear(now time.Time, ev Event)          { r.carry(now, r.ring.Hear(now, ev)) }

// carry collects what our side says, and answers PINGs, which the recordings do as they like.
func (r *replay) carry(now time.Time, out []director.Effect) {
	r.answers = append(r.answers, out...)
	for _, a := range r.ring.Actions() {
		switch a := a.(type) {
		case Connect:
			name := "IN" // as the recording peer calls it
			if r.capture {
				name = "to " + a.Remote.Addr().String()
			}
			r.conns[name], r.names[a.Conn] = a.Conn, name
		case Close:
			if !r.over {
				r.said[r.names[a.Conn]] = append(r.said[r.names[a.Conn]], "[EOF]")
			}
		case Send:
			text := r.partial[a.Conn] + string(a.Data)
			i := strings.LastIndexByte(text, '\n') + 1
			text, r.partial[a.Conn] = text[:i], text[i:]
			for line := range strings.Lines(text) {
				name := r.names[a.Conn]
				if strings.HasPrefix(line, "SYNC\t"+r.self+"\t") {
					r.sync = line
				}
				r.said[name] = append(r.said[name], r.normal(strings.TrimSuffix(line, "\n")))
				if strings.HasPrefix(line, "PING\t") && !r.mute {
					r.hear(now, Received{Conn: a.Conn, Data: []byte("PONG\t0\t0\n")})
				}
			}
		}
	}
}

// normal is a line without what is not the same each time: times, the numbers of our SYNCs, and what we tell
// Ushers.
func (r *replay) normal(line string) string {
	line, _, _ = strings.Cut(line, "\tusher=")
	line = stamp.ReplaceAllString(line, "NOW")
	if f := strings.Split(line, "\t"); f[0] == "SYNC" && f[1] == r.self {
		f[3] = "SEQ"
		line = strings.Join(f, "\t")
	}
	return line
}

func (r *replay) run(text string) {
	now := r.start
	for _, row := range strings.Split(text, "\n") {
		m := aTime.FindStringSubmatch(row)
		if m == nil {
			continue
		}
		if m[2] == "node stop" {
			break
		}
		seconds, _ := strconv.ParseFloat(m[1], 64)
		r.until(now, r.start.Add(time.Duration(seconds*1e9)))
		now = r.start.Add(time.Duration(seconds * 1e9))
		r.row(now, strings.ReplaceAll(m[2], "<TAB>", "\t"))
	}
	for _, name := range []string{"IN", "OUT"} {
		if d := cmp.Diff(quiet(r.want[name]), quiet(r.said[name])); d != "" {
			r.t.Errorf("connection %s (-the real director, +ours):\n%s", name, d)
		}
	}
}

// quiet leaves out the signs of life, and what is said twice: how often is a matter of time.
func quiet(lines []string) []string {
	var out []string
	for _, l := range lines {
		again := len(out) > 0 && out[len(out)-1] == l
		if strings.HasPrefix(l, "P") || again && (strings.HasPrefix(l, "SYNC\t127.0.1.1") || strings.HasPrefix(l, "USER\t")) {
			continue
		}
		out = append(out, l)
	}
	return out
}

// until lets time pass.
func (r *replay) until(now, end time.Time) {
	for {
		next := r.ring.Next()
		if next.IsZero() || !next.Before(end) || !r.ring.started {
			return
		}
		if next.Before(now) {
			next = now
		}
		now = next
		r.step(now, director.Tick{})
	}
}

func (r *replay) row(now time.Time, row string) {
	row = strings.TrimPrefix(row, "ours ")
	switch {
	case row == "IN [accepted]":
		r.step(now, director.Tick{})
		r.hear(now, Connected{Conn: r.conns["IN"]})
	case row == "OUT [connected]":
		id := r.ring.NextConn()
		r.conns["OUT"], r.names[id] = id, "OUT"
		r.hear(now, Accepted{Conn: id, Remote: netip.AddrPortFrom(fake.Addr(), 40000)})
	case strings.HasSuffix(row, "[EOF from d1]"):
		name, _, _ := strings.Cut(row, " ")
		r.want[name] = append(r.want[name], "[EOF]")
	case strings.HasPrefix(row, "theirs "):
		return
	case strings.HasPrefix(row, "node "):
		r.node(now, strings.Fields(row)[1:])
	}
	m := aSaying.FindStringSubmatch(row)
	if m == nil {
		return
	}
	who, name, line := m[1], m[2], m[3]
	switch {
	case who == "d1":
		r.want[name] = append(r.want[name], r.normal(line))
	case strings.HasPrefix(line, "PONG\t"):
	case strings.HasPrefix(line, "SYNC\t127.0.1.1\t"):
		r.hear(now, Received{Conn: r.conns[name], Data: []byte(r.sync)}) // ours, as it was
	default:
		r.hear(now, Received{Conn: r.conns[name], Data: []byte(line + "\n")})
	}
}

// node does what somebody did at the director itself.
func (r *replay) node(now time.Time, f []string) {
	key := func() director.Key { return r.director.KeyOf(f[1], "") }
	r.request++
	switch f[0] {
	case "expire", "configured":
	case "mute":
		r.mute = true
	case "lookup": // and what came of it, if it is said
		r.answers = nil
		r.step(now, director.Lookup{Request: r.request, User: f[1]})
		r.answered(f[2:])
	case "later": // answers a lookup that had to wait
		r.answered(f[1:])
		r.answers = nil
	case "move":
		r.step(now, director.Move{ID: r.request, User: f[1], To: netip.MustParseAddr(f[2])})
	case "kick":
		r.step(now, director.Kick{ID: r.request, User: f[1]})
	case "kickalt":
		r.step(now, director.KickAlt{ID: r.request, Field: f[1], Value: f[2]})
	case "put":
		weight, _ := strconv.Atoi(f[2])
		h := director.Host{Addr: netip.MustParseAddr(f[1]), Weight: weight}
		for _, s := range r.director.HostStates() {
			if s.Host.Addr == h.Addr {
				h.Tag, h.Name = s.Host.Tag, s.Host.Name
			}
		}
		r.step(now, director.HostPut{Host: h})
	case "down":
		r.step(now, director.HostUp{Addr: netip.MustParseAddr(f[1])})
	case "flush":
		r.step(now, director.HostFlush{ID: r.request, Addr: netip.MustParseAddr(f[1])})
	case "flushed":
		r.step(now, director.Flushed{Key: key(), OK: true})
	case "remove":
		effects, _ := r.ring.Remove(now, netip.MustParseAddrPort(f[1]))
		r.carry(now, effects)
	case "quit":
		r.over = true
		r.ring.Quit(now)
		r.carry(now, nil)
	default:
		r.t.Fatalf("what is %q?", f)
	}
}

// answered checks the last answer to a Lookup: a host, "waits" or "refused".
func (r *replay) answered(want []string) {
	if len(want) == 0 {
		return
	}
	got := "waits"
	for _, e := range r.answers {
		switch e := e.(type) {
		case director.Assigned:
			got = e.Host.Addr.String()
		case director.Refused:
			got = "refused"
		}
	}
	if got != want[0] {
		r.t.Errorf("the lookup is answered by %s, want %s", got, want[0])
	}
}
