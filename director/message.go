package director

import "net/netip"

// A Message is what directors tell each other about users and hosts: one of the types in this file.
// How it is written on the wire, and who hears it, is the business of package ring (ring.md section 6).
// Times are unix seconds; 0 is "unknown" or "never". An operator's Ordered times travel between Ushers
// only: Dovecot's directors neither send nor need them.
type Message interface{ message() }

// UserUpdate (USER, and U in a handshake): a user is on a host.
type UserUpdate struct {
	Hash      uint32
	Host      netip.Addr // names the tag too: that of the host
	Refreshed int64      // last use; 0: a peer too old to say
	Weak      bool       // handshake only: the entry is about to expire and its host is being asked for
	Ordered   int64      // when an operator moved the user there
}

// UserWeak (USER-WEAK): the entry is about to expire, does anybody use it elsewhere?
type UserWeak struct {
	Hash uint32
	Host netip.Addr // the present host
}

// UserMove (USER-MOVE): move a user.
type UserMove struct {
	Hash    uint32
	Host    netip.Addr // the new host
	Ordered int64
}

// UserKick (USER-KICK): end the sessions of a user by name; it may contain the wildcards * and ?.
type UserKick struct{ User string }

// UserKickAlt (USER-KICK-ALT): end the sessions with this value of a passdb field user_*.
type UserKickAlt struct{ Field, Value string }

// UserKickHash (USER-KICK-HASH): end the sessions of a hash that are not on the excepted host.
type UserKickHash struct {
	Hash   uint32
	Except netip.Addr
}

// UserKilled (USER-KILLED): the directors up to the sender have no sessions of a moving user left.
type UserKilled struct{ Hash uint32 }

// UserKilledEverywhere (USER-KILLED-EVERYWHERE): no director has.
type UserKilledEverywhere struct{ Hash uint32 }

// HostUpdate (HOST): a host is there, with this weight and state.
type HostUpdate struct {
	Host    Host
	Up      bool
	Changed int64 // of up and down
	Ordered int64 // of the weight
	Health  bool  // up or down as a health check found it, not an operator; between Ushers only
}

// HostGone (HOST-REMOVE): a host was removed.
type HostGone struct{ Addr netip.Addr }

// HostForget (HOST-FLUSH): forget all users of a host, without ending sessions.
type HostForget struct{ Addr netip.Addr }

func (UserUpdate) message()           {}
func (UserWeak) message()             {}
func (UserMove) message()             {}
func (UserKick) message()             {}
func (UserKickAlt) message()          {}
func (UserKickHash) message()         {}
func (UserKilled) message()           {}
func (UserKilledEverywhere) message() {}
func (HostUpdate) message()           {}
func (HostGone) message()             {}
func (HostForget) message()           {}
