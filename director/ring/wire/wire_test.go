package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"usher/director"
	"usher/director/hosts"

	"github.com/google/go-cmp/cmp"
)

var addrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
var addrPorts = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// TestLines: what each line means, and that it is written as it was read.
func TestLines(t *testing.T) {
	d1 := netip.MustParseAddrPort("127.0.1.1:9090")
	six := netip.MustParseAddrPort("[fd00::1]:9090")
	host := netip.MustParseAddr("127.0.2.2")
	origin := Origin{d1, 7}
	put := func(weight int, tag, name string) director.HostUpdate {
		return director.HostUpdate{Host: hosts.Host{Addr: host, Weight: weight, Tag: tag, Name: name}, Up: true}
	}
	down := put(0, "fast", "mail2")
	down.Up, down.Changed, down.Ordered = false, 1795434882, 1795434900

	unhealthy := down
	unhealthy.Health = true

	now, usher := Peer{Minor: 9}, Peer{Minor: 9, Usher: true}
	for _, row := range []struct {
		line  string
		to    Peer
		hosts bool
		want  Line
	}{
		{"VERSION|director|1|9", now, false, &Version{"director", 1, 9}},
		{"ME|127.0.1.1|9090|1795434608", now, false, &Me{d1, 1795434608, 0}},
		{"ME|fd00::1|9090|1795434608|usher=7", now, false, &Me{six, 1795434608, 7}},
		{"DIRECTOR|127.0.1.1|9090", now, false, &Director{d1}},
		{"DIRECTOR-REMOVE|127.0.1.1|9090", now, false, &DirectorRemove{d1}},
		{"CONNECT|127.0.1.1|9090", now, false, &Connect{d1}},
		{"HOST-HAND-START|0", now, false, &HandStart{false}},
		{"HOST-HAND-END|1", now, true, &HandEnd{true}},
		{"HOST|127.0.2.2|100||U0|", now, true, &HandHost{put(100, "", "")}},
		{"HOST|127.0.2.2|50|name|U0|localhost", now, true, &HandHost{put(50, "name", "localhost")}},
		{"HOST|127.0.2.2|0|fast|D1795434882|mail2|1795434900", usher, true, &HandHost{down}},
		{"HOST|127.0.2.2|0|fast|D1795434882|mail2|1795434900|h", usher, true, &HandHost{unhealthy}},
		{"HOST|127.0.2.2|100", Peer{Minor: 5}, true, &HandHost{put(100, "", "")}},
		{"HOST|127.0.2.2|100|old", Peer{Minor: 5}, true, &HandHost{put(100, "old", "")}},
		{"HOST|127.0.1.1|9090|7|127.0.2.2|100||U0|", now, false, &Told{origin, put(100, "", "")}},
		{"U|704933450|127.0.2.2|1795435488", now, false,
			&HandUser{director.UserUpdate{Hash: 704933450, Host: host, Refreshed: 1795435488}}},
		{"U|704933450|127.0.2.2|1795435488|w", now, false,
			&HandUser{director.UserUpdate{Hash: 704933450, Host: host, Refreshed: 1795435488, Weak: true}}},
		{"U|1|127.0.2.2|1795435488||1795435000", usher, false,
			&HandUser{director.UserUpdate{Hash: 1, Host: host, Refreshed: 1795435488, Ordered: 1795435000}}},
		{"U|1|127.0.2.2|1795435488|w|1795435000", usher, false,
			&HandUser{director.UserUpdate{Hash: 1, Host: host, Refreshed: 1795435488, Weak: true, Ordered: 1795435000}}},
		{"USER|1001|127.0.2.2|1795435469", now, false,
			&User{director.UserUpdate{Hash: 1001, Host: host, Refreshed: 1795435469}}},
		{"USER|1004|127.0.2.2", now, false, &User{director.UserUpdate{Hash: 1004, Host: host}}},
		{"USER|1004|127.0.2.2|9|8", usher, false,
			&User{director.UserUpdate{Hash: 1004, Host: host, Refreshed: 9, Ordered: 8}}},
		{"USER-WEAK|127.0.1.1|9090|7|4294967295|127.0.2.2", now, false,
			&Told{origin, director.UserWeak{Hash: 4294967295, Host: host}}},
		{"USER-MOVE|127.0.1.1|9090|7|1|127.0.2.2", now, false, &Told{origin, director.UserMove{Hash: 1, Host: host}}},
		{"USER-MOVE|127.0.1.1|9090|7|1|127.0.2.2|12", usher, false,
			&Told{origin, director.UserMove{Hash: 1, Host: host, Ordered: 12}}},
		{"USER-KICK|127.0.1.1|9090|7|user%40x@y z", now, false, &Told{origin, director.UserKick{User: "user%40x@y z"}}},
		{"USER-KICK|127.0.1.1|9090|7|a\x01tb\x011\x01n\x01r\x010", now, false,
			&Told{origin, director.UserKick{User: "a\tb\x01\n\r\x00"}}},
		{"USER-KICK-ALT|127.0.1.1|9090|7|user_f|v", now, false,
			&Told{origin, director.UserKickAlt{Field: "user_f", Value: "v"}}},
		{"USER-KICK-HASH|127.0.1.1|9090|7|5|127.0.2.2", now, false,
			&Told{origin, director.UserKickHash{Hash: 5, Except: host}}},
		{"USER-KILLED|5", now, false, &UserKilled{director.UserKilled{Hash: 5}}},
		{"USER-KILLED-EVERYWHERE|127.0.1.1|9090|7|5", now, false,
			&Told{origin, director.UserKilledEverywhere{Hash: 5}}},
		{"HOST-REMOVE|127.0.1.1|9090|7|127.0.2.2", now, false, &Told{origin, director.HostGone{Addr: host}}},
		{"HOST-FLUSH|127.0.1.1|9090|7|127.0.2.2", now, false, &Told{origin, director.HostForget{Addr: host}}},
		{"USHER-HEALTH|127.0.1.1|9090|7|127.0.2.2|up", usher, false, &Health{origin, host, true}},
		{"USHER-HEALTH|127.0.1.1|9090|7|127.0.2.2|down", usher, false, &Health{origin, host, false}},
		{"SYNC|127.0.1.1|9090|7|9|1795434608|3647348155", now, false, &Sync{d1, 7, 9, 1795434608, 3647348155}},
		{"SYNC|127.0.1.1|9090|7", Peer{}, false, &Sync{Director: d1, Seq: 7}},
		{"PING|1795434608|46", now, false, &Ping{1795434608, 46}},
		{"PONG|1795434608|0", now, false, &Pong{1795434608, 0}},
		{"OPTIONS|consistent-hashing", now, false, &Options{true}},
		{"OPTIONS", now, false, &Options{false}},
		{"DONE", now, false, &Done{}},
		{"QUIT|CONNECT requested", now, false, &Quit{"CONNECT requested"}},
	} {
		line := strings.ReplaceAll(row.line, "|", "\t")
		p := Parser{inHosts: row.hosts}
		got, err := p.Parse([]byte(line))
		if err != nil {
			t.Errorf("%s: %v", row.line, err)
			continue
		}
		if d := cmp.Diff(row.want, got, addrs, addrPorts); d != "" {
			t.Errorf("%s (-want +got):\n%s", row.line, d)
		}
		if back := string(got.Append(nil, row.to)); back != line+"\n" {
			t.Errorf("%q was written as %q", line, back)
		}
	}
}

// TestOthersForms: arguments that are read in other forms than we write them.
func TestOthersForms(t *testing.T) {
	var p Parser
	for line, want := range map[string]string{
		"PING":                                 "PING|0|0",
		"PONG|5":                               "PONG|5|0",
		"ME|127.0.1.1|9090":                    "ME|127.0.1.1|9090|0",
		"ME|127.0.1.1|9090|1|colour=blue":      "ME|127.0.1.1|9090|1",
		"SYNC|127.0.1.1|9090|1|9|2|3|more":     "SYNC|127.0.1.1|9090|1|9|2|3",
		"USER|1|127.0.2.2|5|w":                 "USER|1|127.0.2.2|5", // a handshake of minor 8; weakness is in Weak
		"USER|1|::ffff:127.0.2.2|5":            "USER|1|127.0.2.2|5",
		"OPTIONS|more|consistent-hashing|less": "OPTIONS|consistent-hashing",
		"QUIT":                                 "QUIT|",
		"HOST|127.0.1.1|9090|1|127.0.2.2|7":    "HOST|127.0.1.1|9090|1|127.0.2.2|7||U0|",
	} {
		l, err := p.Parse([]byte(strings.ReplaceAll(line, "|", "\t")))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if got := string(l.Append(nil, Peer{Minor: 9})); got != strings.ReplaceAll(want, "|", "\t")+"\n" {
			t.Errorf("%s: got %q, want %s", line, got, want)
		}
	}
}

// TestExtrasStayAmongUshers: nothing that Dovecot does not know is written to it.
func TestExtrasStayAmongUshers(t *testing.T) {
	host := netip.MustParseAddr("127.0.2.2")
	origin := Origin{netip.MustParseAddrPort("127.0.1.1:9090"), 7}
	update := director.HostUpdate{Host: hosts.Host{Addr: host, Weight: 1}, Up: true, Ordered: 5}
	user := director.UserUpdate{Hash: 1, Host: host, Refreshed: 2, Ordered: 3}
	for _, l := range []Line{
		&HandHost{update}, &Told{origin, update}, &User{user}, &HandUser{user},
		&Told{origin, director.UserMove{Hash: 1, Host: host, Ordered: 5}},
	} {
		mine, theirs := string(l.Append(nil, Peer{Minor: 9, Usher: true})), string(l.Append(nil, Peer{Minor: 9}))
		if !strings.HasPrefix(mine, strings.TrimSuffix(theirs, "\n")+"\t") {
			t.Errorf("to Ushers %q, to others %q", mine, theirs)
		}
	}
	if got := string((&User{user}).Append(nil, Peer{Minor: 8})); got != "USER\t1\t127.0.2.2\n" {
		t.Errorf("minor 8 gets %q", got)
	}
	if got := string((&HandUser{user}).Append(nil, Peer{Minor: 8})); got != "USER\t1\t127.0.2.2\t2\n" {
		t.Errorf("minor 8 gets %q", got)
	}
}

func TestErrors(t *testing.T) {
	for line, want := range map[string]string{
		"":                              `"": unknown command`,
		"FOOBAR|x":                      `"FOOBAR": unknown command`,
		"user|1|127.0.2.2":              `"user": unknown command`,
		"VERSION":                       "VERSION: bad name",
		"VERSION|director|1":            "VERSION: bad minor version",
		"VERSION|director|-1|9":         "VERSION: bad major version",
		"ME|localhost|9090":             "ME: bad director",
		"ME|127.0.1.1|0":                "ME: bad port",
		"ME|127.0.1.1|65536":            "ME: bad port",
		"ME|127.0.1.1":                  "ME: bad port",
		"ME|fe80::1%eth0|9090":          "ME: bad director",
		"ME|127.0.1.01|9090":            "ME: bad director",
		"ME|127.0.1.1.|9090":            "ME: bad director",
		"ME|127.0.1.256|9090":           "ME: bad director",
		"ME|127.0.1.1|1|1|usher=x":      "ME: bad usher",
		"USER":                          "USER: bad hash",
		"USER||127.0.2.2|1":             "USER: bad hash",
		"USER|4294967296|127.0.2.2|1":   "USER: bad hash",
		"USER|+1|127.0.2.2|1":           "USER: bad hash",
		"USER|1|127.0.2.2|":             "USER: bad timestamp",
		"USER|1|127.0.2.2|99999999999":  "USER: bad timestamp",
		"USER|1|127.0.2.2|1|x":          "USER: bad order time",
		"U|1|127.0.2.2":                 "U: bad timestamp",
		"U|1|127.0.2.2|5|x":             "U: bad weak mark",
		"HOST|127.0.1.1|9090|1|1.2.3.4": "HOST: bad weight",
		"HOST|127.0.1.1|9090|1|1.2.3.4|99999999999": "HOST: bad weight",
		"HOST|127.0.1.1|9090|1|1.2.3.4|1||X0|":      "HOST: bad state",
		"HOST|127.0.1.1|9090|1|1.2.3.4|1||Ux|":      "HOST: bad time of the state",
		"HOST|127.0.1.1|9090|1|1.2.3.4|1|||":        "HOST: bad state",
		"HOST-REMOVE|127.0.1.1|9090|1|1.2.3.4|5":    "HOST-REMOVE: too many arguments",
		"USER-KILLED|1|2":                           "USER-KILLED: too many arguments",
		"USER-MOVE|127.0.1.1|9090|1|1|1.2.3.4|1|2":  "USER-MOVE: too many arguments",
		"USER-KICK|127.0.1.1|9090|1":                "USER-KICK: bad user",
		"USHER-HEALTH|127.0.1.1|9090|1|1.2.3.4|no":  "USHER-HEALTH: bad state",
		"PING|x":              "PING: bad time",
		"SYNC|127.0.1.1|9090": "SYNC: bad sequence number",
	} {
		var p Parser
		l, err := p.Parse([]byte(strings.ReplaceAll(line, "|", "\t")))
		if err == nil || l != nil || err.Error() != want {
			t.Errorf("%s: got %v, %v, want %s", line, l, err, want)
		}
		if errors.Is(err, ErrUnknown) != strings.Contains(want, "unknown command") {
			t.Errorf("%s: %v wraps ErrUnknown: %v", line, err, errors.Is(err, ErrUnknown))
		}
	}
}

// aLine finds the text of a line in one of a transcript: captures have "from -> to | line", peers "d1->IN line".
var aLine = regexp.MustCompile(`(?:\d -> \S+ \| |(?:d1|fake)->(?:IN|OUT) )([A-Z].*)$`)

func transcriptLines(t testing.TB) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("../testdata/transcripts/ring-*.txt")
	if err != nil || len(files) != 9 {
		t.Fatalf("%d transcripts: %v", len(files), err)
	}
	all := map[string][]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range strings.Split(string(text), "\n") {
			if m := aLine.FindStringSubmatch(row); m != nil {
				all[file] = append(all[file], strings.ReplaceAll(m[1], "<TAB>", "\t"))
			}
		}
	}
	return all
}

// TestTranscripts: every line that real directors have said is understood, and written by us as they did.
func TestTranscripts(t *testing.T) {
	lines := 0
	for file, said := range transcriptLines(t) {
		var p Parser
		for _, line := range said {
			lines++
			short := strings.HasPrefix(line, "HOST\t") && len(strings.Split(line, "\t")) <= 6
			p.inHosts = short // captures mix several connections
			l, err := p.Parse([]byte(line))
			if line == "FOOBAR\tx" {
				if !errors.Is(err, ErrUnknown) {
					t.Errorf("%s: %q: %v", file, line, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %q: %v", file, line, err)
				continue
			}
			// The older form is that of a peer which is older.
			if string(l.Append(nil, Peer{Minor: 9})) != line+"\n" && string(l.Append(nil, Peer{Minor: 5})) != line+"\n" {
				t.Errorf("%s: %q was written as %q", file, line, l.Append(nil, Peer{Minor: 9}))
			}
		}
	}
	if lines < 400 {
		t.Errorf("only %d lines were found", lines)
	}
}

// FuzzParse: no line does harm, and what is understood is understood the same when it is written again.
func FuzzParse(f *testing.F) {
	for _, said := range transcriptLines(f) {
		for _, line := range said {
			f.Add([]byte(line), false)
			f.Add([]byte(line), true)
		}
	}
	f.Add([]byte("USHER-HEALTH\t127.0.1.1\t9090\t1\t1.2.3.4\tup"), false)
	f.Add([]byte("USER-KICK\tfd00::1\t9090\t1\ta\x01tb\x01"), false)
	f.Fuzz(func(t *testing.T, line []byte, inHosts bool) {
		p := Parser{inHosts: inHosts}
		l, err := p.Parse(line)
		if err != nil {
			return
		}
		to := Peer{Minor: 9, Usher: true}
		once := l.Append(nil, to)
		if strings.Count(string(once), "\n") != 1 || once[len(once)-1] != '\n' {
			t.Fatalf("%q was written as %q, not one line", line, once)
		}
		q := Parser{inHosts: inHosts}
		again, err := q.Parse(once[:len(once)-1])
		if err != nil {
			t.Fatalf("%q was written as %q: %v", line, once, err)
		}
		if twice := again.Append(nil, to); string(twice) != string(once) {
			t.Fatalf("%q: first %q, then %q", line, once, twice)
		}
	})
}

// TestUserIsCheap: the one line of which there are thousands in a second.
func TestUserIsCheap(t *testing.T) {
	var p Parser
	line, out := []byte("USER\t704933450\t127.0.2.2\t1795435488"), make([]byte, 0, MaxLine)
	if n := testing.AllocsPerRun(100, func() {
		l, err := p.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		out = l.Append(out[:0], Peer{Minor: 9})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkUser(b *testing.B) {
	var p Parser
	line, out := []byte("USER\t704933450\t127.0.2.2\t1795435488"), make([]byte, 0, MaxLine)
	for b.Loop() {
		l, err := p.Parse(line)
		if err != nil {
			b.Fatal(err)
		}
		out = l.Append(out[:0], Peer{Minor: 9})
	}
}

func ExampleParser() {
	var p Parser
	line, _ := p.Parse([]byte("USER\t704933450\t127.0.2.2\t1795435488"))
	fmt.Printf("%+v", line)
	// Output: &{UserUpdate:{Hash:704933450 Host:127.0.2.2 Refreshed:1795435488 Weak:false Ordered:0}}
}
