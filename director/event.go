package director

import (
	"net/netip"
	"time"
)

// An Event is something that the director is told: one of the types in this file.
type Event interface{ event() }

// Lookup: a login wants the host of a user. It is answered by exactly one Assigned or Refused with the
// same Request, now or, while the user is moved or the ring has to say something first, by a later Step; unless
// Forget comes before. In a ring it waits for 30 seconds at most.
type Lookup struct {
	Request uint64 // chosen by the caller, unique among the lookups that wait
	User    string // the routed user name; Config.UserSeparator cuts it before it is hashed
	Tag     string // only hosts with this tag; empty: those without
	// Peek asks without consequences, for a login that nobody has verified yet: it makes and refreshes no
	// entry and tells the ring nothing, so that invented names cost nothing. The Lookup that follows when
	// the login is good may answer another host.
	Peek bool
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

// HostPut adds a host, up at first, or updates name and weight of the one with this address; it
// never touches up or down. Errors: ErrTagChange (its users were looked up under the old tag), ErrWeight,
// ErrHostBusy, ErrTooManyHosts.
type HostPut struct {
	ID         uint64 // comes back in Done; 0: no Done is wanted
	Host       Host   // an empty name leaves the one it has
	Configured bool   // by the configuration at the start: no order that others would have to follow
}

// HostRemove removes a host. Its users' sessions are stopped and their entries dropped: those without
// sessions at once, the others when the sessions are gone or MoveTimeout has passed; until then their
// Lookups wait. So no user is on two hosts, which Dovecot's director does not promise (behaviours.md
// section 8, number 9). Error: ErrUnknownHost.
type HostRemove struct {
	ID   uint64 // comes back in Done; 0: no Done is wanted
	Addr netip.Addr
}

// HostUp: a host is up or down, says an operator or the health check. The two are kept apart: a host is up
// if neither says down, and an operator's "up" overrides the check until that has found the host good once.
// Errors: ErrUnknownHost, ErrHostBusy (not for the health check).
type HostUp struct {
	ID     uint64 // comes back in Done; 0: no Done is wanted
	Addr   netip.Addr
	Up     bool
	Health bool // the health check says so
}

// Move puts a user on another host: its sessions are stopped, its lookups wait until they are gone and
// the kick delay has passed, then they are Assigned the new host (behaviours.md section 3). Done comes
// at the end, which is at most MoveTimeout plus KickDelay later; in the same Step if there is nothing
// to wait for, or with an error if the move cannot begin:
// ErrUnknownHost, ErrTagMismatch, ErrUnknownUser (neither User nor Hash), ErrMoveInProgress.
// An error at the end: ErrMoveTimeout, ErrHostRemoved, or ErrOvertaken as soon as that is so.
// Without a ring moving to the present host only refreshes, and moving a user without an entry makes one; in
// a ring both are moves, since others may have the user elsewhere. The new host may be down or have weight 0:
// the operator is believed.
type Move struct {
	ID   uint64     // comes back in Done
	User string     // or empty, and
	Hash uint32     // the hash itself
	Tag  string     // must be the tag of To; a user has one entry per tag
	To   netip.Addr // host
}

// Kick ends the sessions of exactly this user, not of others with the same hash. The entry stays and the
// user may log in again at once. The ring is told as well, and there the name has no tag and may be a
// mask. Done comes in the same Step; its error is ErrUnknownUser if there is no entry here.
type Kick struct {
	ID   uint64 // comes back in Done
	User string
	Tag  string
	Mask bool // User may have * and ? in it; all users of all tags that match are meant
}

// Restore: what operators had changed before the process was restarted. It belongs behind the HostPut of the
// configuration and before Adopt.
type Restore struct{ Orders Orders }

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
func (Restore) event()      {}
func (Adopt) event()        {}
func (Tick) event()         {}
