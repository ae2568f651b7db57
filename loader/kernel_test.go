package loader_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"usher/director"
	"usher/loader"
	"usher/loader/netns"
	"usher/steer/handover"
	"usher/steer/upstream"
	"usher/testenv/lab"
)

// bpffs mounts a bpffs of its own for a test.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return filepath.Join(dir, "usher")
}

func open(t *testing.T, l *lab.Lab, cfg loader.Config) *loader.Kernel {
	t.Helper()
	if cfg.PinPath == "" {
		cfg.PinPath = bpffs(t)
	}
	if cfg.Mode == "" {
		cfg.Mode = loader.ModeTC
	}
	cfg.MaxFlows = 10000
	cfg.Log = zerolog.New(zerolog.NewTestWriter(t))
	var k *loader.Kernel
	if err := l.Director.Do(func() (err error) { k, err = loader.Open(cfg); return err }); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func needRoot(t testing.TB) {
	t.Helper()
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
}

// proxy accepts at the lab's service address and relays to the first backend,
// without any dialogue: the hand-over under test and nothing else.
type proxy struct {
	kernel    *loader.Kernel
	relayer   handover.Relayer
	dialer    upstream.Dialer
	forwarded atomic.Int64
	stayed    sync.Map // reason → *atomic.Int64
	wg        sync.WaitGroup
}

func (p *proxy) serve(t *testing.T, ln net.Listener, backend netip.AddrPort) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		p.wg.Add(1)
		go func() {
			defer p.wg.Done()
			p.session(t, c.(*net.TCPConn), backend)
		}()
	}
}

func tuple(c *net.TCPConn) handover.Tuple {
	un := func(a net.Addr) netip.AddrPort {
		ap := a.(*net.TCPAddr).AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return handover.Tuple{Remote: un(c.RemoteAddr()), Local: un(c.LocalAddr())}
}

func (p *proxy) session(t *testing.T, c *net.TCPConn, backend netip.AddrPort) {
	ct := tuple(c)
	if err := p.kernel.Observe(ct, 0); err != nil {
		t.Errorf("observe: %v", err)
	}
	strip, mss, err := handover.Options(c)
	if err != nil {
		t.Errorf("options: %v", err)
	}
	// A greeting, so that the client's acknowledgement is observed.
	io.WriteString(c, "hello\n")
	b, err := p.dialer.Dial(context.Background(), backend, strip, mss)
	if err != nil {
		t.Errorf("dial: %v", err)
		return
	}
	pair := &handover.Pair{
		Client: c, Backend: b.TCPConn, ClientTuple: ct, BackendTuple: b.Tuple,
		Owner: handover.Owner{Hash: 1, Epoch: 1, User: "u", Protocol: "imap", Since: time.Now()},
	}
	out := p.relayer.Run(context.Background(), pair)
	if out.Forwarded {
		p.forwarded.Add(1)
		return
	}
	n, _ := p.stayed.LoadOrStore(pair.Reason(), new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

// echo answers every byte, and half-closes when the client has.
func echo(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() { defer c.Close(); io.Copy(c, c); c.(*net.TCPConn).CloseWrite() }()
	}
}

// talk sends rounds of random data, checks what comes back, and ends by a half-close.
func talk(c net.Conn, rounds int) error {
	defer c.Close()
	c.SetDeadline(time.Now().Add(60 * time.Second))
	hello := make([]byte, 6)
	if _, err := io.ReadFull(c, hello); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	for i := range rounds {
		n := 1 + mrand.IntN(3000)
		if mrand.IntN(4) == 0 {
			n = 1 + mrand.IntN(150_000)
		}
		out := make([]byte, n)
		rand.Read(out)
		go c.Write(out)
		in := make([]byte, n)
		if got, err := io.ReadFull(c, in); err != nil {
			return fmt.Errorf("round %d: read %d of %d: %w", i, got, n, err)
		}
		if !bytes.Equal(in, out) {
			return fmt.Errorf("round %d: %d bytes differ: %x, want %x", i, n, sha256.Sum256(in), sha256.Sum256(out))
		}
		time.Sleep(time.Duration(mrand.IntN(12_000)) * time.Microsecond)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		return fmt.Errorf("after half-close: %d bytes, %w", len(rest), err)
	}
	return nil
}

func TestHandover(t *testing.T) {
	needRoot(t)
	off := func(name string) map[string]string { return map[string]string{"net.ipv4." + name: "0"} }
	for _, row := range []struct {
		name            string
		client, backend map[string]string
		topology        lab.Topology
		cfg             loader.Config
		stays           handover.Reason // every session stays in user space with this reason
	}{
		{name: "plain"},
		{name: "learnt hop", cfg: loader.Config{LearntHop: true}},
		{name: "clsact", cfg: loader.Config{Clsact: true}},
		{name: "xdp", cfg: loader.Config{Mode: loader.ModeXDP}},
		{name: "one-arm", topology: lab.OneArm},
		{name: "lo-address", topology: lab.LoAddress},
		{name: "client without timestamps", client: off("tcp_timestamps")},
		{name: "client without sack", client: off("tcp_sack")},
		{name: "client without window scaling", client: off("tcp_window_scaling")},
		{name: "backend without window scaling", backend: off("tcp_window_scaling")},
		{name: "backend without timestamps", backend: off("tcp_timestamps"), stays: handover.Timestamps},
		{name: "backend without sack", backend: off("tcp_sack"), stays: handover.SACK},
	} {
		t.Run(row.name, func(t *testing.T) {
			l, err := lab.New(lab.Options{Topology: row.topology, ClientSysctl: row.client, BackendSysctl: row.backend})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			})
			if row.cfg.Mode == loader.ModeXDP {
				if err := l.XDPReady(true); err != nil {
					t.Fatal(err)
				}
			}
			k := open(t, l, row.cfg)
			if err := k.PutEntry(director.Key{Hash: 1}, l.V4.Backends[0], 1, true); err != nil {
				t.Fatal(err)
			}
			for _, n := range l.Nets() {
				exchange(t, l, k, n, row.stays)
			}
			c, err := k.Counters()
			if err != nil {
				t.Fatal(err)
			}
			for name, n := range c {
				if n.Packets > 0 {
					t.Logf("%-18s %8d packets", name, n.Packets)
				}
			}
		})
	}
}

func exchange(t *testing.T, l *lab.Lab, k *loader.Kernel, n lab.Net, stays handover.Reason) {
	const sessions, rounds = 40, 16
	front, err := l.Director.Listen("tcp", netip.AddrPortFrom(n.Service, 143).String())
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	back, err := l.Backend.Listen("tcp", netip.AddrPortFrom(n.Backends[0], 143).String())
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	go echo(back)
	p := &proxy{kernel: k}
	p.relayer = handover.Relayer{Kernel: k, Quiet: func() time.Duration { return time.Duration(mrand.IntN(6000)) * time.Microsecond }}
	p.dialer = upstream.Dialer{Kernel: k, Control: l.Director.Control}
	go p.serve(t, front, netip.AddrPortFrom(n.Backends[0], 143))
	errs := make(chan error, sessions)
	for range sessions {
		go func() {
			c, err := l.Client.Dial(t.Context(), "tcp", nil, netip.AddrPortFrom(n.Service, 143).String())
			if err != nil {
				errs <- err
				return
			}
			errs <- talk(c, rounds)
		}()
	}
	for range sessions {
		if err := <-errs; err != nil {
			t.Errorf("%v: %v", n.Service, err)
		}
	}
	front.Close()
	p.wg.Wait()
	p.stayed.Range(func(reason, n any) bool {
		t.Logf("stayed in user space: %s %d", reason, n.(*atomic.Int64).Load())
		return true
	})
	t.Logf("%v: forwarded %d of %d", n.Service, p.forwarded.Load(), sessions)
	if stays == handover.Spliced && p.forwarded.Load() < sessions*9/10 {
		t.Errorf("only %d of %d sessions were forwarded", p.forwarded.Load(), sessions)
	}
	if stays != handover.Spliced {
		if n, ok := p.stayed.Load(stays); !ok || n.(*atomic.Int64).Load() != sessions {
			t.Errorf("want all sessions to stay in user space for reason %s", stays)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	needRoot(t)
	l, err := lab.New(lab.Options{Family: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	path := bpffs(t)
	k := open(t, l, loader.Config{PinPath: path})
	again := func() error {
		return l.Director.Do(func() error {
			k, err := loader.Open(loader.Config{PinPath: path, Mode: loader.ModeTC, MaxFlows: 100})
			if err == nil {
				k.Close()
			}
			return err
		})
	}
	if err := again(); err == nil || !bytes.Contains([]byte(err.Error()), []byte("in use")) {
		t.Errorf("second daemon: %v, want ErrInUse", err)
	}
	k.Close()
	if err := os.Mkdir(filepath.Join(path, "layout-99"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := again(); err == nil || !bytes.Contains([]byte(err.Error()), []byte("usher unpin")) {
		t.Errorf("other layout: %v, want ErrLayout with the way out", err)
	}
	if err := l.Director.Do(func() error { return loader.Unpin(path) }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("after Unpin: %v, want no pin path", err)
	}
}
