package admin

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Errors that keep their identity on the way from the Source to the client (errors.Is).
var (
	ErrUnknownUser = errors.New("unknown user")
	ErrUnknownHost = errors.New("unknown host")
	ErrInvalid     = errors.New("invalid request")
	ErrConflict    = errors.New("cannot be done now") // e.g. the user is being moved already
)

// Source is the daemon as seen from here; all methods may be called at the same time, and what
// they return belongs to the caller. Errors may wrap the ones above; other ones are shown to the
// operator as they are.
type Source interface {
	Status() Status
	Map() []MapEntry
	// User knows a name (or a hash, in decimal) that has an entry. Otherwise: ErrUnknownUser.
	User(name string) (User, error)
	Flows() ([]FlowInfo, error)
	// Move returns when the user's sessions have ended and new ones go to host, or ctx is done.
	Move(ctx context.Context, user, host string) error
	Kick(ctx context.Context, user string) error
	// HostSet changes what is not nil.
	HostSet(ctx context.Context, address string, weight *int, up *bool) error
}

// Status is the daemon at a glance.
type Status struct {
	Director DirectorStatus `json:"director"`
	Hosts    []HostStatus   `json:"hosts"`
	Sessions SessionCounts  `json:"sessions"`
	Kernel   KernelStatus   `json:"kernel"`
}

// DirectorStatus is the daemon itself.
type DirectorStatus struct {
	Name    string  `json:"name"`
	UptimeS float64 `json:"uptime_s"`
	Users   int     `json:"users"` // entries
	Version string  `json:"version"`
}

// HostStatus is one backend.
type HostStatus struct {
	Address  netip.Addr `json:"address"`
	Name     string     `json:"name"`
	Tag      string     `json:"tag"`
	Weight   int        `json:"weight"`
	Up       bool       `json:"up"`
	Users    int        `json:"users"`    // entries that point to it
	Sessions int        `json:"sessions"` // of this director
}

// SessionCounts counts sessions by mode; Total is all of them, those before login included.
type SessionCounts struct {
	Total    int `json:"total"`
	XDP      int `json:"xdp"`
	TC       int `json:"tc"`
	Splice   int `json:"splice"`
	Copy     int `json:"copy"`
	Prelogin int `json:"prelogin"`
}

// KernelStatus is what the kernel does for us.
type KernelStatus struct {
	Mode    string `json:"mode"`    // "xdp", "tc", "splice" or "copy": what new sessions aim at
	Reason  string `json:"reason"`  // why it is that one; empty when it is the best there is
	Flows   int    `json:"flows"`   // in the map; a session has two
	Packets uint64 `json:"packets"` // forwarded
	Bytes   uint64 `json:"bytes"`
	Program string `json:"program"` // name and tag of the loaded program; empty: none
}

// MapEntry is one line of the user map.
type MapEntry struct {
	Hash      uint32     `json:"hash"`
	Users     []string   `json:"users"` // the names known to hash to it
	Tag       string     `json:"tag"`
	Host      netip.Addr `json:"host"`
	Sessions  int        `json:"sessions"`
	Moving    bool       `json:"moving"`
	ExpiresAt *time.Time `json:"expires_at"` // null while it has sessions
}

// User is one user's entry with the sessions of all names that share it.
type User struct {
	User       string     `json:"user"` // as asked
	Hash       uint32     `json:"hash"`
	Host       netip.Addr `json:"host"`        // where it goes
	HashedHost netip.Addr `json:"hashed_host"` // where it would go without an entry; "" when no host is up
	ExpiresAt  *time.Time `json:"expires_at"`  // null while it has sessions
	Sessions   []Session  `json:"sessions"`

	Tag         string    `json:"tag"`
	Names       []string  `json:"names"` // all names known to have this hash
	Epoch       uint32    `json:"epoch"` // grows with each move and kick; a flow of an older one is stopped
	Moving      bool      `json:"moving"`
	LastRefresh time.Time `json:"last_refresh"`
}

// Session is one client's login.
type Session struct {
	Client   netip.AddrPort `json:"client"`
	Backend  netip.AddrPort `json:"backend"`
	Protocol string         `json:"protocol"` // "imap", "pop3"
	Mode     string         `json:"mode"`     // "xdp", "tc", "splice", "copy"
	Since    time.Time      `json:"since"`
	BytesIn  uint64         `json:"bytes_in"`  // from the client, after login
	BytesOut uint64         `json:"bytes_out"` // to the client, after login

	ID     string `json:"id"`     // as in the log
	User   string `json:"user"`   // the name it logged in with
	State  string `json:"state"`  // of the session enum
	Reason string `json:"reason"` // why it is not in the kernel; empty when it is
}

// FlowInfo is one direction of a session in the kernel.
type FlowInfo struct {
	User    string         `json:"user"`
	Client  netip.AddrPort `json:"client"`
	Backend netip.AddrPort `json:"backend"`
	Mode    string         `json:"mode"`
	Packets uint64         `json:"packets"`
	Bytes   uint64         `json:"bytes"`
	IdleS   float64        `json:"idle_s"` // since the last packet
	State   string         `json:"state"`

	Direction string `json:"direction"` // "in": from the client; "out": to the client
	Hash      uint32 `json:"hash"`
	Epoch     uint32 `json:"epoch"`
}

// Bodies of the requests that change something.
type (
	moveRequest struct {
		User string `json:"user"`
		Host string `json:"host"`
	}
	kickRequest struct {
		User string `json:"user"`
	}
	hostRequest struct {
		Address string `json:"address"`
		Weight  *int   `json:"weight,omitempty"`
		Up      *bool  `json:"up,omitempty"`
	}
	errorReply struct {
		Error string `json:"error"`
		Code  string `json:"code,omitempty"` // of the table in errors.go; empty: none of them
	}
)
