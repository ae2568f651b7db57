package bpf_test

import (
	"math"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"usher/bpf"
)

const (
	observeState = uint32(bpf.SpliceFlowStateFLOW_OBSERVE)
	holdState    = uint32(bpf.SpliceFlowStateFLOW_HOLD)
	forwardState = uint32(bpf.SpliceFlowStateFLOW_FORWARD)

	freezeOp  = bpf.SpliceControlOpCONTROL_FREEZE
	thawOp    = bpf.SpliceControlOpCONTROL_THAW
	forwardOp = bpf.SpliceControlOpCONTROL_FORWARD

	resultOK        = bpf.SpliceControlResultCONTROL_OK
	resultNoFlow    = bpf.SpliceControlResultCONTROL_NO_FLOW
	resultBadState  = bpf.SpliceControlResultCONTROL_BAD_STATE
	resultExpired   = bpf.SpliceControlResultCONTROL_EXPIRED
	resultUnsettled = bpf.SpliceControlResultCONTROL_UNSETTLED
	resultBadOp     = bpf.SpliceControlResultCONTROL_BAD_OP
	resultNoUser    = bpf.SpliceControlResultCONTROL_NO_USER
)

const second = 1_000_000_000

// control runs the control program; its answer is in c.
func (r *rig) control(t tester, op bpf.SpliceControlOp, c *bpf.SpliceControl) bpf.SpliceControlResult {
	t.Helper()
	c.Op, c.Result = uint32(op), math.MaxUint32
	buf := unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c))
	o := ebpf.RunOptions{Data: buf, DataOut: make([]byte, len(buf)+256)}
	if code, err := r.FlowControl.Run(&o); err != nil || code != 0 {
		t.Fatalf("control program: code %d, %v", code, err)
	}
	copy(buf, o.DataOut)
	return bpf.SpliceControlResult(c.Result)
}

// request is one for the session's pair.
func request(family int) *bpf.SpliceControl {
	c := &bpf.SpliceControl{}
	c.Legs[0].Key, c.Legs[1].Key = keys(family)
	return c
}

// half is what one leg is before a request, and which state it has behind it.
type half struct {
	state  uint32 // 0: there is no entry
	late   bool   // the deadline has passed
	behind uint32 // how much of what was recorded the socket has not received
	after  uint32
}

var controlRows = []struct {
	name            string
	op              bpf.SpliceControlOp
	client, backend half
	result          bpf.SpliceControlResult
}{
	{"freeze", freezeOp, half{state: observeState, after: holdState}, half{state: observeState, after: holdState}, resultOK},
	{"freeze nothing", freezeOp, half{}, half{}, resultNoFlow},
	{"freeze without backend", freezeOp, half{state: observeState, after: observeState}, half{}, resultNoFlow},
	{"freeze without client", freezeOp, half{}, half{state: observeState, after: observeState}, resultNoFlow},
	{"freeze without backend, client held", freezeOp, half{state: holdState, after: holdState}, half{}, resultNoFlow},
	{"freeze again", freezeOp, half{state: holdState, after: holdState}, half{state: holdState, after: holdState}, resultBadState},
	{"freeze, client held", freezeOp, half{state: holdState, after: holdState}, half{state: observeState, after: observeState}, resultBadState},
	{"freeze, backend held", freezeOp, half{state: observeState, after: observeState}, half{state: holdState, after: holdState}, resultBadState},
	{"freeze, backend spliced", freezeOp, half{state: observeState, after: observeState}, half{state: forwardState, after: forwardState}, resultBadState},
	{"freeze spliced", freezeOp, half{state: forwardState, after: forwardState}, half{state: forwardState, after: forwardState}, resultBadState},

	{"thaw", thawOp, half{state: holdState, after: observeState}, half{state: holdState, after: observeState}, resultOK},
	{"thaw late", thawOp, half{state: holdState, late: true, after: observeState}, half{state: holdState, late: true, after: observeState}, resultOK},
	{"thaw observed", thawOp, half{state: observeState, after: observeState}, half{state: observeState, after: observeState}, resultOK},
	{"thaw half", thawOp, half{state: observeState, after: observeState}, half{state: holdState, after: observeState}, resultOK},
	{"thaw spliced", thawOp, half{state: forwardState, after: forwardState}, half{state: forwardState, after: forwardState}, resultOK},
	{"thaw nothing", thawOp, half{}, half{}, resultNoFlow},
	{"thaw without backend", thawOp, half{state: holdState, after: observeState}, half{}, resultNoFlow},
	{"thaw without client", thawOp, half{}, half{state: holdState, after: observeState}, resultNoFlow},

	{"forward", forwardOp, half{state: holdState, after: forwardState}, half{state: holdState, after: forwardState}, resultOK},
	{"forward nothing", forwardOp, half{}, half{}, resultNoFlow},
	{"forward without backend", forwardOp, half{state: holdState, after: observeState}, half{}, resultNoFlow},
	{"forward without client", forwardOp, half{}, half{state: holdState, after: observeState}, resultNoFlow},
	{"forward spliced without backend", forwardOp, half{state: forwardState, after: forwardState}, half{}, resultNoFlow},
	{"forward observed", forwardOp, half{state: observeState, after: observeState}, half{state: observeState, after: observeState}, resultBadState},
	{"forward, client observed", forwardOp, half{state: observeState, after: observeState}, half{state: holdState, after: holdState}, resultBadState},
	{"forward, backend observed", forwardOp, half{state: holdState, after: holdState}, half{state: observeState, after: observeState}, resultBadState},
	{"forward again", forwardOp, half{state: forwardState, after: forwardState}, half{state: forwardState, after: forwardState}, resultBadState},
	{"forward, client late", forwardOp, half{state: holdState, late: true, after: holdState}, half{state: holdState, after: holdState}, resultExpired},
	{"forward, backend late", forwardOp, half{state: holdState, after: holdState}, half{state: holdState, late: true, after: holdState}, resultExpired},
	{"forward, client unsettled", forwardOp, half{state: holdState, behind: 1, after: holdState}, half{state: holdState, after: holdState}, resultUnsettled},
	{"forward, backend unsettled", forwardOp, half{state: holdState, after: holdState}, half{state: holdState, behind: 1, after: holdState}, resultUnsettled},
	{"forward, socket ahead of what was recorded", forwardOp, half{state: holdState, behind: math.MaxUint32, after: holdState}, half{state: holdState, after: holdState}, resultUnsettled},

	{"no operation", 0, half{state: holdState, after: holdState}, half{state: observeState, after: observeState}, resultBadOp},
	{"unknown operation", 4, half{state: holdState, after: holdState}, half{state: holdState, after: holdState}, resultBadOp},
}

func TestControl(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, row := range controlRows {
		t.Run(row.name, func(t *testing.T) {
			r.clear(t)
			r.putUser(t, bpf.SpliceUserKey{}, 0)
			c, now, before := request(0), monotonic(), r.counters(t)
			c.Deadline = now + second
			halves := [2]half{row.client, row.backend}
			var flows [2]bpf.SpliceFlow
			for i, h := range halves {
				flows[i] = bpf.SpliceFlow{
					State: h.state, Deadline: now + 2*second, EndSeq: 1000 * uint32(i+1), Tsval: 7, Flags: flagSeen | flagTS,
					Ifindex: uint32(i + 1),
				}
				if h.late {
					flows[i].Deadline = now - 1
				}
				c.Legs[i].RcvNxt = flows[i].EndSeq - h.behind
				if h.state != 0 {
					r.putFlow(t, c.Legs[i].Key, flows[i])
				}
			}
			if got := r.control(t, row.op, c); got != row.result {
				t.Errorf("result %d, want %d", got, row.result)
			}
			for i, h := range halves {
				got := r.flow(t, c.Legs[i].Key)
				if got == nil {
					if h.after != 0 {
						t.Errorf("flow %d is gone", i)
					}
					continue
				}
				want := flows[i]
				want.State = h.after
				switch {
				case row.op == forwardOp && row.result == resultOK:
					continue // TestForward
				case row.op == freezeOp && h.state == observeState && got.Deadline != want.Deadline:
					want.Deadline = c.Deadline // of a freeze, perhaps undone
				}
				if d := cmp.Diff(want, *got); d != "" {
					t.Errorf("flow %d (-want +got):\n%s", i, d)
				}
				if row.op == freezeOp && row.result == resultOK {
					want := bpf.SpliceLeg{Key: c.Legs[i].Key, RcvNxt: want.EndSeq, EndSeq: want.EndSeq, Tsval: 7, Ifindex: uint32(i + 1), Flags: uint32(flagSeen | flagTS)}
					if d := cmp.Diff(want, c.Legs[i]); d != "" {
						t.Errorf("answer %d (-want +got):\n%s", i, d)
					}
				}
			}
			if r.counters(t) != before {
				t.Error("a counter has moved")
			}
		})
	}
}

// putUser writes a user's entry.
func (r *rig) putUser(t tester, key bpf.SpliceUserKey, epoch uint32) {
	t.Helper()
	if err := r.Users.Put(key, &bpf.SpliceUser{Epoch: epoch}); err != nil {
		t.Fatal(err)
	}
}

var entryRows = []struct {
	name   string
	epoch  uint32 // of the entry; 0: there is none
	result bpf.SpliceControlResult
}{
	{"entry", 9, resultOK},
	{"no entry", 0, resultNoUser},
	{"newer entry", 10, resultNoUser},
	{"older entry", 8, resultNoUser},
}

// TestForwardNeedsEntry: without the user's entry every packet would be dropped, so the
// session stays in user space.
func TestForwardNeedsEntry(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, row := range entryRows {
		t.Run(row.name, func(t *testing.T) {
			r.clear(t)
			if row.epoch != 0 {
				r.putUser(t, bpf.SpliceUserKey{Hash: 42, Tag: 3}, row.epoch)
			}
			c := request(0)
			for i := range c.Legs {
				c.Legs[i].UserHash, c.Legs[i].UserTag, c.Legs[i].Epoch = 42, 3, 9
				r.putFlow(t, c.Legs[i].Key, bpf.SpliceFlow{State: holdState, Deadline: monotonic() + second})
			}
			if got := r.control(t, forwardOp, c); got != row.result {
				t.Errorf("result %d, want %d", got, row.result)
			}
			want := holdState
			if row.result == resultOK {
				want = forwardState
			}
			for i := range c.Legs {
				if got := r.flow(t, c.Legs[i].Key).State; got != want {
					t.Errorf("flow %d is in state %d, want %d", i, got, want)
				}
			}
		})
	}
}

// TestResetUndoes: a RST that passed is on its way to the socket. Nobody sends it again,
// so the pair is not spliced before it was seen that the socket did not believe it.
func TestResetUndoes(t *testing.T) {
	r := newRig(t, rigOptions{})
	for i := range 2 {
		r.clear(t)
		r.putUser(t, bpf.SpliceUserKey{}, 0)
		c := request(0)
		c.Deadline = monotonic() + second
		flows := [2]bpf.SpliceFlow{{State: observeState}, {State: observeState}}
		flows[i].Flags = flagRST
		for i := range flows {
			r.putFlow(t, c.Legs[i].Key, flows[i])
		}
		for step, want := range []bpf.SpliceControlResult{resultUnsettled, resultOK} {
			if got := r.control(t, freezeOp, c); got != want {
				t.Errorf("leg %d: freeze number %d: result %d, want %d", i, step+1, got, want)
			}
		}
		held := *r.flow(t, c.Legs[i].Key)
		held.Flags |= flagRST // while it is held
		r.putFlow(t, c.Legs[i].Key, held)
		if got := r.control(t, forwardOp, c); got != resultUnsettled {
			t.Errorf("leg %d: forward: result %d, want %d", i, got, resultUnsettled)
		}
	}
}

func TestEveryControlHasARow(t *testing.T) {
	ops, results := map[uint32]int{}, map[uint32]int{}
	for _, row := range entryRows {
		results[uint32(row.result)]++
	}
	for _, row := range controlRows {
		results[uint32(row.result)]++
		if row.result != resultBadOp {
			ops[uint32(row.op)]++
		}
	}
	covers(t, "control_op", ops)
	covers(t, "control_result", results)
}

// TestForward: what a pair is behind a hand-over, field by field.
func TestForward(t *testing.T) {
	r := newRig(t, rigOptions{})
	for family := range 2 {
		r.clear(t)
		r.putUser(t, bpf.SpliceUserKey{Hash: 42, Tag: 3}, 9)
		c := request(family)
		was := [2]bpf.SpliceFlow{
			{Ifindex: 5, Dmac: clientMAC, Smac: directorMAC, EndSeq: 100, Tsval: 11, Strip: stripTS, Flags: flagSeen | flagTS},
			{Ifindex: 6, Dmac: backendMAC, Smac: innerMAC, EndSeq: 200, Tsval: 22, Flags: flagSeen | flagTS},
		}
		for i, f := range was {
			f.State, f.Deadline = holdState, monotonic()+second
			r.putFlow(t, c.Legs[i].Key, f)
			n := uint32(1000 * (i + 1))
			c.Legs[i] = bpf.SpliceLeg{
				Key: c.Legs[i].Key, RcvNxt: f.EndSeq, SndNxt: n + 1, Window: n + 8,
				UserHash: 42, UserTag: 3, Epoch: 9, Name: 8, Protocol: 2, Side: uint8(i), Since: 77, Bytes: uint64(n) << 30,
				SeqAdd: n + 2, AckAdd: n + 3, TsAdd: n + 4, EcrAdd: n + 5, AddrDiff: uint16(n + 6), PortDiff: uint16(n + 7),
				InScale: uint8(i + 1), OutScale: uint8(i + 3), WindowScale: uint8(i + 5), NoEcn: uint8(i),
			}
		}
		begin := monotonic()
		if got := r.control(t, forwardOp, c); got != resultOK {
			t.Fatalf("result %d", got)
		}
		for i := range 2 {
			l, other := &c.Legs[i], &c.Legs[1-i]
			want := bpf.SpliceFlow{
				State: forwardState, Ifindex: was[1-i].Ifindex, Dmac: was[1-i].Dmac, Smac: was[1-i].Smac,
				Saddr: other.Key.Local, Daddr: other.Key.Remote, Sport: other.Key.LocalPort, Dport: other.Key.RemotePort,
				SeqAdd: l.SeqAdd, AckAdd: l.AckAdd, TsAdd: l.TsAdd, EcrAdd: l.EcrAdd, AddrDiff: l.AddrDiff, PortDiff: l.PortDiff,
				InScale: l.InScale, OutScale: l.OutScale, WindowScale: l.WindowScale,
				EndSeq: l.RcvNxt, MaxAck: l.SndNxt, Window: l.Window, Tsval: was[i].Tsval,
				UserHash: 42, UserTag: 3, Epoch: 9, Name: 8, Protocol: 2, Side: uint8(i), Strip: was[i].Strip,
				Since: 77, Bytes: l.Bytes,
			}
			if l.NoEcn != 0 {
				want.Flags = flagNoECN
			}
			got := r.flow(t, l.Key)
			if got.LastSeen < begin || got.LastSeen > monotonic() {
				t.Errorf("flow %d: last_seen is %d, want about %d", i, got.LastSeen, begin)
			}
			want.LastSeen, want.Deadline = got.LastSeen, got.Deadline // means nothing any more
			if d := cmp.Diff(want, *got); d != "" {
				t.Errorf("flow %d (-want +got):\n%s", i, d)
			}
		}
	}
}

// machine is a pair of flows under random requests, and what they have to be.
type machine struct {
	r     *rig
	legs  [2]half // state, late; behind is unused
	end   [2]uint32
	whole bool // made together, and none was taken away since
}

// TestStateMachine: whatever is asked in whatever order, both legs of a pair are in the
// same state, and what is being forwarded stays so until it is taken away.
func TestStateMachine(t *testing.T) {
	r := newRig(t, rigOptions{})
	rapid.Check(t, func(t *rapid.T) {
		clearMap[bpf.SpliceFlowKey, bpf.SpliceFlow](t, r.Flows)
		r.putUser(t, bpf.SpliceUserKey{}, 0)
		m := &machine{r: r}
		t.Repeat(map[string]func(*rapid.T){
			"make":    m.make,
			"take":    m.take,
			"freeze":  m.freeze,
			"thaw":    m.thaw,
			"forward": m.forward,
			"packet":  m.packet,
			"":        m.check,
		})
	})
}

func (m *machine) both() bool { return m.legs[0].state != 0 && m.legs[1].state != 0 }

func (m *machine) make(t *rapid.T) {
	m.whole = m.legs[0].state == 0 && m.legs[1].state == 0
	for i, key := range request(0).Legs {
		if m.legs[i].state == 0 {
			m.legs[i], m.end[i] = half{state: observeState}, rapid.Uint32().Draw(t, "end")
			m.r.putFlow(t, key.Key, bpf.SpliceFlow{State: observeState, EndSeq: m.end[i], Flags: flagSeen})
		}
	}
}

func (m *machine) take(t *rapid.T) {
	i := rapid.IntRange(0, 1).Draw(t, "leg")
	if m.legs[i].state == 0 {
		t.Skip("nothing to take")
	}
	if err := m.r.Flows.Delete(request(0).Legs[i].Key); err != nil {
		t.Fatal(err)
	}
	m.legs[i], m.whole = half{}, false
}

func (m *machine) ask(t *rapid.T, op bpf.SpliceControlOp, c *bpf.SpliceControl, want bpf.SpliceControlResult) {
	if got := m.r.control(t, op, c); got != want {
		t.Fatalf("operation %d: result %d, want %d", op, got, want)
	}
}

func (m *machine) freeze(t *rapid.T) {
	c, late := request(0), rapid.Bool().Draw(t, "late")
	if !late {
		c.Deadline = math.MaxUint64
	}
	switch {
	case !m.both():
		m.ask(t, freezeOp, c, resultNoFlow)
	case m.legs[0].state != observeState || m.legs[1].state != observeState:
		m.ask(t, freezeOp, c, resultBadState)
	default:
		m.ask(t, freezeOp, c, resultOK)
		m.legs = [2]half{{state: holdState, late: late}, {state: holdState, late: late}}
	}
}

func (m *machine) release() {
	for i := range m.legs {
		if m.legs[i].state == holdState {
			m.legs[i].state = observeState
		}
	}
}

func (m *machine) thaw(t *rapid.T) {
	want := resultOK
	if !m.both() {
		want = resultNoFlow
	}
	m.ask(t, thawOp, request(0), want)
	m.release()
}

func (m *machine) forward(t *rapid.T) {
	c := request(0)
	var behind [2]uint32
	for i := range c.Legs {
		behind[i] = rapid.SampledFrom([]uint32{0, 0, 1}).Draw(t, "behind")
		c.Legs[i].RcvNxt = m.end[i] - behind[i]
	}
	if !m.both() {
		m.ask(t, forwardOp, c, resultNoFlow)
		m.release()
		return
	}
	want := resultOK
	for i := 0; i < 2 && want == resultOK; i++ {
		switch {
		case m.legs[i].state != holdState:
			want = resultBadState
		case m.legs[i].late:
			want = resultExpired
		case behind[i] != 0:
			want = resultUnsettled
		}
	}
	m.ask(t, forwardOp, c, want)
	if want == resultOK {
		m.legs[0].state, m.legs[1].state = forwardState, forwardState
	}
}

// packet is one byte in order.
func (m *machine) packet(t *rapid.T) {
	i := rapid.IntRange(0, 1).Draw(t, "leg")
	p := newScene(0).p
	if i == 1 {
		p.src, p.sport, p.dst, p.dport = backendAddr[0].Addr(), backendAddr[0].Port(), directorAddr[0].Addr(), directorAddr[0].Port()
	}
	p.seq, p.ack, p.payload = m.end[i], 0, []byte{1}
	before := m.r.counters(t)
	run(t, m.r.SpliceTc, p.frame(), nil)
	l := m.legs[i]
	want := map[uint32]bpf.SpliceVerdict{
		0: verdictNoFlow, observeState: verdictObserved, holdState: verdictHeld, forwardState: verdictForwarded,
	}[l.state]
	if l.state == holdState && l.late {
		want = verdictHoldExpired
	}
	m.r.counted(t, before, want, len(p.frame()))
	if want != verdictHeld && want != verdictNoFlow {
		m.end[i]++
	}
}

func (m *machine) check(t *rapid.T) {
	for i, l := range request(0).Legs {
		f := m.r.flow(t, l.Key)
		if f == nil {
			f = &bpf.SpliceFlow{}
		}
		if f.State != m.legs[i].state {
			t.Fatalf("leg %d is in state %d, want %d", i, f.State, m.legs[i].state)
		}
		if f.State != 0 && f.EndSeq != m.end[i] {
			t.Fatalf("leg %d ends at %d, want %d", i, f.EndSeq, m.end[i])
		}
	}
	if m.whole && m.legs[0].state != m.legs[1].state {
		t.Fatalf("one leg is in state %d, the other in %d", m.legs[0].state, m.legs[1].state)
	}
}
