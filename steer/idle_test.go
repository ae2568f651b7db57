package steer

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"usher/director"
	"usher/steer/auth"
	"usher/steer/route"
	"usher/steer/secure"
	"usher/testenv/backend"
	"usher/testenv/client"
	"usher/testenv/pki"
)

// idleLimit is what an idle session with TLS may cost, all of the process together.
const idleLimit = 40 << 10

// Idle sessions with TLS are cheap. The server is a process of its own, so that its memory is nobody else's; each session
// has moved large records in both directions before it falls silent.
func TestIdleTLS(t *testing.T) {
	if os.Getenv(idleServer) != "" {
		serveIdle(t)
		return
	}
	ca, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ca.Write(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), "usher.test"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca.PEM, 0o644); err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Certificate("127.0.0.2")
	if err != nil {
		t.Fatal(err)
	}
	b, err := backend.Start(nil, netip.MustParseAddr("127.0.0.2"), backend.Options{
		IMAPPort: backend.AnyPort, POP3Port: backend.AnyPort, TLS: &tls.Config{Certificates: []tls.Certificate{cert}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, tt := range []struct {
		upstream TLSMode
		bulk     bool
	}{{TLSNone, false}, {TLSStart, true}} {
		t.Run(fmt.Sprintf("backend=%s,bulk=%v", tt.upstream, tt.bulk), func(t *testing.T) {
			measureIdle(t, ca, dir, b, tt.upstream, tt.bulk)
		})
	}
}

const idleServer = "USHER_TEST_IDLE_SERVER"

func measureIdle(t *testing.T, ca *pki.Authority, dir string, b *backend.Server, upstream TLSMode, bulk bool) {
	const n = 200
	cmd := exec.Command(os.Args[0], "-test.run=^TestIdleTLS$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", idleServer, dir, b.IMAP().Port(), upstream))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(out)
	ask := func() (address string, memory, stacks, resident uint64) {
		t.Helper()
		fmt.Fprintln(in)
		if !lines.Scan() {
			t.Fatal("the server has ended")
		}
		if _, err := fmt.Sscan(lines.Text(), &address, &memory, &stacks, &resident); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		return address, memory, stacks, resident
	}
	address, _, _, _ := ask()
	config := func(i int) client.Config {
		return client.Config{
			Server: netip.MustParseAddrPort(address), User: fmt.Sprint("user", i), Pipeline: true,
			TLS: &tls.Config{RootCAs: ca.Pool, ServerName: "usher.test"}, StartTLS: true,
		}
	}
	// What the first sessions leave behind is no session's own.
	first, report := client.DialAll(t.Context(), 20, 4, config)
	if err := report.Err(); err != nil {
		t.Fatal(err)
	}
	client.CloseAll(first)
	time.Sleep(100 * time.Millisecond)
	_, before, stacksBefore, residentBefore := ask()
	sessions, report := client.DialAll(t.Context(), n, 4, config)
	if err := report.Err(); err != nil {
		t.Fatal(err)
	}
	defer client.CloseAll(sessions)
	if bulk {
		for _, s := range sessions {
			if err := s.Echo(200_000, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, after, stacksAfter, residentAfter := ask()
	each := (after - before) / n
	t.Logf("%d idle sessions: %.1f KiB each, of which stacks %.1f KiB; resident memory grew by %.1f KiB each",
		n, float64(each)/1024, float64(stacksAfter-stacksBefore)/n/1024, float64(residentAfter-residentBefore)/n/1024)
	if each > idleLimit {
		t.Errorf("an idle session takes %d bytes, limit %d", each, idleLimit)
	}
}

// serveIdle is the server. It answers each line with its address and its memory.
func serveIdle(t *testing.T) {
	var dir, upstream string
	var port uint16
	if _, err := fmt.Sscan(os.Getenv(idleServer), &dir, &port, &upstream); err != nil {
		t.Fatal(err)
	}
	d := director.New(director.Config{})
	d.Step(time.Now(), director.HostPut{Host: director.Host{Addr: netip.MustParseAddr("127.0.0.2"), Weight: 100}})
	certificates, err := secure.OpenCertificates(secure.CertificatesConfig{
		Pairs: []secure.Pair{{Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}}, Log: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	backends, err := secure.OpenBackends(secure.BackendsConfig{CA: filepath.Join(dir, "ca.pem")})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Listeners: []Listener{{
			Protocol: "imap", Address: netip.MustParseAddrPort("127.0.0.1:0"), BackendPort: port, TLS: TLSStart, BackendTLS: TLSMode(upstream),
		}},
		Auth: auth.Static{NoPassword: true}, UserMode: ModeSplice, Log: zerolog.Nop(), Certificates: certificates, Backends: backends,
		Route: route.Config{Director: d, Store: route.Forgetful{}, Log: zerolog.Nop()},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go s.Run(ctx)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		// Stacks shrink by half with each collection.
		for range 5 {
			debug.FreeOSMemory()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		statm, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			t.Fatal(err)
		}
		pages := 0
		if _, err := fmt.Sscan(strings.Fields(string(statm))[1], &pages); err != nil {
			t.Fatal(err)
		}
		fmt.Println(s.listeners[0].socket.Addr(), m.HeapInuse+m.StackInuse, m.StackInuse, pages*os.Getpagesize())
	}
}
