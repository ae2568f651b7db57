package demo

import (
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/cli"
)

var began = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// moment is a scene in the middle of the show.
func moment() *scene {
	host := func(n byte, users, sessions int) hostSample {
		return hostSample{
			addr: netip.AddrFrom4([4]byte{10, 77, 2, n}), users: users, sessions: sessions, weight: 100, up: true,
			seen: true, seenUsers: users, seenSessions: sessions,
		}
	}
	c := &scene{
		begin: began, o: cli.DemoOptions{For: time.Minute}, built: began.Add(time.Second),
		site: "network namespaces", backends: "scripted backends",
		kernel: admin.KernelStatus{Mode: "tc", Program: "splice_tc/1"},
		sample: sample{
			at: began, answer: true, daemon: "pid 17", alive: true,
			hosts:    []hostSample{host(11, 60, 180), host(12, 80, 240), host(13, 10, 30)},
			sessions: admin.SessionCounts{Total: 450, TC: 449, Splice: 1},
			packets:  1234567, bytes: 5 << 20, packetRate: 2101, inside: 450, commands: 9876, commandRate: 432, cpu: 0.46, rss: 20 << 20,
		},
		acts: []act{
			{name: actLogin, text: "150 users, 450 sessions", state: passed},
			{name: actMove, text: "user007 went nowhere", state: wrong},
			{name: actKill, plan: "the daemon, without a warning", state: running},
			{name: actRestart, plan: "not said before its time"},
		},
	}
	c.sample.hosts[1].weight = 0
	c.sample.hosts[2].up = false
	return c
}

func TestScreen(t *testing.T) {
	dead := moment()
	dead.sample.answer, dead.sample.alive, dead.sample.daemon, dead.sample.estimated = false, false, "killed (it was pid 17)", true
	dead.sample.failed = 2
	poor := moment()
	poor.why, poor.kernel = "needs root", admin.KernelStatus{Mode: "splice", Reason: strings.Repeat("not permitted ", 8)}
	poor.acts = nil
	over := moment()
	over.ended = true
	over.peak = peak{sessions: 500, hosts: over.sample.hosts[:1], rss: 21 << 20, cpu: 12.5, cpuTime: 1700 * time.Millisecond}
	over.acts = over.acts[:1]
	for _, tc := range []struct {
		name   string
		scene  *scene
		height int
		want   string
	}{
		{"at work", moment(), 40, `
 Usher  network namespaces, scripted backends, mode tc             0:23 of 1:00

 backend       users                         sessions   it sees
 10.77.2.11       60  ████████████████▌           180       180  up
 10.77.2.12       80  ██████████████████████      240       240  weight 0
 10.77.2.13       10  ██▊                          30        30  down

 sessions     450   tc 449   splice 1
 kernel       1,234,567 packets forwarded, 2,101/s, 5.0 MiB
 clients      9,876 commands answered and checked, 432/s, 0 errors
 usher        pid 17   CPU 0.5 %   RSS 20.0 MiB

 ✓ log in     150 users, 450 sessions
 ✗ move       user007 went nowhere
 ▸ kill -9    the daemon, without a warning
 · restart
`},
		{"daemon dead", dead, 40, `
 Usher  network namespaces, scripted backends, mode tc             0:23 of 1:00

 backend       users                         sessions   it sees
 10.77.2.11        –  ████████████████▌             –       180
 10.77.2.12        –  ██████████████████████        –       240
 10.77.2.13        –  ██▊                           –        30

 sessions     450   by the clients' count
 kernel       1,234,567 packets, 2,101/s, counted at the interfaces
 clients      9,876 commands answered and checked, 432/s, 2 errors
 usher        killed (it was pid 17)

 ✓ log in     150 users, 450 sessions
 ✗ move       user007 went nowhere
 ▸ kill -9    the daemon, without a warning
 · restart
`},
		{"little room", moment(), 13, `
 Usher  network namespaces, scripted backends, mode tc             0:23 of 1:00
 backend       users                         sessions   it sees
 10.77.2.11       60  ████████████████▌           180       180  up
 10.77.2.12       80  ██████████████████████      240       240  weight 0
 10.77.2.13       10  ██▊                          30        30  down
 sessions     450   tc 449   splice 1
 kernel       1,234,567 packets forwarded, 2,101/s, 5.0 MiB
 clients      9,876 commands answered and checked, 432/s, 0 errors
 usher        pid 17   CPU 0.5 %   RSS 20.0 MiB

 ✗ move       user007 went nowhere
 ▸ kill -9    the daemon, without a warning
 · restart
`},
		{"less than best", poor, 40, `
 Usher  network namespaces, scripted backends, mode splice         0:23 of 1:00
 loopback     needs root
 mode splice  not permitted not permitted not permitted not permitted not
              permitted not permitted not permitted not permitted

 backend       users                         sessions   it sees
 10.77.2.11       60  ████████████████▌           180       180  up
 10.77.2.12       80  ██████████████████████      240       240  weight 0
 10.77.2.13       10  ██▊                          30        30  down

 sessions     450   tc 449   splice 1
 kernel       no part in it
 clients      9,876 commands answered and checked, 432/s, 0 errors
 usher        pid 17   CPU 0.5 %   RSS 20.0 MiB

`},
		{"ended", over, 40, `
 Usher  network namespaces, scripted backends, mode tc                took 0:23

 backend       users                         sessions   it sees
 10.77.2.11       60  ██████████████████████      180       180

 sessions     500 at the same time
 kernel       1,234,567 packets forwarded
 clients      9,876 commands answered and checked, 0 errors
 usher        CPU 1.7 s in all, at most 12.5 %   RSS at most 21.0 MiB

 ✓ log in     150 users, 450 sessions
`},
		{"not built", &scene{begin: began}, 40, "\n Usher  builds a site\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := "\n" + strings.Join(tc.scene.screen(began.Add(23*time.Second), 80, tc.height, false), "\n") + "\n"
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// Whatever the terminal is like: no line is wrapped by it, and the frame fits.
func TestScreenFits(t *testing.T) {
	for width := 1; width < 120; width++ {
		for _, height := range []int{1, 2, 5, 12, 24, 60} {
			lines := moment().screen(began, width, height, false)
			if len(lines) > height {
				t.Fatalf("%d lines in a height of %d", len(lines), height)
			}
			for _, l := range lines {
				if n := utf8.RuneCountInString(l); n > width {
					t.Fatalf("%d columns in a width of %d: %q", n, width, l)
				}
			}
		}
	}
}

func TestColor(t *testing.T) {
	l := line{}.add(bold, "abc").add(plain, "def").add(red, "ghi")
	if got, want := l.render(7, true), "\x1b[1mabc\x1b[0mdef\x1b[31mg\x1b[0m"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := l.render(5, true), "\x1b[1mabc\x1b[0mde"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestText(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{thousands(0), "0"}, {thousands(999), "999"}, {thousands(1000), "1,000"}, {thousands(1234567), "1,234,567"},
		{brief(1100 * time.Microsecond), "1.1 ms"}, {brief(102 * time.Millisecond), "102 ms"},
		{brief(4230 * time.Millisecond), "4.2 s"}, {brief(75 * time.Second), "75 s"},
		{clock(83 * time.Second), "1:23"}, {some(1, "user"), "1 user"}, {some(2, "user"), "2 users"},
		{cut("abcdef", 4), "abc…"}, {cut("abcd", 4), "abcd"}, {cut("abcd", 0), "…"},
		{bar(1, 1, 3), "███"}, {bar(0, 1, 3), ""}, {bar(1, 2, 3), "█▌"}, {bar(1, 0, 3), ""},
	} {
		if tc.got != tc.want {
			t.Errorf("%q, want %q", tc.got, tc.want)
		}
	}
}
