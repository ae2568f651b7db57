package dovecot

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"time"

	"usher/director"
	"usher/director/ring"
)

// Director is what the director-admin socket needs of the decision and its ring. Its methods may be called
// at the same time. Errors of hosts are those of package director (ErrUnknownHost, ErrTagChange, ErrHostBusy,
// ErrWeight); commands that admin.md marks W are followed by WaitSynced here.
type Director interface {
	// Hosts are all hosts ordered by address, IPv4 first.
	Hosts() []Host
	// HostsConfigured are the addresses of the hosts in the configuration file, in its order.
	HostsConfigured() []netip.Addr
	// HostPut adds a host or changes the weight of one that is there.
	HostPut(h director.Host) error
	HostUp(host netip.Addr, up bool) error
	HostRemove(host netip.Addr) error
	// HostForgetUsers forgets the users of a host, of all hosts if it is not valid, without moving them.
	HostForgetUsers(host netip.Addr) error
	// HostFlush moves the users of a host (of all hosts if it is not valid) whose hash points elsewhere, max at a
	// time (0: as configured), and returns when the last move has begun.
	HostFlush(host netip.Addr, max int) error

	// KeyOf is the key of a user with the configured format of the hash.
	KeyOf(user, tag string) director.Key
	// Lookup tells where a user is and would be; it changes nothing.
	Lookup(key director.Key) Whereabouts
	// Users yields the entries, those of one host or all if it is not valid: tag by tag, the longest unused first.
	Users(host netip.Addr) iter.Seq[UserEntry]
	// UserMove begins a move and does not wait for its end. director.ErrUnknownHost, director.ErrMoveInProgress.
	UserMove(hash uint32, to netip.Addr) error
	// UserKick ends the sessions of a user on all directors, of whatever tag.
	UserKick(user string) error
	// UserKickAlt ends the sessions whose passdb field has this value, on all directors.
	UserKickAlt(field, value string) error

	// Ring is the ring's state; that of a ring of one if there is none.
	Ring() ring.Status
	// RingAdd adds a director. One that is known already is fine.
	RingAdd(member netip.AddrPort) error
	// RingRemove removes a director; with port 0 the first one of that address. ErrUnknownDirector.
	RingRemove(member netip.AddrPort) error
	// WaitSynced returns nil as soon as the ring agrees (at once for a director that is alone), or the cause of ctx.
	WaitSynced(ctx context.Context) error
}

// Host is a backend as listed.
type Host struct {
	director.Host
	Up      bool
	Changed time.Time // of up and down; zero: never
	Users   int       // entries that point to it
}

// ErrUnknownDirector means that the ring has no such member.
var ErrUnknownDirector = errors.New("no such director")

// Whereabouts of a user: not valid addresses where there is none.
type Whereabouts struct {
	Host       netip.Addr // of the entry
	ExpiresAt  time.Time  // last refresh plus user_expire, though it lives on while it has sessions; zero: no entry
	Hashed     netip.Addr // the host of a new entry
	Configured netip.Addr // the same with the hosts of the configuration file, all up with weight 100
}

// UserEntry is an entry as listed.
type UserEntry struct {
	Hash      uint32
	Host      netip.Addr
	ExpiresAt time.Time // as in Whereabouts
}
