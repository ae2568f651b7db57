package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"usher/cmd/internal/admin"
)

// TestOrders has one row per command that changes something: what the daemon gets and what the
// user is told. In the ring one director is silent, which is warned about.
func TestOrders(t *testing.T) {
	const warning = "usher: warning: director 10.1.0.3:9090 does not answer: the order reaches it and those behind it late or never\n"
	for _, c := range []struct{ args, call, stdout string }{
		{"user move u be1.example", "move u 10.2.0.11 false", "u is being moved to be1.example\n"},
		{"user move u 10.2.0.11 --wait", "move u 10.2.0.11 true", "u is on 10.2.0.11 now\n"},
		{"user kick u", "kick u", "the sessions of u are ended here; the other directors were told\n"},
		{"user kick --field user_group staff", "kick user_group=staff", "the sessions of user_group staff are ended here; the other directors were told\n"},
		{"host add 10.2.0.19 --weight 30 --tag eu", "add {Address:10.2.0.19 Name: Tag:eu Weight:30}", "10.2.0.19 is a host now; the ring has not agreed yet\n"},
		{"host add ::ffff:10.2.0.19 --wait", "add {Address:10.2.0.19 Name: Tag: Weight:100}\nwait", "::ffff:10.2.0.19 is a host now\n"},
		{"host update be1.example 0", "update 10.2.0.11 0", "be1.example has weight 0 now; the ring has not agreed yet\n"},
		{"host up fd00::12", "up fd00::12 true", "fd00::12 is up now; the ring has not agreed yet\n"},
		{"host down fd00::12 --wait", "up fd00::12 false\nwait", "fd00::12 is down now\n"},
		{"host remove fd00::12", "remove fd00::12", "fd00::12 is no host any more; the ring has not agreed yet\n"},
		{"host drain be1.example", "flush {Host:10.2.0.11 Drain:true Force:false Rate:10 Parallel:0}", "the drain of be1.example has started\n"},
		{"host drain be1.example --rate 600/m --parallel 5", "flush {Host:10.2.0.11 Drain:true Force:false Rate:10 Parallel:5}", "the drain of be1.example has started\n"},
		{"host drain be1.example --stop", "flush stop 10.2.0.11", "the drain of be1.example is stopped\n"},
		{"flush all", "flush {Host:invalid IP Drain:false Force:false Rate:0 Parallel:0}", "the flush of all has started\n"},
		{"flush all --force", "flush {Host:invalid IP Drain:false Force:true Rate:0 Parallel:0}", "the users of all are forgotten\n"},
		{"ring add [fd00::3]:9090", "ring add [fd00::3]:9090", "[fd00::3]:9090 is in the ring now; the ring has not agreed yet\n"},
		{"ring remove 10.1.0.3 --wait", "ring remove 10.1.0.3:0\nwait", "10.1.0.3 is not in the ring any more\n"},
		{"host up fd00::12 --json", "up fd00::12 true", "{\n  \"state\": \"started\",\n  \"warnings\": [\n    \"" + strings.TrimSuffix(strings.TrimPrefix(warning, "usher: warning: "), "\n") + "\"\n  ]\n}\n"},
	} {
		t.Run(c.args, func(t *testing.T) {
			s := newSite()
			s.ring.Synced = false
			code, stdout, stderr := run(daemon(t, s), nil, strings.Fields(c.args)...)
			if code != 0 || stdout != c.stdout || stderr != warning {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			if diff := cmp.Diff(c.call, strings.Join(s.calls, "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A director without a ring has finished when it has begun, and warns of nothing.
func TestOrdersAlone(t *testing.T) {
	s := newSite()
	s.ring = admin.Ring{Handshaked: true, Synced: true}
	socket := daemon(t, s)
	for args, want := range map[string]string{
		"user kick u":      "the sessions of u are ended\n",
		"host up fd00::12": "fd00::12 is up now\n",
	} {
		if code, stdout, stderr := run(socket, nil, strings.Fields(args)...); code != 0 || stdout != want || stderr != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}

// TestDrainIsFollowed looks at a drain until its end.
func TestDrainIsFollowed(t *testing.T) {
	finish := func(failed int, err string) func(f *admin.Flush) {
		return func(f *admin.Flush) {
			f.Done, f.Moving = f.Done+450, 10
			if f.Done >= f.Total {
				at := now.Add(90 * time.Second)
				f.Done, f.Failed, f.Moving, f.EndedAt, f.Error = f.Total-failed, failed, 0, &at, err
			}
		}
	}
	for _, c := range []struct {
		name, args, stdout, stderr string
		step                       func(*admin.Flush)
		code                       int
	}{
		{"finishes", "host drain be1.example --wait", "be1.example  62 %, 750 of 1200, 10 moving, 25.0/s, 18s left\nthe drain of be1.example has ended after 2m: 1200 users moved\n", "", finish(0, ""), 0},
		{"by its address", "host drain 10.2.0.11 --wait", "10.2.0.11  62 %, 750 of 1200, 10 moving, 25.0/s, 18s left\nthe drain of 10.2.0.11 has ended after 2m: 1200 users moved\n", "", finish(0, ""), 0},
		{"some do not move", "host drain 10.2.0.11 --wait", "10.2.0.11  62 %, 750 of 1200, 10 moving, 25.0/s, 18s left\nthe drain of 10.2.0.11 has ended after 2m: 1199 users moved\n",
			"usher: 1 user could not be moved in an orderly way: their old sessions did not end in time\n", finish(1, ""), 1},
		{"stopped by somebody", "host drain 10.2.0.11 --wait", "10.2.0.11  62 %, 750 of 1200, 10 moving, 25.0/s, 18s left\n",
			"usher: the drain of 10.2.0.11 has ended after 2m, 1200 of 1200 users moved: stopped\n", finish(0, "stopped"), 1},
		{"unknown to a new daemon", "flush fd00::12 --wait", "", "usher: fd00::12: the daemon does not know of it any more\n", nil, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite()
			s.ring.Directors = nil
			s.step = c.step
			code, stdout, stderr := run(daemon(t, s), nil, strings.Fields(c.args)...)
			if code != c.code || stdout != c.stdout || stderr != c.stderr {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		})
	}
}

func TestProgressBar(t *testing.T) {
	p := progress{app: &app{env: Env{Now: func() time.Time { return now }}}, host: "h"}
	for _, c := range []struct {
		f    admin.Flush
		want string
	}{
		{admin.Flush{Total: 4, StartedAt: now, FlushOrder: admin.FlushOrder{Rate: 2}}, "h  [..............................]  0 %, 0 of 4, 2s left"},
		{admin.Flush{Total: 4, Done: 1, Failed: 1, Moving: 2, StartedAt: now.Add(-time.Second)}, "h  [###############...............]  50 %, 2 of 4, 2 moving, 1 failed, 2.0/s, 1s left"},
		{admin.Flush{StartedAt: now, EndedAt: &now}, "h  [##############################]  100 %, 0 of 0"},
		{admin.Flush{Total: 4, StartedAt: now}, "h  [..............................]  0 %, 0 of 4"},
	} {
		if got := p.line(c.f, true); got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}

func TestRate(t *testing.T) {
	for text, want := range map[string]float64{
		"10": 10, "10/s": 10, "600/m": 10, "36000/h": 10, "0": 0, "0.5/s": 0.5,
		"": -1, "/s": -1, "10/": -1, "10/d": -1, "-1": -1, "NaN": -1, "Inf": -1,
	} {
		if got, err := parseRate(text); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: got %v, error %v", text, got, err)
		}
	}
}

// TestManualPages checks that every command has a page which mandoc or man would take: no line
// begins with an unknown macro.
func TestManualPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man8")
	code, stdout, stderr := run("/nowhere", nil, "man", dir)
	if code != 0 || stderr != "" || !strings.HasSuffix(stdout, "pages written to "+dir+"\n") {
		t.Fatalf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	page, err := os.ReadFile(filepath.Join(dir, "usher-host-drain.8"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "usher-host-drain.8", string(page))
	macros := []string{".TH ", ".SH ", ".B ", ".BR ", ".PP", ".nf", ".fi"}
	pages, err := filepath.Glob(filepath.Join(dir, "*.8"))
	if err != nil || len(pages) < 25 {
		t.Fatalf("%d pages, error %v", len(pages), err)
	}
	for _, path := range pages {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(data), "\n") {
			known := false
			for _, m := range macros {
				known = known || strings.HasPrefix(line, m)
			}
			if strings.HasPrefix(line, ".") && !known || strings.HasPrefix(line, "'") {
				t.Errorf("%s:%d: %q is no macro of ours", filepath.Base(path), i+1, line)
			}
		}
	}
}

// Completion asks the daemon for the hosts.
func TestCompletion(t *testing.T) {
	code, stdout, _ := run(daemon(t, newSite()), nil, "__complete", "host", "drain", "")
	want := "10.2.0.11\tbe1.example weight 100, up\nfd00::12\t weight 50, down (health: greeting: refused)\n"
	if code != 0 || !strings.HasPrefix(stdout, want) {
		t.Errorf("exit code %d, got %q", code, stdout)
	}
	if code, stdout, _ := run("/nowhere", nil, "completion", "bash"); code != 0 || !strings.Contains(stdout, "__complete") {
		t.Errorf("completion bash: exit code %d, %d bytes", code, len(stdout))
	}
}
