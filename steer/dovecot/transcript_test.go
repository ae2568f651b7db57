package dovecot

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"usher/director/ring"
)

// listen serves d on a socket until the test ends.
func listen(t *testing.T, d Director) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "director-admin")
	a, err := ListenAdmin(path, d, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket is still there")
		}
	})
	return path
}

// ofTheTranscript is the site whose director was recorded: three directors, four hosts, three users.
func ofTheTranscript() *toy {
	d := newToy("127.0.2.1", "127.0.2.2", "127.0.2.3", "127.0.2.4")
	d.user(704933450, "127.0.2.2", 1795435612)
	d.user(3146127416, "127.0.2.4", 1795435706)
	d.user(1793259550, "127.0.2.2", 1795435706)
	d.ring = ringOfTheTranscript(0, [2][5]int64{{0, 542, 1188, 162, 1795434876}, {0, 1133, 671, 37, 1795434866}})
	return d
}

// ringOfTheTranscript has the figures of its right and left: ping, in, out, peak, last read and write.
func ringOfTheTranscript(sync time.Duration, figures [2][5]int64) ring.Status {
	ap := netip.MustParseAddrPort
	s := ring.Status{
		Self: ap("127.0.1.1:9090"), Handshaked: true, Synced: true, SyncTime: sync,
		Directors: []ring.Member{{Addr: ap("127.0.1.3:9090")}, {Addr: ap("127.0.1.1:9090")}, {Addr: ap("127.0.1.2:9090")}},
	}
	for i, f := range figures {
		at := time.Unix(f[4], 0)
		s.Conns = append(s.Conns, ring.ConnStatus{
			Conn: ring.Conn(9 - i), Remote: s.Directors[2-2*i].Addr, Incoming: i == 1, Role: []string{"right", "left"}[i], State: "synced",
			Ping: time.Duration(f[0]) * time.Millisecond, Received: uint64(f[1]), Sent: uint64(f[2]), QueuedPeak: int(f[3]), LastRead: at, LastWrite: at,
		})
	}
	return s
}

// TestTranscript replays what was recorded from the real director, line for line. Only the moment of one
// move is not ours.
func TestTranscript(t *testing.T) {
	data, err := os.ReadFile("testdata/director-admin-raw.txt")
	if err != nil {
		t.Fatal(err)
	}
	d := ofTheTranscript()
	path := listen(t, d)
	text := strings.NewReplacer("<TAB>", "\t", "1795435788", "1795435782").Replace(string(data))
	var conn net.Conn
	var in *bufio.Reader
	lists := 0
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, "=") || strings.HasPrefix(line, "-") { // a new connection
			if conn != nil {
				conn.Close()
			}
			if conn, err = net.Dial("unix", path); err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			in = bufio.NewReader(conn)
			continue
		}
		if command, ok := strings.CutPrefix(line, "C: "); ok {
			if command == "DIRECTOR-LIST" {
				if lists++; lists == 2 {
					d.mu.Lock()
					d.ring = ringOfTheTranscript(8*time.Millisecond, [2][5]int64{{9, 1215, 4088, 162, 1795434890}, {8, 3389, 1941, 52, 1795434890}})
					d.mu.Unlock()
				}
			}
			io.WriteString(conn, command+"\n")
			continue
		}
		want, ok := strings.CutPrefix(line, "S: ")
		if !ok {
			t.Fatalf("line %d: %q", n+1, line)
		}
		got, err := in.ReadString('\n')
		if want == "[EOF]" {
			if err != io.EOF {
				t.Errorf("line %d: got %q and error %v, want the end", n+1, got, err)
			}
			continue
		}
		if got != want+"\n" || err != nil {
			t.Fatalf("line %d: got %q and error %v, want %q", n+1, got, err, want)
		}
	}
	conn.Close()
}

// TestPipelining: Dovecot's director lost the second of two commands when the first waited for the ring
// (testdata/admin-pipelining-loses-command.txt). Here all are done, and answered in their order.
func TestPipelining(t *testing.T) {
	d := newToy("127.0.2.1", "127.0.2.2")
	d.unsync = true
	conn, err := net.Dial("unix", listen(t, d))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	go func() { // the ring needs a moment for each of them
		for range 100 {
			time.Sleep(10 * time.Millisecond)
			d.setSynced()
		}
	}()
	io.WriteString(conn, "VERSION\tdirector-doveadm\t1\t0\nHOST-DOWN\t127.0.2.1\nHOST-UPDATE\t127.0.2.2\t77\nHOST-LIST\n")
	want := adminVersion + "OK\nOK\n127.0.2.1\t100\t0\t\tD\t1795434882\n127.0.2.2\t77\t0\t\tU\t0\n\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("got %q, error %v", got, err)
	}
}
