package director

import (
	"errors"
	"net/netip"
	"time"
)

// An Effect is something that the director wants done: one of the types in this file.
type Effect interface{ effect() }

// Assigned answers a Lookup: the user is on this host.
type Assigned struct {
	Request uint64
	Key     Key
	Host    Host
	Epoch   uint32 // for SessionStart, and for the flows in the kernel
	Known   bool   // there was an entry before; of interest to those who Peek, whose Epoch is 0 if there is none
}

// Refused answers a Lookup that cannot be served. Reason wraps ErrNoHosts or ErrRingTimeout.
type Refused struct {
	Request uint64
	Reason  error
}

// EntryPut: an entry is to be stored under its key, as it is now. It comes before the first Assigned of the entry, and
// when something in it has changed since; a mere refresh gives none. Entries of the ring that nobody here has asked for
// are not stored.
type EntryPut struct {
	Key         Key
	Host        netip.Addr
	Epoch       uint32 // flows with another epoch stop
	Active      bool   // it has sessions, and so does not expire
	LastRefresh time.Time
}

// NamePut: this user had its first session under the entry. Names of logins that fail are never stored.
type NamePut struct {
	Key  Key
	User string
}

// EntryDrop: an entry is gone, and its names. Flows without an entry stop.
type EntryDrop struct{ Key Key }

// Stop: end the sessions of a key whose epoch is Epoch or lower, including those that are still
// logging in; of one user only if User is not empty. It may hit no session at all.
type Stop struct {
	Key    Key
	User   string
	Epoch  uint32
	Reason StopReason
}

// Done answers an order of an operator.
type Done struct {
	ID  uint64
	Err error // nil: it is done; otherwise it wraps one of the errors of this package
}

// A StopReason says why sessions are stopped.
type StopReason uint8

// The reasons of Stop.
const (
	StopMoved       StopReason = iota // the user was moved
	StopKicked                        // the user was kicked
	StopHostRemoved                   // the host was removed, or another director has changed its tag
	StopStale                         // assigned before a move, kick or removal, started after it
	StopConflict                      // another director has the user on another host
	StopFlushed                       // the users of the host were forgotten by order
)

// StopReasons lists every reason.
var StopReasons = []StopReason{StopMoved, StopKicked, StopHostRemoved, StopStale, StopConflict, StopFlushed}

func (r StopReason) String() string {
	return [...]string{"moved", "kicked", "host-removed", "stale", "conflict", "flushed"}[r]
}

// The errors of Refused and Done. Those with details wrap them.
var (
	ErrNoHosts        = errors.New("no host is up and has weight")
	ErrUnknownUser    = errors.New("no such user")
	ErrUnknownHost    = errors.New("no such host")
	ErrTagMismatch    = errors.New("the host has another tag")
	ErrMoveInProgress = errors.New("the user is being moved already")
	ErrMoveTimeout    = errors.New("old sessions did not end in time")
	ErrHostRemoved    = errors.New("the host was removed during the move")
	ErrOvertaken      = errors.New("a newer order has moved the user elsewhere")
	ErrTagChange      = errors.New("host tag can't be changed")
	ErrWeight         = errors.New("weight is out of range, at most 1000")
	ErrHostBusy       = errors.New("host is already being updated, try again later")
	ErrTooManyHosts   = errors.New("too many hosts")
	ErrRingTimeout    = errors.New("the other directors did not answer in time")
	ErrStopped        = errors.New("stopped by an operator")
	ErrNoFlush        = errors.New("the host's users are not being moved")
)

func (Assigned) effect()  {}
func (Refused) effect()   {}
func (EntryPut) effect()  {}
func (NamePut) effect()   {}
func (EntryDrop) effect() {}
func (Stop) effect()      {}
func (Done) effect()      {}
