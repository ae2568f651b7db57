package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// holdTime bounds how long packets of a session may be dropped during a
// hand-over; measured: 50 µs, 9 ms on a saturated machine. When it is over they
// go to the sockets again, so that a daemon killed inside wedges nothing.
const holdTime = 250 * time.Millisecond

// attempt tries to hand over two connections whose pumps are parked. The error is
// nil when the kernel carries the session; errBusy or errRetry when it may be
// tried again; or a *refusal.
func (r *relay) attempt(cfd, bfd int) error {
	// Acknowledge what was received but not yet acknowledged: nobody would do it later.
	for _, fd := range []int{cfd, bfd} {
		if !empty(fd) {
			return errBusy
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
		// A frozen socket would go on sending keepalives, with stale numbers.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0); err != nil {
			return &refusal{KernelFailed, fmt.Errorf("clear SO_KEEPALIVE: %w", err)}
		}
	}

	client, backend := r.pair.ClientTuple, r.pair.BackendTuple
	co, bo, err := r.kernel.Freeze(client, backend, holdTime)
	if err != nil {
		if errors.Is(err, ErrUnsettled) {
			return errRetry
		}
		if errors.Is(err, ErrNoFlow) {
			// An earlier session with the same tuple has forgotten it behind our back.
			return &refusal{reason: Unobserved}
		}
		return &refusal{KernelFailed, err}
	}
	err = r.frozen(cfd, bfd, co, bo)
	if err != nil {
		unrepair(cfd)
		unrepair(bfd)
		r.kernel.Thaw(client, backend)
	}
	return err
}

// frozen is the part of attempt between freeze and forward: packets of the session
// are being dropped, so it does as little as possible.
func (r *relay) frozen(cfd, bfd int, co, bo Observed) error {
	if co.Odd || bo.Odd {
		return &refusal{reason: IPOptions}
	}
	if !co.Seen || !bo.Seen || !co.Learnt || !bo.Learnt {
		return &refusal{reason: Unobserved}
	}
	for _, fd := range []int{cfd, bfd} {
		if err := setRepair(fd, repairOn); err != nil {
			return &refusal{KernelFailed, err}
		}
	}
	c, err := readFrozen(cfd)
	if err != nil {
		return &refusal{KernelFailed, err}
	}
	b, err := readFrozen(bfd)
	if err != nil {
		return &refusal{KernelFailed, err}
	}
	if !c.quietIn(cfd, co) || !b.quietIn(bfd, bo) {
		return errRetry
	}
	if r.client.timestamps && (!co.HasTS || !bo.HasTS) {
		return &refusal{reason: Unobserved}
	}
	cl, bl := legs(r.pair, c, b, r.client, r.backend, co, bo)
	err = r.kernel.Forward(cl, bl, r.pair.Owner)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrUnsettled):
		return errRetry
	case errors.Is(err, ErrNoEntry):
		return &refusal{reason: NoEntry}
	}
	return &refusal{KernelFailed, err}
}

// legs computes the translation between two frozen connections.
//
// Each leg had its own sequence numbers. What we received on one we have sent on
// the other, so the next byte is rcvNxt here and sndNxt there. Timestamps: the
// remote host's newest value here corresponds to our own clock there, which the
// other side has seen at most.
func legs(p *Pair, c, b frozen, co, bo options, cSeen, bSeen Observed) (cl, bl Leg) {
	toB := b.ts - cSeen.TSVal
	toC := c.ts - bSeen.TSVal
	cl = Leg{
		Tuple: p.ClientTuple, RcvNxt: c.rcvNxt, SndNxt: c.sndNxt, Window: c.window.sndWnd,
		SeqAdd: b.sndNxt - c.rcvNxt, AckAdd: b.rcvNxt - c.sndNxt,
		TSAdd: toB, EchoAdd: -toC,
		InScale: co.sndScale, OutScale: bo.rcvScale, WindowScale: max(bo.sndScale, co.rcvScale),
		Bytes: p.ToBackend.Load(),
	}
	bl = Leg{
		Tuple: p.BackendTuple, RcvNxt: b.rcvNxt, SndNxt: b.sndNxt, Window: b.window.sndWnd,
		SeqAdd: c.sndNxt - b.rcvNxt, AckAdd: c.rcvNxt - b.sndNxt,
		TSAdd: toC, EchoAdd: -toB,
		InScale: bo.sndScale, OutScale: co.rcvScale, WindowScale: max(co.sndScale, bo.rcvScale),
		Bytes: p.ToClient.Load(),
	}
	cl.NoECN = co.ecn != bo.ecn
	bl.NoECN = cl.NoECN
	cl.AddressDiff, cl.PortDiff = diffs(p.ClientTuple, p.BackendTuple)
	bl.AddressDiff, bl.PortDiff = diffs(p.BackendTuple, p.ClientTuple)
	return cl, bl
}

// diffs returns the checksum differences (RFC 1624) of packets that arrive on in
// and leave on out, for the addresses and for the ports.
func diffs(in, out Tuple) (address, port uint16) {
	var sum uint32
	word := func(old, new []byte) {
		for i := 0; i < len(old); i += 2 {
			sum += uint32(^binary.NativeEndian.Uint16(old[i:])) + uint32(binary.NativeEndian.Uint16(new[i:]))
		}
	}
	fold := func() uint16 {
		for sum>>16 != 0 {
			sum = sum&0xffff + sum>>16
		}
		return uint16(sum)
	}
	text := func(a netip.Addr) []byte { return a.AsSlice() }
	word(text(in.Remote.Addr()), text(out.Local.Addr()))
	word(text(in.Local.Addr()), text(out.Remote.Addr()))
	address = fold()
	sum = 0
	be := binary.BigEndian.AppendUint16
	word(be(nil, in.Remote.Port()), be(nil, out.Local.Port()))
	word(be(nil, in.Local.Port()), be(nil, out.Remote.Port()))
	return address, fold()
}

// Not yet: nothing was stopped, or it was stopped and undone. Try again later.
var (
	errBusy  = errors.New("connections are busy")
	errRetry = errors.New("hand-over undone")
)

// refusal is a final answer: the session stays in user space.
type refusal struct {
	reason Reason
	cause  error
}

func (e *refusal) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %v", e.reason, e.cause)
	}
	return string(e.reason)
}

func (e *refusal) Unwrap() error { return e.cause }
