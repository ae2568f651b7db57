package ring

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"usher/director"
)

// FuzzHear: whatever a listed director says, in whatever pieces and at whatever moment of a connection, nothing
// panics, memory stays bounded, what we say is well-formed, and the other neighbour is not lost by it.
func FuzzHear(f *testing.F) {
	files, _ := filepath.Glob("testdata/transcripts/ring-*.txt")
	aLine := regexp.MustCompile(`(?:\d -> \S+ \| |fake->(?:IN|OUT) )([A-Z].*)`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		var said strings.Builder
		for _, m := range aLine.FindAllStringSubmatch(string(text), 60) {
			said.WriteString(strings.ReplaceAll(m[1], "<TAB>", "\t") + "\n")
		}
		for state := range byte(4) {
			f.Add(state, uint16(40), []byte(said.String()))
		}
	}
	f.Add(byte(3), uint16(7), []byte("USER-KICK\t127.0.1.3\t9090\t9\t"+strings.Repeat("*", 900)+"\nCONNECT\t127.0.1.2\t9090\n"))
	f.Add(byte(3), uint16(7), []byte("DIRECTOR-REMOVE\t127.0.1.3\t9090\nDIRECTOR\t127.0.1.3\t9090\n"))
	f.Add(byte(1), uint16(7), bytes.Repeat([]byte("x"), 3000))

	f.Fuzz(func(t *testing.T, state byte, piece uint16, data []byte) {
		w := newRealNetwork(t, 3)
		w.start(1)
		if state&1 != 0 {
			w.start(2)
		}
		n := w.nodes[0]
		peer := netip.AddrPortFrom(addrOf(3).Addr(), 50000)
		conn := n.ring.NextConn()
		hear := func(ev Event) {
			n.ring.Hear(w.now, ev)
			for _, a := range n.ring.Actions() {
				if send, ok := a.(Send); ok {
					checkLines(t, send.Data)
				}
			}
			w.now = w.now.Add(50 * time.Millisecond)
		}
		hear(Accepted{Conn: conn, Remote: peer})
		if state&2 != 0 { // it has introduced itself already
			hear(Received{Conn: conn, Data: []byte("VERSION\tdirector\t1\t9\nME\t127.0.1.3\t9090\t1795434608\tusher=1\n" +
				"HOST-HAND-START\t0\nHOST-HAND-END\t0\nU\t77\t127.0.2.1\t1795434600\nOPTIONS\tconsistent-hashing\nDONE\n")})
		}
		size := int(piece)%2000 + 1
		for i := 0; i < len(data) && i < 1<<16; i += size {
			hear(Received{Conn: conn, Data: data[i:min(i+size, len(data))]})
		}
		for range 50 {
			n.ring.Step(w.now, director.Tick{})
			n.ring.Actions()
			if next := n.ring.Next(); !next.IsZero() && next.After(w.now) {
				w.now = next
			}
		}
		if len(n.ring.members) > maxMembers {
			t.Errorf("%d members", len(n.ring.members))
		}
		for _, c := range n.ring.conns {
			if len(c.in) >= 1024 || len(c.hosts.list) > maxHosts || c.waiting() > n.ring.config.OutputBufferSize {
				t.Errorf("%d bytes of a line, %d hosts, %d bytes to write", len(c.in), len(c.hosts.list), c.waiting())
			}
		}
		n.ring.Status(w.now)
	})
}

// checkLines: what we send can be read by others.
func checkLines(t *testing.T, data []byte) {
	t.Helper()
	for line := range bytes.Lines(data) {
		if len(line) > 1024 || line[len(line)-1] != '\n' || bytes.ContainsAny(line[:len(line)-1], "\x00\r") {
			t.Errorf("we said %q", line)
		}
	}
}
