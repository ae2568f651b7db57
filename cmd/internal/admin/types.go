package admin

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Errors that keep their identity on the way from the Source to the client (errors.Is).
var (
	ErrUnknownUser     = errors.New("unknown user")
	ErrUnknownHost     = errors.New("unknown host")
	ErrUnknownDirector = errors.New("unknown director")
	ErrInvalid         = errors.New("invalid request")
	ErrConflict        = errors.New("cannot be done now") // e.g. the user is being moved already
)

// Source is the daemon as seen from here; all methods may be called at the same time, and what
// they return belongs to the caller. Errors may wrap the ones above; other ones are shown to the
// operator as they are.
//
// What changes something returns as soon as it has begun here; what the other directors of the
// ring make of it is awaited with WaitSynced, a flush with Flushes.
type Source interface {
	Status() Status
	Map() []MapEntry
	// User knows a name (or a hash, in decimal) that has an entry. Otherwise: ErrUnknownUser.
	User(name string) (User, error)
	Flows() ([]FlowInfo, error)
	// Ring is the ring of one when none is configured.
	Ring() Ring
	// Flushes are those under way and the last one of each host, in the order of their start.
	Flushes() []Flush
	// Orders is what was ordered since the start and is in no configuration file.
	Orders() Orders

	// UserMove begins a move; with wait it returns at its end, or when ctx is done. The user need not
	// have an entry; a number that is not the name of one stands for the hash. ErrUnknownHost,
	// ErrConflict (the user is being moved already). finished: its sessions have ended everywhere and new
	// ones go to the host.
	UserMove(ctx context.Context, user string, to netip.Addr, wait bool) (finished bool, err error)
	// UserKick ends the sessions of a user on all directors. ErrUnknownUser.
	UserKick(ctx context.Context, user string) error
	// FieldKick ends the sessions whose passdb field (user_*) has this value, on all directors.
	FieldKick(ctx context.Context, field, value string) error

	// HostAdd adds a host; ErrConflict if it is there already.
	HostAdd(ctx context.Context, h HostOrder) error
	// HostUpdate sets the weight of a host. ErrUnknownHost, ErrConflict (it is being updated already).
	HostUpdate(ctx context.Context, host netip.Addr, weight int) error
	// HostUp orders up or down, which stands above health checks. Errors as HostUpdate.
	HostUp(ctx context.Context, host netip.Addr, up bool) error
	// HostRemove removes a host. ErrUnknownHost.
	HostRemove(ctx context.Context, host netip.Addr) error

	// Flush begins a flush or a drain; the same order again changes nothing about one that is
	// under way but its rate. ErrUnknownHost.
	Flush(ctx context.Context, o FlushOrder) error
	// FlushStop ends a flush: moves that have begun go on, no more begin. ErrConflict if none is
	// under way.
	FlushStop(ctx context.Context, host netip.Addr) error

	// RingAdd adds a director; port 0 is that of this one. ErrInvalid without a ring.
	RingAdd(ctx context.Context, director netip.AddrPort) error
	// RingRemove removes one; port 0: the first with this address. ErrUnknownDirector.
	RingRemove(ctx context.Context, director netip.AddrPort) error
	// WaitSynced returns when the whole ring agrees about hosts and members, at once without a
	// ring. Its error is the cause of ctx's end.
	WaitSynced(ctx context.Context) error
}

// Status is the daemon at a glance.
type Status struct {
	Director DirectorStatus `json:"director"`
	Hosts    []HostStatus   `json:"hosts"`
	Sessions SessionCounts  `json:"sessions"`
	Kernel   KernelStatus   `json:"kernel"`
	Ring     RingSummary    `json:"ring"` // filled in from Source.Ring
}

// DirectorStatus is the daemon itself.
type DirectorStatus struct {
	Name    string  `json:"name"`
	UptimeS float64 `json:"uptime_s"`
	Users   int     `json:"users"` // entries
	Version string  `json:"version"`

	Moving    int    `json:"moving"`    // entries that are being moved
	Waiting   int    `json:"waiting"`   // logins that wait for a move or for the ring
	Conflicts uint64 `json:"conflicts"` // users found on two hosts since the start; should be 0
}

// HostStatus is one backend.
type HostStatus struct {
	Address  netip.Addr `json:"address"`
	Name     string     `json:"name"`
	Tag      string     `json:"tag"`
	Weight   int        `json:"weight"`
	Up       bool       `json:"up"`       // for the director: the operator and the health checks say so
	Users    int        `json:"users"`    // entries that point to it
	Sessions int        `json:"sessions"` // of this director

	OperatorUp       bool       `json:"operator_up"`       // false: taken down by an operator
	Health           string     `json:"health"`            // "up" or "down", as the health checks have it; empty: no checks
	HealthReason     string     `json:"health_reason"`     // of the last failed check
	ChangedAt        *time.Time `json:"changed_at"`        // when up last changed; null: never
	ConfiguredWeight *int       `json:"configured_weight"` // null: it is in no configuration file
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

	ConfiguredHost netip.Addr `json:"configured_host"` // where it would be with the hosts of the configuration file, all up
	Weak           bool       `json:"weak"`            // about to expire; the ring is asked whether it is used elsewhere
	Phase          string     `json:"phase"`           // of the move, empty if there is none
	Since          *time.Time `json:"since"`           // when an operator put it there; null: it was placed by its hash
}

// Session is one client's login.
type Session struct {
	Client   netip.AddrPort `json:"client"`
	Backend  netip.AddrPort `json:"backend"`
	Protocol string         `json:"protocol"` // "imap", "pop3", "submission", "sieve"
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
