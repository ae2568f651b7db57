package dovecot

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is an auth that says what a test wants. Lines are written with | for TAB.
type fake struct {
	path string
	l    net.Listener

	mu    sync.Mutex
	conns []net.Conn
	heard []string // lines, handshakes included
}

// peer is a connection that a fake accepted.
type peer struct {
	*fake
	net.Conn
	r *bufio.Reader
}

const (
	hello23 = "VERSION|1|2\nMECH|PLAIN|plaintext\nMECH|CRAM-MD5|dictionary|active\nMECH|X-ODD|private\nMECH|bad name\nSPID|27310\nCUID|1\nCOOKIE|941c49fcebaada44c205d1c895265364\nDONE\n"
	hello24 = "VERSION|1|3\nMECH|PLAIN|plaintext\nMECH|SCRAM-SHA-256-PLUS|mutual-auth|channel-binding\nSPID|12705\nCUID|1\nCOOKIE|c6e27453c1aebcf03997e0e6b34aeb0c\nDONE\n"
	users23 = "VERSION|1|1\nSPID|24862\n"
	users24 = "VERSION|1|3\nSPID|12705\n"
)

// start listens; serve is called for each connection.
func start(t *testing.T, serve func(peer)) *fake {
	t.Helper()
	dir, err := os.MkdirTemp("", "auth-") // short: the path of a socket has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fake{path: filepath.Join(dir, "auth")}
	f.listen(t, serve)
	t.Cleanup(f.stop)
	return f
}

func (f *fake) listen(t *testing.T, serve func(peer)) {
	t.Helper()
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	f.l = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			go func() {
				defer c.Close()
				serve(peer{f, c, bufio.NewReader(c)})
			}()
		}
	}()
}

// stop closes everything, as auth does when it ends.
func (f *fake) stop() {
	f.l.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Close()
	}
	f.conns = nil
}

func (f *fake) lines() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.heard
	f.heard = nil
	return all
}

func (p peer) say(format string, args ...any) {
	fmt.Fprintf(p, "%s", strings.ReplaceAll(fmt.Sprintf(format, args...), "|", "\t"))
}

// hear returns the next line; empty at the end.
func (p peer) hear() string {
	line, err := p.r.ReadString('\n')
	if err != nil {
		return ""
	}
	line = strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", "|")
	p.mu.Lock()
	p.heard = append(p.heard, line)
	p.mu.Unlock()
	return line
}

// answering says hello and then answers each request by one line, or several, in which %s is its number.
func answering(hello string, answer func(line string) string) func(peer) {
	return func(p peer) {
		p.say("%s", hello)
		for line := p.hear(); line != ""; line = p.hear() {
			fields := strings.SplitN(line, "|", 3)
			switch fields[0] {
			case "VERSION", "CPID", "CANCEL":
			default:
				p.say("%s", strings.ReplaceAll(answer(line), "%s", fields[1]))
			}
		}
	}
}

// driver asks a fake, or two.
func driver(t *testing.T, c Config) *Auth {
	t.Helper()
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}
