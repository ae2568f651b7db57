package ring

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"usher/director"

	"github.com/google/go-cmp/cmp"
)

// TestCaptures puts our director in the place of one of the real ones in what was captured between them: it gets
// what that one got, and must say what that one said.
func TestCaptures(t *testing.T) {
	for _, row := range []struct {
		file  string
		seats []int
		whole bool // it begins in a ring of three that is synced
	}{
		{"ring-handshake-two-directors", []int{1, 2}, false},
		{"ring-third-director-joins", []int{3}, false},
		{"ring-admin-changes", []int{2, 3}, true},
		{"ring-move-kick-with-live-sessions", []int{2, 3}, true},
	} {
		text, err := os.ReadFile(filepath.Join("testdata", "transcripts", row.file+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		for _, seat := range row.seats {
			t.Run(fmt.Sprintf("%s/%d", row.file, seat), func(t *testing.T) {
				r := newCapture(t, seat, string(text))
				if row.whole {
					r.bringUp(seat, string(text))
				}
				r.runCapture(string(text))
			})
		}
	}
}

func newCapture(t *testing.T, seat int, text string) *replay {
	unix, _ := strconv.ParseInt(stamp.FindString(text), 10, 64)
	r := &replay{
		t: t, start: time.Unix(unix, 0).Add(500 * time.Millisecond).UTC(), self: addrOf(seat).Addr().String(), capture: true,
		conns: map[string]Conn{}, names: map[Conn]string{}, partial: map[Conn]string{},
		said: map[string][]string{}, want: map[string][]string{},
	}
	r.director = director.New(director.Config{Ring: true, KickDelay: 2 * time.Second})
	r.ring = New(Config{Self: addrOf(seat), Members: []netip.AddrPort{addrOf(1), addrOf(2), addrOf(3)}}, r.director)
	if !r.configure(text) {
		for i := 1; i <= 4; i++ {
			r.configure(fmt.Sprintf("node configured 127.0.2.%d 100", i))
		}
	}
	return r
}

// bringUp makes the ring of three that was there before the capture began.
func (r *replay) bringUp(seat int, text string) {
	right, left := addrOf(seat%3+1), addrOf((seat+1)%3+1)
	now := r.start
	r.step(now, director.Tick{})
	out := r.conns["to "+right.Addr().String()]
	r.hear(now, Connected{Conn: out})
	r.hear(now, Received{Conn: out, Data: fmt.Appendf(nil, "VERSION\tdirector\t1\t9\nME\t%v\t9090\t%d\nDONE\n", right.Addr(), now.Unix())})
	var users []byte
	for _, m := range regexp.MustCompile(`node known (\d+) (\S+)`).FindAllStringSubmatch(text, -1) {
		users = fmt.Appendf(users, "U\t%s\t%s\t%d\n", m[1], m[2], now.Unix()-1)
	}
	in := r.accept(now, left.Addr().String())
	r.hear(now, Received{Conn: in, Data: fmt.Appendf(nil, "VERSION\tdirector\t1\t9\nME\t%v\t9090\t%d\n"+
		"HOST-HAND-START\t0\nHOST-HAND-END\t0\n%sOPTIONS\tconsistent-hashing\nDONE\n", left.Addr(), now.Unix(), users)})
	r.hear(now, Received{Conn: in, Data: []byte(r.sync)})
	if !r.ring.synced {
		r.t.Fatal("it is not synced")
	}
	clear(r.said)
}

func (r *replay) accept(now time.Time, from string) Conn {
	id := r.ring.NextConn()
	r.conns["from "+from], r.names[id] = id, "from "+from
	r.hear(now, Accepted{Conn: id, Remote: netip.AddrPortFrom(netip.MustParseAddr(from), 40000)})
	return id
}

var aPacket = regexp.MustCompile(`^(127\.0\.1\.\d):(\d+) -> (127\.0\.1\.\d):(\d+) (?:\| )?(.*)$`)

func (r *replay) runCapture(text string) {
	now := r.start
	for _, row := range strings.Split(text, "\n") {
		m := aTime.FindStringSubmatch(row)
		if m == nil {
			continue
		}
		seconds, _ := strconv.ParseFloat(m[1], 64)
		r.until(now, r.start.Add(time.Duration(seconds*1e9)))
		now = r.start.Add(time.Duration(seconds * 1e9))
		if !r.ring.started {
			r.step(now, director.Tick{})
		}
		if node, ok := strings.CutPrefix(m[2], r.self+" node "); ok {
			r.node(now, strings.Fields(node))
			continue
		}
		if p := aPacket.FindStringSubmatch(m[2]); p != nil {
			r.packet(now, p[1], p[2], p[3], strings.ReplaceAll(p[5], "<TAB>", "\t"))
		}
	}
	for name := range r.want {
		want, wantSyncs := divide(r.want[name])
		said, saidSyncs := divide(r.said[name])
		if d := cmp.Diff(want, said); d != "" {
			r.t.Errorf("%s (-the real director, +ours):\n%s", name, d)
		}
		if d := cmp.Diff(wantSyncs, saidSyncs); d != "" {
			r.t.Errorf("SYNCs %s (-the real director, +ours):\n%s", name, d)
		}
	}
}

// divide takes the SYNCs from what was said. They are sent once per block of input, and nobody knows how the lines came
// in blocks; so only their values count: whose they are, and for which hosts.
func divide(lines []string) (rest, syncs []string) {
	for _, l := range quiet(lines) {
		if strings.HasPrefix(l, "SYNC\t") {
			f := strings.Split(l, "\t")
			syncs = append(syncs, f[1]+" "+f[6])
		} else {
			rest = append(rest, l)
		}
	}
	slices.Sort(syncs)
	return rest, slices.Compact(syncs)
}

// packet is a line or an event of the capture, between two directors.
func (r *replay) packet(now time.Time, from, fromPort, to, what string) {
	out := fromPort != "9090" // the sender has made the connection
	switch {
	case from == r.self && out:
		switch what {
		case "[SYN]":
			if _, ok := r.conns["to "+to]; !ok {
				r.t.Errorf("%v: it should connect to %s", now.Sub(r.start), to)
			}
		case "[FIN]":
		default:
			r.want["to "+to] = append(r.want["to "+to], r.normal(what))
		}
	case from == r.self:
		if !strings.HasPrefix(what, "[") {
			r.want["from "+to] = append(r.want["from "+to], r.normal(what))
		}
	case to != r.self:
	case out && what == "[SYN]":
		r.accept(now, from)
	case what == "[SYN/ACK]":
		r.hear(now, Connected{Conn: r.conns["to "+from]})
	case what == "[RST]":
		r.hear(now, Closed{Conn: r.conns["to "+from], Err: errors.New("connection refused")})
	case what == "[FIN]" || strings.HasPrefix(what, "PONG"):
	case strings.HasPrefix(what, "SYNC\t"+r.self+"\t"):
		r.hear(now, Received{Conn: r.conns["from "+from], Data: []byte(r.sync)})
	case out:
		r.hear(now, Received{Conn: r.conns["from "+from], Data: []byte(what + "\n")})
	default:
		r.hear(now, Received{Conn: r.conns["to "+from], Data: []byte(what + "\n")})
	}
}
