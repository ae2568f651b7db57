package ring

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"usher/director"
	"usher/director/ring/wire"

	"github.com/cockroachdb/datadriven"
)

// TestScenarios plays testdata/*.txt: one director of a ring, as its neighbours see it. Directors are numbers:
// 2 is 127.0.1.2, port 9090, and stands as @2 in lines. TABs stand as |. NOW is the present unix time, HASH that of
// our hosts. A connection is called to2 or from2 by who made it.
//
//	director self=1 members=(1,2,3) [hosts=(…)]   a new one; it is started
//	whole left=3 right=2 [minor=…] [usher]        gives it both neighbours, and lets it be synced
//	accept 3 / connected 2 / refused 2 / closed from3
//	hear from3                                     the lines below come in, as one block
//	wait 5s [quiet]                                time passes; neighbours answer PINGs unless mute
//	mute / step … / add 4 / remove 3 / status / left-right
//
// The output is what the Ring wants, then what its director heard that is worth telling.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/scenarios", func(t *testing.T, path string) {
		var s *scenario
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "director" {
				s = newScenario(t, d)
			}
			s.t = t
			return s.run(d)
		})
	})
	files, _ := filepath.Glob("testdata/scenarios/*.txt")
	if len(files) < 5 {
		t.Errorf("only %d files", len(files))
	}
}

type scenario struct {
	t     *testing.T
	now   time.Time
	ring  *Ring
	fake  *fakeDirector
	names map[Conn]string
	conns map[string]Conn
	mute  bool
	out   []string
}

func newScenario(t *testing.T, d *datadriven.TestData) *scenario {
	var self int
	members, hosts := []string{}, []string{"127.0.2.1", "127.0.2.2"}
	d.ScanArgs(t, "self", &self)
	for _, arg := range d.CmdArgs {
		switch arg.Key {
		case "members":
			members = arg.Vals
		case "hosts":
			hosts = arg.Vals
		}
	}
	s := &scenario{t: t, now: epoch, fake: newFake(hosts...), names: map[Conn]string{}, conns: map[string]Conn{}}
	config := Config{Self: addrOf(self)}
	for _, m := range members {
		n, _ := strconv.Atoi(m)
		config.Members = append(config.Members, addrOf(n))
	}
	s.ring = newRing(config, s.fake)
	return s
}

func (s *scenario) run(d *datadriven.TestData) string {
	s.out = nil
	heard, state := len(s.fake.heard), s.fake.state
	arg := func(i int) string { return d.CmdArgs[i].Key }
	switch d.Cmd {
	case "director":
		s.step(director.Tick{})
	case "whole":
		s.whole(d)
		s.out, heard, state = nil, len(s.fake.heard), s.fake.state
	case "accept":
		s.accept(arg(0))
	case "connected":
		s.hear(Connected{Conn: s.conns["to"+arg(0)]})
	case "refused":
		s.hear(Closed{Conn: s.conns["to"+arg(0)], Err: errors.New("connection refused")})
	case "closed":
		s.hear(Closed{Conn: s.conns[arg(0)]})
	case "hear":
		id, ok := s.conns[arg(0)]
		if !ok {
			s.t.Fatalf("%s: no connection %q", d.Pos, arg(0))
		}
		s.hear(Received{Conn: id, Data: []byte(s.decode(d.Input) + "\n")})
	case "wait":
		duration, err := time.ParseDuration(arg(0))
		if err != nil {
			s.t.Fatal(err)
		}
		s.wait(duration)
	case "mute":
		s.mute = true
	case "say": // the health check
		s.step(director.HealthSay{Host: netip.MustParseAddr(arg(0)), Up: arg(1) == "up"})
	case "put":
		weight, _ := strconv.Atoi(arg(1))
		s.step(director.HostPut{Host: director.Host{Addr: netip.MustParseAddr(arg(0)), Weight: weight}})
	case "use": // a user
		hash, _ := strconv.Atoi(arg(0))
		s.step(director.Active{Key: director.Key{Hash: uint32(hash)}})
	case "add":
		n, _ := strconv.Atoi(arg(0))
		s.carry(s.ring.Add(s.now, addrOf(n)))
	case "remove":
		n, _ := strconv.Atoi(arg(0))
		effects, ok := s.ring.Remove(s.now, addrOf(n))
		s.carry(effects)
		if !ok {
			s.out = append(s.out, "there is none")
		}
	case "status":
		s.status()
	default:
		s.t.Fatalf("%s: what is %s?", d.Pos, d.Cmd)
	}
	if s.fake.state != state {
		s.out = append(s.out, fmt.Sprintf("director: %+v", s.fake.state))
	}
	for _, ev := range s.fake.heard[heard:] {
		s.out = append(s.out, "director: "+strings.TrimPrefix(fmt.Sprintf("%T%+v", ev, ev), "director."))
	}
	if len(s.out) == 0 {
		return "nothing\n"
	}
	return strings.Join(s.out, "\n") + "\n"
}

func (s *scenario) step(ev director.Event) { s.carry(s.ring.Step(s.now, ev)) }
func (s *scenario) hear(ev Event)          { s.carry(s.ring.Hear(s.now, ev)) }

func (s *scenario) accept(from string) {
	n, _ := strconv.Atoi(from)
	id := s.ring.NextConn()
	s.conns["from"+from], s.names[id] = id, "from"+from
	s.hear(Accepted{Conn: id, Remote: netip.AddrPortFrom(addrOf(n).Addr(), 40000)})
}

func (s *scenario) carry(effects []director.Effect) {
	for _, a := range s.ring.Actions() {
		switch a := a.(type) {
		case Connect:
			name := fmt.Sprint("to", a.Remote.Addr().As4()[3])
			s.conns[name], s.names[a.Conn] = a.Conn, name
			s.out = append(s.out, name+" connect")
		case Send:
			ping := false
			for line := range strings.Lines(string(a.Data)) {
				s.out = append(s.out, s.names[a.Conn]+" > "+s.encode(strings.TrimSuffix(line, "\n")))
				ping = ping || strings.HasPrefix(line, "PING")
			}
			s.hear(Written{Conn: a.Conn, Bytes: len(a.Data)})
			if ping && !s.mute {
				s.hear(Received{Conn: a.Conn, Data: []byte("PONG\t0\t0\n")})
			}
		case Close:
			s.out = append(s.out, s.names[a.Conn]+" close: "+a.Reason)
		case Log:
			s.out = append(s.out, fmt.Sprintf("%s: %v: %s", [...]string{"info", "warning", "error"}[a.Level], a.Remote.Addr(), s.encode(a.Text)))
		}
	}
	for _, e := range effects {
		s.out = append(s.out, "node: "+strings.TrimPrefix(fmt.Sprintf("%T%+v", e, e), "director."))
	}
}

func (s *scenario) wait(d time.Duration) {
	end := s.now.Add(d)
	for {
		next := s.ring.Next()
		if next.IsZero() || next.After(end) {
			s.now = end
			return
		}
		if next.After(s.now) {
			s.now = next
			s.out = append(s.out, fmt.Sprintf("-- %v", d-end.Sub(next)))
		}
		n := len(s.out)
		s.step(director.Tick{})
		// Signs of life that are answered are not worth telling.
		if len(s.out) > n && !slices.ContainsFunc(s.out[n:], func(l string) bool { return s.mute || !strings.Contains(l, " > PING|") }) {
			s.out = s.out[:n]
		}
		if len(s.out) == n && n > 0 && strings.HasPrefix(s.out[n-1], "-- ") {
			s.out = s.out[:n-1]
		}
	}
}

// whole lets the neighbours be as they should be.
func (s *scenario) whole(d *datadriven.TestData) {
	var left, right string
	minor, mark := wire.Minor, ""
	d.ScanArgs(s.t, "left", &left)
	d.ScanArgs(s.t, "right", &right)
	d.MaybeScanArgs(s.t, "minor", &minor)
	if d.HasArg("usher") {
		mark = "|usher=1"
	}
	hello := func(who string) string { return fmt.Sprintf("VERSION|director|1|%d\nME|@%s|NOW%s\n", minor, who, mark) }
	s.hear(Connected{Conn: s.conns["to"+right]})
	s.hear(Received{Conn: s.conns["to"+right], Data: []byte(s.decode(hello(right) + "DONE\n"))})
	s.accept(left)
	s.hear(Received{Conn: s.conns["from"+left], Data: []byte(s.decode(hello(left) + "HOST-HAND-START|0\nHOST-HAND-END|0\nOPTIONS|consistent-hashing\nDONE\n"))})
	s.hear(Received{Conn: s.conns["from"+left], Data: []byte(s.decode(fmt.Sprintf("SYNC|@1|%d|9|NOW|HASH\n", s.ring.sync.seq)))})
	if !s.ring.synced {
		s.t.Fatalf("%s: not whole:\n%s", d.Pos, strings.Join(s.out, "\n"))
	}
}

func (s *scenario) status() {
	st := s.ring.Status(s.now)
	s.out = append(s.out, fmt.Sprintf("handshaked %v, synced %v, minor %d, silent %v", st.Handshaked, st.Synced, st.Minor, st.Silent))
	for _, m := range st.Directors {
		line := fmt.Sprint(m.Addr.Addr())
		if m.Removed {
			line += " removed"
		}
		if m.Usher {
			line += " usher"
		}
		if !m.LastFailed.IsZero() {
			line += " failed"
		}
		if m.ClockDiff != 0 {
			line += fmt.Sprintf(" clock %v", m.ClockDiff)
		}
		if m.LastError != "" {
			line += fmt.Sprintf(" (%s)", m.LastError)
		}
		s.out = append(s.out, line)
	}
	for _, c := range st.Conns {
		s.out = append(s.out, fmt.Sprintf("%s %s %s, %d users, %d bytes to write", s.names[c.Conn], c.Role, c.State, c.Users, c.Queued))
	}
}

var (
	anAddr = regexp.MustCompile(`127\.0\.1\.(\d+)([|\t])9090`)
	aNow   = regexp.MustCompile(`NOW([+-]\d+)?`)
	aLife  = regexp.MustCompile(`usher=\d{13}`)
	aStamp = regexp.MustCompile(`17954\d{5}`)
)

// decode makes lines of what stands in a scenario.
func (s *scenario) decode(text string) string {
	text = aNow.ReplaceAllStringFunc(text, func(now string) string {
		n, _ := strconv.ParseInt(strings.TrimPrefix(now, "NOW"), 10, 64)
		return fmt.Sprint(s.now.Unix() + n)
	})
	text = regexp.MustCompile(`@(\d+)`).ReplaceAllString(text, "127.0.1.$1|9090")
	text = strings.ReplaceAll(text, "|HASH", "|"+fmt.Sprint(s.fake.HostsHash()))
	return strings.ReplaceAll(text, "|", "\t")
}

// encode is the reverse.
func (s *scenario) encode(text string) string {
	text = strings.ReplaceAll(text, "\t", "|")
	text = anAddr.ReplaceAllString(text, "@$1")
	text = strings.ReplaceAll(text, fmt.Sprint(s.fake.HostsHash()), "HASH")
	text = aLife.ReplaceAllString(text, "usher=LIFE")
	return aStamp.ReplaceAllStringFunc(text, func(stamp string) string {
		n, _ := strconv.ParseInt(stamp, 10, 64)
		if n == s.now.Unix() {
			return "NOW"
		}
		return fmt.Sprintf("NOW%+d", n-s.now.Unix())
	})
}
