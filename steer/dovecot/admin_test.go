package dovecot

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"usher/director/ring"
	"usher/steer/unixsocket"
)

// dialogue is a connection within a bubble of synthetic time.
type dialogue struct {
	t     *testing.T
	conn  net.Conn
	in    *bufio.Reader
	ended chan error // of talk
}

func talk(t *testing.T, d Director) *dialogue {
	t.Helper()
	a := &Admin{director: d, log: zerolog.Nop(), silentPoll: 200 * time.Millisecond}
	client, server := net.Pipe()
	x := &dialogue{t, client, bufio.NewReader(client), make(chan error, 1)}
	go func() {
		x.ended <- a.talk(t.Context(), server)
		server.Close()
	}()
	t.Cleanup(func() { client.Close() })
	x.want(strings.TrimSuffix(adminVersion, "\n"))
	x.say("VERSION\tdirector-doveadm\t1\t0")
	return x
}

func (x *dialogue) say(line string) {
	x.t.Helper()
	if _, err := io.WriteString(x.conn, line+"\n"); err != nil {
		x.t.Fatal(err)
	}
}

func (x *dialogue) want(line string) {
	x.t.Helper()
	if got, err := x.in.ReadString('\n'); err != nil || got != line+"\n" {
		x.t.Fatalf("got %q and error %v, want %q", got, err, line)
	}
}

// TestWaitsForTheRing has a row per command and state of the ring: when it is answered, and how.
func TestWaitsForTheRing(t *testing.T) {
	for _, c := range []struct {
		name, command string
		unsynced      bool          // when the command comes
		unsync        bool          // the command makes it so
		agrees        time.Duration // when the ring agrees; 0: never
		silent        bool
		reply         string
		after         time.Duration
		done          string
	}{
		{"synced", "HOST-DOWN\t127.0.2.1", false, false, 0, false, "OK", 0, "up 127.0.2.1 false"},
		{"agrees after the command", "HOST-DOWN\t127.0.2.1", false, true, 3 * time.Second, false, "OK", 3 * time.Second, "up 127.0.2.1 false"},
		{"agrees before the command", "HOST-REMOVE\t127.0.2.1", true, false, 3 * time.Second, false, "OK", 3 * time.Second, "remove 127.0.2.1"},
		{"never synced: not done", "HOST-SET\t127.0.2.9", true, false, 0, false, "Ring sync timed out", 30 * time.Second, ""},
		{"never agrees: done nevertheless", "HOST-UPDATE\t127.0.2.1\t7", false, true, 0, false, "Ring sync timed out", 30 * time.Second, "put 127.0.2.1@ 7"},
		{"a silent director: done and said at once", "HOST-DOWN\t127.0.2.1", true, false, 0, true,
			"Ring sync timed out: director 127.0.1.2:9090 does not answer; the change has been made here", 400 * time.Millisecond, "up 127.0.2.1 false"},
		{"silent, but the ring agrees", "HOST-DOWN\t127.0.2.1", false, false, 0, true, "OK", 0, "up 127.0.2.1 false"},
		{"what does not work is answered at once", "HOST-REMOVE\t127.0.2.9", false, true, 0, false, "NOTFOUND", 0, ""},
		{"forgetting the users of one host", "HOST-FLUSH\t127.0.2.1", false, true, time.Second, false, "OK", time.Second, "forget 127.0.2.1"},
		{"forgetting all users does not wait", "HOST-FLUSH", true, false, 0, false, "OK", 0, "forget invalid IP"},
		{"DIRECTOR-ADD waits before", "DIRECTOR-ADD\t127.0.1.9", true, false, time.Second, false, "OK", time.Second, "ring add 127.0.1.9:9090"},
		{"DIRECTOR-ADD does not wait after", "DIRECTOR-ADD\t127.0.1.9\t9091", false, true, 0, false, "OK", 0, "ring add 127.0.1.9:9091"},
		{"DIRECTOR-REMOVE waits after", "DIRECTOR-REMOVE\t127.0.1.2", false, true, time.Second, false, "OK", time.Second, "ring remove 127.0.1.2:9090"},
		{"lists do not wait", "HOST-LIST-REMOVED", true, false, 0, false, "", 0, ""},
		{"moves do not wait", "USER-MOVE\t5\t127.0.2.1", true, true, 0, false, "OK", 0, "move 5 127.0.2.1"},
		{"kicks do not wait", "USER-KICK\tu\tnowait", true, true, 0, false, "OK", 0, "kick u"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newToy("127.0.2.1")
				d.members[netip.MustParseAddrPort("127.0.1.2:9090")] = true
				d.unsync = c.unsync
				if c.unsynced {
					d.ring.Synced, d.synced = false, make(chan struct{})
				}
				if c.silent {
					d.ring.Silent = []netip.AddrPort{netip.MustParseAddrPort("127.0.1.2:9090")}
				}
				if c.agrees > 0 {
					time.AfterFunc(c.agrees, d.setSynced)
				}
				x := talk(t, d)
				begin := time.Now()
				x.say(c.command)
				x.want(c.reply)
				if took := time.Since(begin); took != c.after {
					t.Errorf("answered after %v, want %v", took, c.after)
				}
				if got := strings.Join(d.done(), "\n"); got != c.done {
					t.Errorf("did %q, want %q", got, c.done)
				}
			})
		})
	}
}

// TestResetUsers: nothing is read while users are moved, and what was sent meanwhile is not lost.
func TestResetUsersHoldsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newToy("127.0.2.1")
		d.flush = make(chan struct{})
		time.AfterFunc(time.Minute, func() { close(d.flush) })
		x := talk(t, d)
		begin := time.Now()
		x.say("HOST-RESET-USERS\t127.0.2.1\t5\nUSER-KICK\tu")
		x.want("OK")
		x.want("OK")
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("answered after %v", took)
		}
		if want := []string{"flush 127.0.2.1 5", "kick u"}; !slices.Equal(d.done(), want) {
			t.Errorf("did %q", d.done())
		}
	})
}

// TestRefusedConnections: how a connection ends without a reply.
func TestRefusedConnections(t *testing.T) {
	for _, c := range []struct{ name, line, want string }{
		{"unknown command", "HOST-EXPLODE", "unknown command"},
		{"small letters", "host-list", "unknown command"},
		{"empty line", "", "unknown command"},
		{"too long", strings.Repeat("x", maxLine), "longer than 1024"},
		{"no vhosts", "HOST-UPDATE\t127.0.2.1", "vhost count is missing"},
		{"vhosts", "HOST-SET\t127.0.2.1\tmany", "no number"},
		{"vhosts beyond 32 bits", "HOST-SET\t127.0.2.1\t4294967296", "no number"},
		{"host name", "HOST-UP\tlocalhost", "no IP address"},
		{"director's port", "DIRECTOR-ADD\t127.0.1.1\t70000", "no port"},
		{"director's name", "DIRECTOR-REMOVE\tdir", "no IP address"},
		{"nobody", "USER-LOOKUP", "user is missing"},
		{"to nowhere", "USER-MOVE\tu", "no IP address"},
		{"kick alt", "USER-KICK-ALT\tuser_x", "field and its value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := talk(t, newToy("127.0.2.1"))
			go io.WriteString(x.conn, c.line+"\n")
			if rest, err := io.ReadAll(x.in); len(rest) > 0 || err != nil {
				t.Errorf("got %q and error %v", rest, err)
			}
			if err := <-x.ended; err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestClientsThatSayNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Admin{director: newToy(), log: zerolog.Nop()}
		client, server := net.Pipe()
		defer client.Close()
		go io.Copy(io.Discard, client)
		begin := time.Now()
		if err := a.talk(t.Context(), server); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != versionTimeout {
			t.Errorf("ended after %v with %v", time.Since(begin), err)
		}
	})
}

// TestReplies: what the transcript does not show.
func TestReplies(t *testing.T) {
	d := newToy("127.0.2.1", "fd00::1")
	d.ring = ring.Status{} // a director without a ring
	d.ring.Handshaked, d.ring.Synced = true, true
	x := talk(t, d)
	for _, c := range []struct {
		say  string
		want []string
	}{
		{"HOST-SET\t127.0.2.66\t1", []string{"host is already being updated - try again later"}},
		{"HOST-UPDATE\t127.0.2.1\t4294967295", []string{"vhost count too large"}},
		{"HOST-SET\t127.0.2.8@fast", []string{"OK"}},
		{"HOST-UPDATE\t127.0.2.8\t7", []string{"OK"}},                                     // the tag is kept
		{"HOST-SET\t127.0.2.8", []string{"OK"}},                                           // the weight is kept
		{"HOST-UPDATE\t::ffff:127.0.2.1\t0", []string{"OK"}},                              // one address, two spellings
		{"DIRECTOR-ADD\tfd00::1\t9091\tmore", []string{"OK"}},                             // what is too much is ignored
		{"USER-LOOKUP\t0", []string{"\t0\tfd00::1\t127.0.2.1"}},                           // 127.0.2.1 has no weight now
		{"USER-LOOKUP\t4294967296", []string{"\t0\tfd00::1\t" + placed(d, "4294967296")}}, // too large for a hash: a name
		{"HOST-LIST", []string{"127.0.2.1\t0\t0\t\tU\t0", "127.0.2.8\t7\t0\tfast\tU\t0", "fd00::1\t100\t0\t\tU\t0", ""}},
		{"DIRECTOR-LIST", []string{"127.0.0.1\t0\tself\t0\tring synced\t0", ""}},
		{"HOST-RESET-USERS\t\t7", []string{"OK"}},
	} {
		x.say(c.say)
		for _, line := range c.want {
			x.want(line)
		}
	}
	if calls := d.done(); calls[len(calls)-1] != "flush invalid IP 7" {
		t.Errorf("did %q", calls)
	}
}

func placed(d *toy, user string) string { return d.Lookup(d.KeyOf(user, "")).Configured.String() }

// TestDirectorList: all kinds of lines, in Dovecot's order.
func TestDirectorList(t *testing.T) {
	ap := netip.MustParseAddrPort
	d := newToy()
	at := time.Unix(1795434890, 0)
	d.ring = ring.Status{
		Self: ap("10.1.0.3:9090"), LastSync: time.Now().Add(-1500 * time.Millisecond), Handshaked: true, SyncTime: 2 * time.Millisecond,
		Directors: []ring.Member{{Addr: ap("10.1.0.20:9090"), Removed: true}, {Addr: ap("10.1.0.3:9090")}, {Addr: ap("10.1.0.4:9091"), LastFailed: at},
			{Addr: ap("10.1.0.4:9090")}, {Addr: ap("[fd00::1]:9090")}},
		Conns: []ring.ConnStatus{
			{Conn: 5, Remote: ap("10.1.0.4:9090"), Role: "right", State: "handshaking", Users: 70, LastRead: at},
			{Conn: 3, Remote: ap("10.1.0.4:9090"), Role: "in", Incoming: true, State: "handshaking", Users: 7, Queued: 12},
			{Conn: 9, Role: "in", Incoming: true, State: "handshaking"},
		},
	}
	x := talk(t, d)
	x.say("DIRECTOR-LIST")
	for _, line := range []string{
		"handshaking - 0 USERs received\t0\t0\t0\t0\t0\t0\t0",
		"10.1.0.3\t9090\tself\t0\tring syncing - last sync 1 secs ago\t2",
		"10.1.0.4\t9090\tin\t0\thandshaking - 7 USERs received\t0\t0\t0\t12\t0\t0\t0",
		"10.1.0.4\t9090\tright\t0\thandshaking - 70 USERs sent\t0\t0\t0\t0\t0\t1795434890\t0",
		"10.1.0.4\t9091\t\t1795434890\t",
		"10.1.0.20\t9090\tremoved\t0\t",
		"fd00::1\t9090\t\t0\t",
		"",
	} {
		x.want(line)
	}
	d.mu.Lock()
	d.ring.Handshaked = false
	d.mu.Unlock()
	x.say("DIRECTOR-LIST")
	x.in.ReadString('\n')
	x.want("10.1.0.3\t9090\tself\t0\tring handshaking\t2")
}

// TestSocketIsTakenCarefully: private, and never from somebody who answers there.
func TestSocketIsTakenCarefully(t *testing.T) {
	path := listen(t, newToy())
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	if _, err := ListenAdmin(path, newToy(), zerolog.Nop()); !errors.Is(err, unixsocket.ErrInUse) {
		t.Errorf("a second one: %v", err)
	}
}

func TestEscape(t *testing.T) {
	for text, want := range map[string]string{"a\tb\nc\rd\x00e\x01f": "a\x01tb\x01nc\x01rd\x010e\x011f", "": "", "plain": "plain"} {
		if got := escape(text); got != want || unescape(got) != text {
			t.Errorf("%q becomes %q and %q", text, got, unescape(got))
		}
	}
	for text, want := range map[string]string{"\x01": "\x01", "a\x01": "a\x01", "\x01x": "x"} {
		if got := unescape(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

// FuzzTalk: whatever comes, the connection ends, and every reply is made of lines.
func FuzzTalk(f *testing.F) {
	f.Add("HOST-LIST\nDIRECTOR-LIST\n")
	f.Add("HOST-SET\t127.0.2.9@tag\t7\nHOST-LIST\nUSER-LIST\nUSER-MOVE\t5\t127.0.2.9\nUSER-LIST\t127.0.2.9\n")
	f.Add("USER-KICK-ALT\t\x01t\t\x01\nHOST-RESET-USERS\t\t0\n")
	f.Add("DIRECTOR-ADD\t::\t1\nDIRECTOR-REMOVE\t::\nHOST-FLUSH\n")
	f.Fuzz(func(t *testing.T, text string) {
		a := &Admin{director: newToy("127.0.2.1"), log: zerolog.Nop(), silentPoll: time.Hour}
		client, server := net.Pipe()
		go func() {
			io.WriteString(client, "VERSION\tdirector-doveadm\t1\t0\n"+text)
			time.AfterFunc(10*time.Millisecond, func() { client.Close() }) // talk may have ended long before
		}()
		go func() {
			a.talk(t.Context(), server)
			server.Close()
		}()
		got, _ := io.ReadAll(client)
		if n := len(got); n > 0 && got[n-1] != '\n' {
			t.Errorf("an unfinished line: %q", got)
		}
	})
}
