package director

import (
	"net/netip"
	"time"
)

// An Event is something that the director is told: one of the types in this file.
type Event interface{ event() }

// Lookup: a login wants the host of a user. It is answered by exactly one Assigned or Refused with the
// same Request, now or, while the user is moved, by a later Step; unless Forget comes before.
type Lookup struct {
	Request uint64 // chosen by the caller, unique among the lookups that wait
	User    string // the routed user name; Config.UserSeparator cuts it before it is hashed
	Tag     string // only hosts with this tag; empty: those without
}

// Forget: nobody waits for the answer to a Lookup any more.
type Forget struct{ Request uint64 }

// SessionStart: a session that was Assigned is logged in at its host. Key and Epoch are those of Assigned.
// If the epoch is stale the answer is a Stop of reason StopStale.
type SessionStart struct {
	Key   Key
	User  string
	Epoch uint32
}

// SessionEnd: a session for which SessionStart was sent (or that was adopted) is over, for whatever
// reason. It has the same fields.
type SessionEnd struct {
	Key   Key
	User  string
	Epoch uint32
}

// Active: the user was seen to use its host. A login that takes long may send it too, so that its entry
// does not expire under it.
type Active struct{ Key Key }

// HostPut adds a host, up at first, or updates name, tag and weight of the one with this address; it
// never touches up or down. A host whose tag changes loses its users as with HostRemove, since they
// were looked up under the old tag.
type HostPut struct{ Host Host }

// HostRemove removes a host. Its users' sessions are stopped and their entries dropped: those without
// sessions at once, the others when the sessions are gone or MoveTimeout has passed; until then their
// Lookups wait. So no user is on two hosts, which Dovecot's director does not promise (behaviours.md
// section 8, number 9).
type HostRemove struct{ Addr netip.Addr }

// HostUp: a host is up or down. Unknown hosts are ignored.
type HostUp struct {
	Addr netip.Addr
	Up   bool
}

// Move puts a user on another host: its sessions are stopped, its lookups wait until they are gone and
// the kick delay has passed, then they are Assigned the new host (behaviours.md section 3). Done comes
// at the end, which is at most MoveTimeout plus KickDelay later; in the same Step if there is nothing
// to wait for, or with an error if the move cannot begin:
// ErrUnknownHost, ErrTagMismatch, ErrUnknownUser (neither User nor Hash), ErrMoveInProgress.
// An error at the end: ErrMoveTimeout, ErrHostRemoved.
// Moving to the present host only refreshes; moving a user without an entry makes one. The new host may
// be down or have weight 0: the operator is believed.
type Move struct {
	ID   uint64     // comes back in Done
	User string     // or empty, and
	Hash uint32     // the hash itself
	Tag  string     // must be the tag of To; a user has one entry per tag
	To   netip.Addr // host
}

// Kick ends the sessions of exactly this user, not of others with the same hash. The entry stays and the
// user may log in again at once. Done comes in the same Step; its error is ErrUnknownUser if there is
// no entry.
type Kick struct {
	ID   uint64 // comes back in Done
	User string
	Tag  string
}

// Adopt: entries that an earlier process left in the kernel's map. It belongs between the HostPut of all
// hosts and the first Lookup. An entry whose host is not known any more is treated as if the host was
// removed now. The caller must end flows whose entry is missing or has another epoch by itself.
type Adopt struct{ Entries []Adopted }

// Adopted is one entry of Adopt.
type Adopted struct {
	Key         Key
	Host        netip.Addr
	Epoch       uint32
	LastRefresh time.Time      // the latest activity known: sessions may have ended unseen, long after EntryPut
	Users       []string       // names seen; those of Sessions need not be repeated
	Sessions    map[string]int // live sessions under exactly this epoch, by user
}

// Tick: time has passed. Every Step looks after what is due, so a Tick says nothing else.
type Tick struct{}

func (Lookup) event()       {}
func (Forget) event()       {}
func (SessionStart) event() {}
func (SessionEnd) event()   {}
func (Active) event()       {}
func (HostPut) event()      {}
func (HostRemove) event()   {}
func (HostUp) event()       {}
func (Move) event()         {}
func (Kick) event()         {}
func (Adopt) event()        {}
func (Tick) event()         {}
