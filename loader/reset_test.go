package loader_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"usher/director"
	"usher/loader"
	"usher/loader/netns"
	"usher/steer/expire"
	"usher/steer/handover"
	"usher/steer/upstream"
	"usher/testenv/lab"
)

// Whose session is ended learns it at once, whatever was lost on the way to it or from it
// just before: a RST with a number that it does not expect any more would be discarded
// without an answer, and it is idle.
func TestReset(t *testing.T) {
	needRoot(t)
	l, err := lab.New(lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, n := range l.Nets() {
		for _, leg := range []string{"client", "backend"} {
			for _, lost := range []string{"nothing", "acknowledgement", "data"} {
				for _, way := range []string{"end", "unpin"} {
					t.Run(fmt.Sprintf("%v/%s/%s/%s", n.Service, leg, lost, way), func(t *testing.T) {
						resets(t, l, n, leg, lost, way)
					})
				}
			}
		}
	}
}

func resets(t *testing.T, l *lab.Lab, n lab.Net, leg, lost, way string) {
	pins := bpffs(t)
	k := open(t, l, loader.Config{PinPath: pins})
	key := director.Key{Hash: 1}
	if err := k.PutEntry(key, n.Backends[0], 1, true); err != nil {
		t.Fatal(err)
	}
	client, backend, session := splice(t, l, k, n)
	peer, sender, ns := client, backend, l.Client
	if leg == "backend" {
		peer, sender, ns = backend, client, l.Backend
	}
	from, err := k.Flow(handover.Tuple{Remote: tuple(sender).Local, Local: tuple(sender).Remote})
	if err != nil {
		t.Fatal(err)
	}
	send := func() {
		t.Helper()
		if _, err := sender.Write(make([]byte, 10_000)); err != nil { // more than windows are rounded by, less than the first flight
			t.Fatal(err)
		}
	}
	restore := func() {}
	switch lost {
	case "acknowledgement":
		restore = drop(t, ns, ebpf.AttachTCXEgress)
		before := segmentsOut(t, peer)
		send()
		if _, err := io.ReadFull(peer, make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
		await(t, "an acknowledgement", func() bool { return segmentsOut(t, peer) > before })
	case "data":
		restore = drop(t, ns, ebpf.AttachTCXIngress)
		send()
		await(t, "the data to pass", func() bool {
			now, err := k.Flow(from.Tuple)
			return err == nil && now.EndSeq != from.EndSeq
		})
	}
	// From here on nothing passes, so what was lost stays lost.
	if err := k.PutEntry(key, n.Backends[0], 2, true); err != nil {
		t.Fatal(err)
	}
	sent, err := k.Flow(from.Tuple)
	if err != nil {
		t.Fatal(err)
	}
	acked, err := k.Flow(from.Other)
	if err != nil {
		t.Fatal(err)
	}
	if behind := sent.EndSeq - (acked.MaxAck + acked.AckAdd); (behind != 0) != (lost != "nothing") {
		t.Fatalf("%d bytes are not acknowledged, though %s was lost", behind, lost)
	}
	restore()
	if way == "unpin" {
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	err = l.Director.Do(func() error { // a reset is sent by a new socket
		if way == "unpin" {
			return loader.Unpin(pins)
		}
		if !expire.New(k, nobody{}, time.Hour, zerolog.Nop()).End(session, "moved") {
			return errors.New("the kernel does not carry the session")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{peer, sender} {
		c.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%v: read %d bytes and %v, want a reset", c.LocalAddr(), n, err)
		}
	}
}

// nobody is a table of sessions that need no tidying up.
type nobody struct{}

func (nobody) Known(handover.Tuple, time.Time) bool                    { return true }
func (nobody) Ended(handover.Tuple, time.Time, uint64, uint64, string) {}

// splice returns both far ends of a session that the kernel carries, and its client tuple.
func splice(t *testing.T, l *lab.Lab, k *loader.Kernel, n lab.Net) (client, backend *net.TCPConn, session handover.Tuple) {
	t.Helper()
	listen := func(ns *netns.NS, a netip.Addr) net.Listener {
		ln, err := ns.Listen("tcp", netip.AddrPortFrom(a, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	front, back := listen(l.Director, n.Service), listen(l.Backend, n.Backends[0])
	p := &proxy{kernel: k}
	p.relayer = handover.Relayer{Kernel: k, Quiet: func() time.Duration { return time.Millisecond }}
	p.dialer = upstream.Dialer{Kernel: k, Control: l.Director.Control}
	go p.serve(t, front, back.Addr().(*net.TCPAddr).AddrPort())
	c, err := l.Client.Dial(t.Context(), "tcp", nil, front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	b, err := back.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	for _, c := range []net.Conn{c, b} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	if _, err := io.ReadFull(c, make([]byte, len("hello\n"))); err != nil {
		t.Fatal(err)
	}
	await(t, "the hand-over", func() bool { return p.forwarded.Load() == 1 })
	client, backend = c.(*net.TCPConn), b.(*net.TCPConn)
	at := tuple(client)
	return client, backend, handover.Tuple{Remote: at.Local, Local: at.Remote}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen in time: %s", what)
		}
	}
}

// drop loses every packet that enters or leaves a namespace, until restore is called.
func drop(t *testing.T, ns *netns.NS, at ebpf.AttachType) (restore func()) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}}) // TC_ACT_SHOT
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	index, err := ns.Index("eth0")
	if err != nil {
		t.Fatal(err)
	}
	var x link.Link
	if err := ns.Do(func() (err error) {
		x, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: at})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return func() { x.Close() }
}

// segmentsOut is how many segments a socket has sent, acknowledgements included.
func segmentsOut(t *testing.T, c *net.TCPConn) (n uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		var ti *unix.TCPInfo
		if ti, inner = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); inner == nil {
			n = ti.Segs_out
		}
	})
	if err := errors.Join(err, inner); err != nil {
		t.Fatal(err)
	}
	return n
}
