package handover

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// site is a session on loopback: the test has both far ends.
type site struct {
	client, backend *net.TCPConn // far ends
	pair            *Pair
	done            chan Outcome
	cancel          context.CancelFunc
}

// tcpPair returns both ends of a TCP connection.
func tcpPair(t *testing.T) (far, near *net.TCPConn) {
	t.Helper()
	// Segments as on a network: loopback's own are a reason not to hand over.
	lc := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 1400) })
	}}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func newSite(t *testing.T, r *Relayer, prepare func(*Pair)) *site {
	t.Helper()
	if r.Quiet == nil {
		r.Quiet = func() time.Duration { return time.Millisecond }
	}
	s := &site{done: make(chan Outcome, 1)}
	p := &Pair{}
	s.client, p.Client = tcpPair(t)
	s.backend, p.Backend = tcpPair(t)
	ap := func(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }
	p.ClientTuple = Tuple{Remote: ap(p.Client.RemoteAddr()), Local: ap(p.Client.LocalAddr())}
	p.BackendTuple = Tuple{Remote: ap(p.Backend.RemoteAddr()), Local: ap(p.Backend.LocalAddr())}
	if prepare != nil {
		prepare(p)
	}
	s.pair = p
	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	t.Cleanup(cancel)
	go func() { s.done <- r.Run(ctx, p) }()
	deadline := time.Now().Add(30 * time.Second)
	s.client.SetDeadline(deadline)
	s.backend.SetDeadline(deadline)
	return s
}

func (s *site) outcome(t *testing.T) Outcome {
	t.Helper()
	select {
	case o := <-s.done:
		return o
	case <-time.After(20 * time.Second):
		t.Fatal("Run did not return")
		return Outcome{}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// Both ways of moving bytes, small and long transfers, with bytes read ahead.
func TestRelayMovesEveryByte(t *testing.T) {
	for _, copyOnly := range []bool{false, true} {
		for _, size := range []int{0, 1, 5000, 9 << 20} {
			t.Run(fmt.Sprintf("copy=%v/%d", copyOnly, size), func(t *testing.T) {
				ahead, greeting := []byte("a2 NOOP\r\n"), []byte("a1 OK\r\n")
				s := newSite(t, &Relayer{Copy: copyOnly}, func(p *Pair) {
					p.ClientReadAhead, p.BackendReadAhead = ahead, greeting
				})
				up, down := random(size), random(size)
				var wg sync.WaitGroup
				send := func(c *net.TCPConn, b []byte) {
					wg.Go(func() {
						if _, err := c.Write(b); err != nil {
							t.Error(err)
						}
						c.CloseWrite()
					})
				}
				expect := func(c *net.TCPConn, want []byte) {
					wg.Go(func() {
						if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
							t.Errorf("got %d bytes, %v; want %d equal ones", len(got), err, len(want))
						}
					})
				}
				send(s.client, up)
				send(s.backend, down)
				expect(s.backend, append(ahead, up...))
				expect(s.client, append(greeting, down...))
				wg.Wait()
				if o := s.outcome(t); o.Err != nil || o.Forwarded {
					t.Errorf("outcome %+v, want an orderly end in user space", o)
				}
				if got, want := s.pair.ToBackend.Load(), uint64(len(ahead)+size); got != want {
					t.Errorf("ToBackend = %d, want %d", got, want)
				}
				if got, want := s.pair.ToClient.Load(), uint64(len(greeting)+size); got != want {
					t.Errorf("ToClient = %d, want %d", got, want)
				}
				if s.pair.Reason() != ModeOff {
					t.Errorf("reason %q, want %q", s.pair.Reason(), ModeOff)
				}
			})
		}
	}
}

// A direction that has ended leaves the other one running.
func TestHalfClose(t *testing.T) {
	for _, first := range []string{"client", "backend"} {
		t.Run(first, func(t *testing.T) {
			s := newSite(t, &Relayer{}, nil)
			a, b := s.client, s.backend
			if first == "backend" {
				a, b = b, a
			}
			a.CloseWrite()
			if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Fatalf("other side reads %d, %v; want EOF", n, err)
			}
			want := random(100_000)
			go func() { b.Write(want); b.CloseWrite() }()
			if got, err := io.ReadAll(a); err != nil || !bytes.Equal(got, want) {
				t.Errorf("after the half-close %d bytes, %v; want %d", len(got), err, len(want))
			}
			if o := s.outcome(t); o.Err != nil {
				t.Error(o.Err)
			}
		})
	}
}

// A reset is passed on as a reset: nobody may take a cut for an end.
func TestResetIsPassedOn(t *testing.T) {
	s := newSite(t, &Relayer{}, nil)
	s.client.SetLinger(0)
	s.client.Close()
	if _, err := s.backend.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("backend sees %v, want a reset", err)
	}
	if o := s.outcome(t); o.Err == nil {
		t.Error("no error for a session that was reset")
	}
}

func TestCancelEndsBothSides(t *testing.T) {
	s := newSite(t, &Relayer{}, nil)
	s.cancel()
	for _, c := range []*net.TCPConn{s.client, s.backend} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("connection goes on after cancel")
		}
	}
	s.outcome(t)
}

// Who does not read stops who sends: nothing piles up here.
func TestBackPressure(t *testing.T) {
	for _, copyOnly := range []bool{false, true} {
		s := newSite(t, &Relayer{Copy: copyOnly}, nil)
		s.client.SetWriteDeadline(time.Now().Add(time.Second))
		var sent int64
		block := make([]byte, 256<<10)
		for {
			n, err := s.client.Write(block)
			sent += int64(n)
			if err != nil {
				break
			}
			if sent > 1<<30 {
				t.Fatal("a gigabyte was taken for a backend that does not read")
			}
		}
		// Two sockets' buffers on each side and what is on its way.
		if sent > 128<<20 {
			t.Errorf("copy=%v: %d MB were taken for a backend that does not read", copyOnly, sent>>20)
		}
		got := make(chan int64)
		go func() { n, _ := io.Copy(io.Discard, s.backend); got <- n }()
		s.client.CloseWrite()
		if n := <-got; n != sent {
			t.Errorf("copy=%v: %d bytes arrived, want %d", copyOnly, n, sent)
		}
		s.cancel()
		s.outcome(t)
	}
}

// unsettled is a kernel on whose lines it is never quiet.
type unsettled struct {
	Kernel
	freezes atomic.Int64
	err     error
}

func (k *unsettled) Forget(Tuple) {}

func (k *unsettled) Freeze(Tuple, Tuple, time.Duration) (c, b Observed, err error) {
	k.freezes.Add(1)
	return c, b, k.err
}

var errUnexpected = errors.New("unexpected")

func TestHandOverGivesUp(t *testing.T) {
	for _, row := range []struct {
		name    string
		err     error
		prepare func(*Pair)
		freezes int64
		want    Reason
	}{
		{"undone five times", fmt.Errorf("why: %w", ErrUnsettled), nil, 5, Undone},
		{"flow is gone", ErrNoFlow, nil, 1, Unobserved},
		{"unexpected", errUnexpected, nil, 1, KernelFailed},
		{"known beforehand", nil, func(p *Pair) { p.Stays = MapFull }, 0, MapFull},
		{"two families", nil, func(p *Pair) {
			p.BackendTuple.Remote = netip.MustParseAddrPort("[fd00::1]:143")
		}, 0, Family},
	} {
		t.Run(row.name, func(t *testing.T) {
			k := &unsettled{err: row.err}
			var undone atomic.Int64
			s := newSite(t, &Relayer{Kernel: k, Undone: func() { undone.Add(1) }}, row.prepare)
			for i := range 2000 {
				if s.pair.Reason() == row.want {
					break
				}
				// The session works meanwhile.
				if i%10 == 0 {
					s.client.Write([]byte{1})
					if _, err := io.ReadFull(s.backend, make([]byte, 1)); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(5 * time.Millisecond)
			}
			if r := s.pair.Reason(); r != row.want {
				t.Fatalf("reason %q, want %q", r, row.want)
			}
			if n := k.freezes.Load(); n != row.freezes {
				t.Errorf("%d attempts, want %d", n, row.freezes)
			}
			want := random(3 << 20)
			go func() { s.client.Write(want); s.client.CloseWrite() }()
			got, err := io.ReadAll(s.backend)
			if err != nil || !bytes.HasSuffix(got, want) {
				t.Errorf("afterwards: %d bytes, %v", len(got), err)
			}
			s.backend.Close()
			o := s.outcome(t)
			if row.err == errUnexpected && o.Cause != errUnexpected {
				t.Errorf("cause %v, want %v", o.Cause, errUnexpected)
			}
		})
	}
}

// The checksum differences are those of the whole sums.
func TestDiffs(t *testing.T) {
	sum := func(b []byte) uint32 {
		var s uint32
		for i := 0; i < len(b); i += 2 {
			s += uint32(b[i])<<8 | uint32(b[i+1])
		}
		for s>>16 != 0 {
			s = s&0xffff + s>>16
		}
		return s
	}
	swap := func(v uint16) uint32 { return uint32(big(v)) }
	for range 2000 {
		v6 := rand.IntN(2) == 0
		end := func() netip.AddrPort {
			var a [16]byte
			copy(a[:], random(16))
			addr := netip.AddrFrom16(a)
			if !v6 {
				addr = netip.AddrFrom4([4]byte(a[:4]))
			}
			return netip.AddrPortFrom(addr, uint16(rand.Uint32()))
		}
		in, out := Tuple{end(), end()}, Tuple{end(), end()}
		address, port := diffs(in, out)
		old := append(in.Remote.Addr().AsSlice(), in.Local.Addr().AsSlice()...)
		new := append(out.Local.Addr().AsSlice(), out.Remote.Addr().AsSlice()...)
		fold := func(s uint32) uint32 {
			for s>>16 != 0 {
				s = s&0xffff + s>>16
			}
			return s % 0xffff // both zeros are one
		}
		if got, want := fold(sum(old)+swap(address)), sum(new)%0xffff; got != want {
			t.Fatalf("%v -> %v: addresses sum up to %#x, want %#x", in, out, got, want)
		}
		op := uint32(in.Remote.Port()) + uint32(in.Local.Port())
		np := uint32(out.Remote.Port()) + uint32(out.Local.Port())
		if got, want := fold(op+swap(port)), fold(np); got != want {
			t.Fatalf("%v -> %v: ports sum up to %#x, want %#x", in, out, got, want)
		}
	}
}

func TestKey(t *testing.T) {
	for _, row := range []Tuple{
		{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("198.51.100.7:143")},
		{netip.MustParseAddrPort("[2001:db8::1]:65535"), netip.MustParseAddrPort("[fd00::2]:143")},
		{},
	} {
		if got := row.Key().Tuple(); got != row {
			t.Errorf("%v comes back as %v", row, got)
		}
	}
}

func big(v uint16) uint16 {
	if b := [2]byte{1, 0}; binary.NativeEndian.Uint16(b[:]) == 1 {
		return bits.ReverseBytes16(v)
	}
	return v
}
