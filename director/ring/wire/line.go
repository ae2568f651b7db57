package wire

import (
	"net/netip"

	"usher/director"
)

// The version of the protocol spoken here (ring.md section 11).
const (
	Protocol = "director"
	Major    = 1
	Minor    = 9
)

// MaxLine is the longest line, LF included. A longer one is a protocol failure at every director.
const MaxLine = 1024

// A Line is one line of the protocol: a pointer to one of the types below.
type Line interface {
	// Append writes the line, LF included, in the form this peer understands.
	Append(b []byte, to Peer) []byte
}

// Peer is what the form of a line depends on.
type Peer struct {
	Minor int  // the lower of its version and ours; for HOST outside of the handshake that of the ring
	Usher bool // it has said so in ME
}

// Origin says who said something first, and as which of its commands. Numbers only grow.
type Origin struct {
	Director netip.AddrPort
	Seq      uint32
}

// Version opens a connection, in both directions.
type Version struct {
	Name         string
	Major, Minor int
}

// Me follows Version: who the sender is.
type Me struct {
	Addr  netip.AddrPort // its listening address
	Time  int64          // its clock, unix seconds; 0: not told
	Usher uint64         // a number that is another one after each restart; 0: it is not an Usher
}

// Director: there is such a director.
type Director struct{ Addr netip.AddrPort }

// DirectorRemove: it was removed from the ring by an operator.
type DirectorRemove struct{ Addr netip.AddrPort }

// Connect: the receiver shall make this director its right neighbour.
type Connect struct{ Addr netip.AddrPort }

// HandStart opens the list of hosts of a handshake; until HandEnd each HOST is a HandHost.
type HandStart struct{ Handshaked bool }

// HandEnd closes it.
type HandEnd struct{ Handshaked bool }

// HandHost is a host in that list: HOST without an origin.
type HandHost struct{ director.HostUpdate }

// HandUser (U; USER for peers older than minor 9) is a user in the list of users of a handshake.
type HandUser struct{ director.UserUpdate }

// User is a user outside of that list.
type User struct{ director.UserUpdate }

// UserKilled goes from neighbour to neighbour and has no origin.
type UserKilled struct{ director.UserKilled }

// Told is every message with an origin: HOST, HOST-REMOVE, HOST-FLUSH, USER-WEAK, USER-MOVE, USER-KICK,
// USER-KICK-ALT, USER-KICK-HASH and USER-KILLED-EVERYWHERE.
type Told struct {
	Origin  Origin
	Message director.Message
}

// Health (USHER-HEALTH): the health check of an Usher says that a host is up or down.
type Health struct {
	Origin Origin
	Host   netip.Addr
	Up     bool
}

// Sync goes once around the ring and proves that all have the same hosts.
type Sync struct {
	Director  netip.AddrPort // whose it is
	Seq       uint32
	Minor     int // the lowest so far
	Time      int64
	HostsHash uint32 // 0: not told
}

// Ping asks for a Pong.
type Ping struct {
	Time   int64
	Queued uint64 // bytes that wait in the sender's buffer for this connection
}

// Pong answers a Ping, with the same fields.
type Pong struct {
	Time   int64
	Queued uint64
}

// Options: what else the sender wants. A director without consistent hashing cannot be in our ring.
type Options struct{ ConsistentHashing bool }

// Done ends the handshake of the sender.
type Done struct{}

// Quit says why the connection is about to be closed.
type Quit struct{ Reason string }
