package director

import "net/netip"

// RingState: what a Director must know of the ring it belongs to. The zero value, which it begins with
// when Config.Ring is set, makes every Lookup wait. Without Config.Ring a director is alone for ever.
type RingState struct {
	Handshaked bool // a SYNC has been around once, or the director found itself alone
	Synced     bool // nothing is under way; otherwise users without an entry wait
	Right      bool // there is a right neighbour: moves wait for its USER-KILLED
	Whole      bool // no neighbour that we have lost is still missing; false while alone
	Minor      int  // lowest protocol minor version in the ring: decides what may be told
}

// Heard: a director of the ring said something. It is answered by Pass or Tell when others must hear
// of it, and by what it changes here.
type Heard struct {
	Message   Message
	Handshake bool // in the list of users or hosts that opens a connection
	Seen      bool // its sequence number was seen before: it came a second way, or around the ring
	Own       bool // we are its originator
	Usher     bool // the neighbour that said it is one of us: a time it leaves out means never, not unknown
}

// HostsReplace: the handshaked ring that we have joined has these hosts. Others are removed as by
// HostRemove, those that are new or differ are put; each is told with ourselves as originator
// (ring.md section 3).
type HostsReplace struct{ Hosts []HostUpdate }

// RingSynced: a SYNC of ours came back with the same hosts: the marks of changed hosts are cleared, and
// what waited for it goes on.
type RingSynced struct{}

// Flushed answers Flush.
type Flushed struct {
	Key Key
	OK  bool // the move ends at once; otherwise after the kick delay
}

// HostFlush moves every user of a host (of all hosts if Addr is invalid) whose hash points elsewhere:
// at most Max (0: Config.MaxParallelMoves) at a time and Rate per second (0: no limit). Done comes when
// the last move has finished, with ErrMoveTimeout if sessions were left after one of them, or ErrStopped;
// Progress tells how far it is. A second order for the same host changes the limits of the first, and both get
// a Done at the end. If no host is left for a user its sessions end and the user is forgotten. Errors at the
// beginning: ErrUnknownHost.
type HostFlush struct {
	ID   uint64
	Addr netip.Addr
	Max  int
	Rate float64
}

// HostFlushStop ends the HostFlush of a host (of all hosts if Addr is invalid): moves that have begun go on, no
// more begin. Done comes in the same Step; its error is ErrNoFlush if there is none.
type HostFlushStop struct {
	ID   uint64
	Addr netip.Addr
}

// HostForgetUsers drops the entries of a host (of all if Addr is invalid): doveadm director flush -F. Sessions of
// ours are ended, so that nobody is on two hosts here; Dovecot's directors let theirs go on. Done comes in the same
// Step; its error is ErrUnknownHost.
type HostForgetUsers struct {
	ID   uint64
	Addr netip.Addr
}

// KickAlt ends the sessions with this value of a passdb field, on all directors.
type KickAlt struct {
	ID           uint64
	Field, Value string
}

// Pass: the message just Heard goes on as it came, to all but where it came from.
type Pass struct{}

// Tell: tell the ring, as ourselves. UserKilled goes to the right neighbour only, everything else to all.
type Tell struct {
	Message Message
	Source  bool // the source of the message just Heard is told too; set whenever there is none
}

// SyncNeeded: hosts have changed, the ring must agree about them: a SYNC goes out.
type SyncNeeded struct{}

// Invalid: the message just Heard breaks the protocol; its connection is to be closed.
type Invalid struct{ Err error }

// Flush: run the operator's flush program for a moved user, then answer with Flushed.
type Flush struct {
	Key      Key
	Old, New Host
	OldUp    bool
}

// StopAlt: end the local sessions with this value of a passdb field user_*.
type StopAlt struct{ Field, Value string }

// Conflict: two directors had the user on different hosts. It is to be logged and counted: it should never be.
type Conflict struct {
	Key          Key
	Users        []string // names known here
	Ours, Theirs netip.Addr
	Winner       netip.Addr
}

// HealthSay: our health check says that a host is up or down; the other Ushers are told. It decides nothing.
type HealthSay struct {
	Host netip.Addr
	Up   bool
}

// HealthVote: the health check of another Usher says so of a host.
type HealthVote struct {
	Director netip.AddrPort
	Host     netip.Addr
	Up       bool
}

// Warn: something in the ring is not as it should be; for the log.
type Warn struct{ Text string }

func (RingState) event()       {}
func (Heard) event()           {}
func (HostsReplace) event()    {}
func (RingSynced) event()      {}
func (Flushed) event()         {}
func (HostFlush) event()       {}
func (HostFlushStop) event()   {}
func (HostForgetUsers) event() {}
func (KickAlt) event()         {}
func (HealthSay) event()       {}

func (Pass) effect()       {}
func (Tell) effect()       {}
func (SyncNeeded) effect() {}
func (Invalid) effect()    {}
func (Flush) effect()      {}
func (StopAlt) effect()    {}
func (Conflict) effect()   {}
func (HealthVote) effect() {}
func (Warn) effect()       {}
