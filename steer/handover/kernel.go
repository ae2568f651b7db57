package handover

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// Tuple names one TCP connection of this host: one leg of a session.
type Tuple struct {
	Remote, Local netip.AddrPort
}

// Key is a Tuple in 36 bytes, for tables that have an entry per session: addresses
// (IPv4 as ::ffff:a.b.c.d) and ports of the remote and the local end.
type Key [36]byte

// Key returns the Tuple's Key.
func (t Tuple) Key() (k Key) {
	remote, local := t.Remote.Addr().As16(), t.Local.Addr().As16()
	copy(k[0:], remote[:])
	copy(k[16:], local[:])
	binary.BigEndian.PutUint16(k[32:], t.Remote.Port())
	binary.BigEndian.PutUint16(k[34:], t.Local.Port())
	return k
}

// Tuple returns the Key's Tuple; the zero Tuple for the zero Key.
func (k Key) Tuple() Tuple {
	if k == (Key{}) {
		return Tuple{}
	}
	end := func(address, port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(k[address:])).Unmap(), binary.BigEndian.Uint16(k[port:]))
	}
	return Tuple{Remote: end(0, 32), Local: end(16, 34)}
}

// Leg is what Kernel.Forward needs to know of one leg: how packets that arrive
// on it are translated before they leave on the other one.
type Leg struct {
	Tuple
	RcvNxt, SndNxt        uint32 // sequence numbers of our frozen socket
	Window                uint32 // of the remote host, in bytes behind SndNxt
	SeqAdd, AckAdd        uint32 // added to seq, and to ack and SACK edges
	TSAdd, EchoAdd        uint32 // added to timestamp value and echo
	InScale, OutScale     uint8  // window scale of arriving packets, and the one the other side expects
	WindowScale           uint8  // of the largest window that the remote host was ever promised, by us or by the other side
	NoECN                 bool   // only one leg negotiated ECN
	Bytes                 uint64 // payload that user space relayed in this direction
	AddressDiff, PortDiff uint16 // one's complement sums of (new - old) in native byte order
}

// Observed is what the kernel program recorded of one leg until the freeze.
type Observed struct {
	Seen   bool   // at least one packet came through the program
	EndSeq uint32 // highest sequence number + length that was passed to the stack
	HasTS  bool   // TSVal is valid
	TSVal  uint32 // newest timestamp value of the remote host
	Learnt bool   // the interface towards the remote host is known
	Odd    bool   // IP options or fragments were seen
}

// Owner says whose session a flow is; it is kept with the flow, so that a
// restarted daemon knows.
type Owner struct {
	Hash     uint32 // user hash
	Tag      string // tag of the backends
	Epoch    uint32 // epoch of the user's entry at the time of the login
	User     string // name as it was routed
	Protocol string // "imap", "pop3", "submission" or "sieve"
	Since    time.Time
}

// Errors of a Kernel.
var (
	// ErrTaken: the tuple already has a flow.
	ErrTaken = errors.New("tuple has a flow already")
	// ErrFull: the flow map has no room.
	ErrFull = errors.New("flow map is full")
	// ErrUnsettled: something passed that the sockets had not received, or the
	// hand-over took too long; it may be tried again.
	ErrUnsettled = errors.New("connection is not quiet")
	// ErrNoEntry: the kernel has no entry of the flow's owner, or one of another epoch.
	ErrNoEntry = errors.New("no such entry")
	// ErrNoFlow: the tuple has no flow (any more).
	ErrNoFlow = errors.New("no such flow")
)

// Kernel is the kernel side of a hand-over. The loader package implements it;
// all methods may be called concurrently and none blocks.
type Kernel interface {
	// Observe records the packets of a leg from now on; strip says which options
	// to take out of our SYN when the leg is dialled after this. ErrTaken, ErrFull.
	Observe(t Tuple, strip Strip) error
	// Forget removes a leg that is not forwarded. Removing nothing is no error.
	Forget(t Tuple)
	// Freeze stops both legs' packets for at most the given time. ErrNoFlow, ErrUnsettled.
	Freeze(client, backend Tuple, hold time.Duration) (c, b Observed, err error)
	// Thaw undoes Freeze.
	Thaw(client, backend Tuple)
	// Forward starts the forwarding of two frozen legs. ErrUnsettled when a
	// packet had passed that RcvNxt does not cover, or Freeze's time is over; ErrNoEntry.
	Forward(client, backend Leg, owner Owner) error
}

// Strip is a set of TCP options to take out of our SYN.
type Strip uint8

// The options that have to agree on both legs.
const (
	StripTimestamps Strip = 1 << iota // RFC 7323
	StripSACK                         // RFC 2018
)

// Reason says why a session is not carried by the kernel. The words are part of
// the interface: they appear in `usher user`, in the log and as a metric label.
type Reason string

// Reasons. Only Waiting may still change.
const (
	Spliced      Reason = ""              // it is
	Waiting      Reason = "waiting"       // no quiet moment yet
	ModeOff      Reason = "mode"          // the kernel path is switched off or does not work here
	Family       Reason = "family"        // one leg is IPv4, the other IPv6
	Timestamps   Reason = "timestamps"    // only one leg has TCP timestamps
	SACK         Reason = "sack"          // only one leg has selective acknowledgements
	MSS          Reason = "mss"           // a leg takes smaller segments than the other was promised
	MPTCP        Reason = "mptcp"         // a leg is multipath TCP
	IPOptions    Reason = "ip-options"    // a peer sends IP options or fragments
	Unobserved   Reason = "unobserved"    // its packets pass no interface with our program (peer on this host)
	MapFull      Reason = "map-full"      // no room for another flow
	NoEntry      Reason = "no-entry"      // the kernel has no entry for the user: no room, or the user is just being moved
	Undone       Reason = "undone"        // hand-over was undone too often
	HalfClosed   Reason = "half-closed"   // one side has ended its direction
	KernelFailed Reason = "kernel-failed" // unexpected error, see the log
	TLS          Reason = "tls"           // a leg is encrypted, and the keys are in user space (package secure)
	Bypassed     Reason = "bypassed"      // the auth hook named the host: no entry of the director governs the session
)

// Flow is one direction of a session that the kernel carries.
type Flow struct {
	Tuple            // the leg on which its packets arrive
	Other      Tuple // the leg on which they leave
	FromClient bool  // its packets come from the client
	Owner      Owner
	Packets    uint64 // forwarded by the kernel
	Bytes      uint64 // payload: relayed before the hand-over, and forwarded since
	Idle       time.Duration
	FIN, RST   bool   // the remote host has ended or reset its direction
	SYN        bool   // a SYN on this tuple went to the stack
	Stopped    bool   // a packet met a newer epoch of the user's entry
	EndSeq     uint32 // highest sequence number + length seen from the remote host
	MaxAck     uint32 // highest acknowledgement seen from the remote host
	AckAdd     uint32 // translates MaxAck into the numbers of the other leg
	Window     uint32 // how many bytes behind MaxAck the remote host takes
	Scale      uint8  // of the remote host's windows
}

// State is a word for people: "forward", "half-closed", "closing" (reset) or "stopped".
func (f Flow) State() string {
	switch {
	case f.Stopped:
		return "stopped"
	case f.RST:
		return "closing"
	case f.FIN:
		return "half-closed"
	}
	return "forward"
}

// Ended reports whether both directions of a session have ended for good: a
// believed reset, or two FINs that the other sides have acknowledged.
func Ended(a, b Flow) bool {
	return a.RST || b.RST ||
		a.FIN && b.FIN && a.EndSeq == b.MaxAck+b.AckAdd && b.EndSeq == a.MaxAck+a.AckAdd
}
