package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"usher/bpf"
	"usher/director"
	"usher/steer/handover"
)

var _ handover.Kernel = (*Kernel)(nil)

// big returns a number whose bytes in memory are those of v in network order.
func big(v uint16) uint16 {
	if nativeLittle {
		return bits.ReverseBytes16(v)
	}
	return v
}

var nativeLittle = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

func flowKey(t handover.Tuple) bpf.SpliceFlowKey {
	return bpf.SpliceFlowKey{
		Remote: t.Remote.Addr().As16(), Local: t.Local.Addr().As16(),
		RemotePort: big(t.Remote.Port()), LocalPort: big(t.Local.Port()),
	}
}

func addrPort(a [16]byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), big(port))
}

func tupleOf(k bpf.SpliceFlowKey) handover.Tuple {
	return handover.Tuple{Remote: addrPort(k.Remote, k.RemotePort), Local: addrPort(k.Local, k.LocalPort)}
}

// monotonic is the clock of bpf_ktime_get_ns.
func monotonic() uint64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint64(ts.Nano())
}

// Observe implements handover.Kernel.
func (k *Kernel) Observe(t handover.Tuple, strip handover.Strip) error {
	v := bpf.SpliceFlow{State: uint32(bpf.SpliceFlowStateFLOW_OBSERVE), Strip: uint8(strip)}
	err := k.objs.Flows.Update(flowKey(t), &v, ebpf.UpdateNoExist)
	switch {
	case errors.Is(err, ebpf.ErrKeyExist):
		return handover.ErrTaken
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOMEM):
		return handover.ErrFull
	}
	return err
}

// Forget implements handover.Kernel. A forwarded flow of this tuple is left alone: it
// is that of a later session, whose client was quick to use its port again.
func (k *Kernel) Forget(t handover.Tuple) {
	if _, err := k.Flow(t); err != nil {
		k.Remove(t)
	}
}

// Remove takes a flow out of the map: its packets go to the stack from now on.
func (k *Kernel) Remove(t handover.Tuple) {
	if err := k.objs.Flows.Delete(flowKey(t)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		k.cfg.Log.Error().Err(err).Stringer("remote", t.Remote).Msg("remove flow")
	}
}

// run asks the control program: states change inside BPF only.
func (k *Kernel) run(c *bpf.SpliceControl) error {
	buf := unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c))
	out := make([]byte, len(buf)+256) // the library wants some room to spare
	opts := ebpf.RunOptions{Data: buf, DataOut: out}
	if _, err := k.objs.FlowControl.Run(&opts); err != nil {
		return fmt.Errorf("run control program: %w", err)
	}
	copy(buf, opts.DataOut)
	switch bpf.SpliceControlResult(c.Result) {
	case bpf.SpliceControlResultCONTROL_OK:
		return nil
	case bpf.SpliceControlResultCONTROL_NO_FLOW:
		return handover.ErrNoFlow
	case bpf.SpliceControlResultCONTROL_NO_USER:
		return handover.ErrNoEntry
	case bpf.SpliceControlResultCONTROL_BAD_STATE,
		bpf.SpliceControlResultCONTROL_EXPIRED,
		bpf.SpliceControlResultCONTROL_UNSETTLED:
		return fmt.Errorf("%w (control result %d)", handover.ErrUnsettled, c.Result)
	}
	return fmt.Errorf("control program answered %d", c.Result)
}

// Freeze implements handover.Kernel.
func (k *Kernel) Freeze(client, backend handover.Tuple, hold time.Duration) (c, b handover.Observed, err error) {
	var r bpf.SpliceControl
	r.Op = uint32(bpf.SpliceControlOpCONTROL_FREEZE)
	r.Deadline = monotonic() + uint64(hold)
	r.Legs[0].Key, r.Legs[1].Key = flowKey(client), flowKey(backend)
	if err := k.run(&r); err != nil {
		return c, b, err
	}
	return observed(&r.Legs[0]), observed(&r.Legs[1]), nil
}

func observed(l *bpf.SpliceLeg) handover.Observed {
	f := bpf.SpliceFlowFlag(l.Flags)
	return handover.Observed{
		Seen:   f&bpf.SpliceFlowFlagFLAG_SEEN != 0,
		EndSeq: l.EndSeq,
		HasTS:  f&bpf.SpliceFlowFlagFLAG_TS != 0,
		TSVal:  l.Tsval,
		Learnt: l.Ifindex != 0,
		Odd:    f&bpf.SpliceFlowFlagFLAG_ODD != 0,
	}
}

// Thaw implements handover.Kernel.
func (k *Kernel) Thaw(client, backend handover.Tuple) {
	var r bpf.SpliceControl
	r.Op = uint32(bpf.SpliceControlOpCONTROL_THAW)
	r.Legs[0].Key, r.Legs[1].Key = flowKey(client), flowKey(backend)
	if err := k.run(&r); err != nil && !errors.Is(err, handover.ErrNoFlow) {
		k.cfg.Log.Error().Err(err).Stringer("client", client.Remote).Msg("thaw flows")
	}
}

// Forward implements handover.Kernel.
func (k *Kernel) Forward(client, backend handover.Leg, owner handover.Owner) error {
	var r bpf.SpliceControl
	r.Op = uint32(bpf.SpliceControlOpCONTROL_FORWARD)
	key := userKey(director.Key{Hash: owner.Hash, Tag: owner.Tag})
	name := k.names.number(key, owner.User)
	for i, l := range []handover.Leg{client, backend} {
		to := &r.Legs[i]
		*to = bpf.SpliceLeg{
			Key: flowKey(l.Tuple), RcvNxt: l.RcvNxt, SndNxt: l.SndNxt, Window: l.Window,
			UserHash: key.Hash, UserTag: key.Tag, Epoch: owner.Epoch, Name: name,
			SeqAdd: l.SeqAdd, AckAdd: l.AckAdd, TsAdd: l.TSAdd, EcrAdd: l.EchoAdd,
			AddrDiff: l.AddressDiff, PortDiff: l.PortDiff,
			Protocol: protocolNumber(owner.Protocol),
			InScale:  l.InScale, OutScale: l.OutScale, WindowScale: l.WindowScale,
			Since: uint64(owner.Since.UnixNano()), Bytes: l.Bytes,
		}
		if l.NoECN {
			to.NoEcn = 1
		}
	}
	r.Legs[0].Side = uint8(bpf.SpliceFlowSideSIDE_CLIENT)
	r.Legs[1].Side = uint8(bpf.SpliceFlowSideSIDE_BACKEND)
	return k.run(&r)
}

// protocols gives each protocol its number in the flow map: append only.
var protocols = []string{"", "imap", "pop3", "submission", "sieve"}

func protocolNumber(name string) uint8 {
	for i, p := range protocols {
		if p == name {
			return uint8(i)
		}
	}
	return 0
}

func protocolName(n uint8) string {
	if int(n) < len(protocols) {
		return protocols[n]
	}
	return ""
}

func (k *Kernel) flow(key *bpf.SpliceFlowKey, v *bpf.SpliceFlow, now uint64) handover.Flow {
	has := func(f bpf.SpliceFlowFlag) bool { return bpf.SpliceFlowFlag(v.Flags)&f != 0 }
	uk := bpf.SpliceUserKey{Hash: v.UserHash, Tag: v.UserTag}
	f := handover.Flow{
		Tuple: tupleOf(*key),
		Other: handover.Tuple{
			Remote: addrPort(v.Daddr, v.Dport), Local: addrPort(v.Saddr, v.Sport),
		},
		FromClient: bpf.SpliceFlowSide(v.Side) == bpf.SpliceFlowSideSIDE_CLIENT,
		Owner: handover.Owner{
			Hash: v.UserHash, Tag: k.tags.text(v.UserTag), Epoch: v.Epoch,
			User: k.names.text(uk, v.Name), Protocol: protocolName(v.Protocol),
			Since: time.Unix(0, int64(v.Since)),
		},
		Packets: v.Packets, Bytes: v.Bytes,
		FIN: has(bpf.SpliceFlowFlagFLAG_FIN), RST: has(bpf.SpliceFlowFlagFLAG_RST),
		SYN: has(bpf.SpliceFlowFlagFLAG_SYN), Stopped: has(bpf.SpliceFlowFlagFLAG_STOPPED),
		EndSeq: v.EndSeq, MaxAck: v.MaxAck, AckAdd: v.AckAdd, Window: v.Window, Scale: v.InScale,
	}
	if now > v.LastSeen {
		f.Idle = time.Duration(now - v.LastSeen)
	}
	return f
}

// Flow returns one flow that is being forwarded. ErrNoFlow.
func (k *Kernel) Flow(t handover.Tuple) (handover.Flow, error) {
	key := flowKey(t)
	var v bpf.SpliceFlow
	if err := k.objs.Flows.Lookup(key, &v); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return handover.Flow{}, handover.ErrNoFlow
		}
		return handover.Flow{}, fmt.Errorf("look up flow: %w", err)
	}
	if v.State != uint32(bpf.SpliceFlowStateFLOW_FORWARD) {
		return handover.Flow{}, handover.ErrNoFlow
	}
	return k.flow(&key, &v, monotonic()), nil
}

// batch is how many entries one system call copies out of the map.
const batch = 4096

// each calls f for every entry of the flow map. Entries may be missed or repeated
// while the map changes.
func (k *Kernel) each(f func(*bpf.SpliceFlowKey, *bpf.SpliceFlow) bool) error {
	keys := make([]bpf.SpliceFlowKey, batch)
	values := make([]bpf.SpliceFlow, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := k.objs.Flows.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			if !f(&keys[i], &values[i]) {
				return nil
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("scan flow map: %w", err)
		}
	}
}

// Flows calls yield for each flow that is being forwarded, until it returns false.
func (k *Kernel) Flows(yield func(handover.Flow) bool) error {
	now := monotonic()
	return k.each(func(key *bpf.SpliceFlowKey, v *bpf.SpliceFlow) bool {
		if v.State != uint32(bpf.SpliceFlowStateFLOW_FORWARD) {
			return true
		}
		return yield(k.flow(key, v, now))
	})
}

// DropUnfinished removes the flows that an earlier daemon had not handed over when
// it ended: their sockets are gone.
func (k *Kernel) DropUnfinished() (int, error) {
	var stale []bpf.SpliceFlowKey
	err := k.each(func(key *bpf.SpliceFlowKey, v *bpf.SpliceFlow) bool {
		if v.State != uint32(bpf.SpliceFlowStateFLOW_FORWARD) {
			stale = append(stale, *key)
		}
		return true
	})
	for _, key := range stale {
		_ = k.objs.Flows.Delete(key)
	}
	return len(stale), err
}
