package admin

import (
	"net/netip"
	"time"
)

// HostOrder is a host that is to be added.
type HostOrder struct {
	Address netip.Addr `json:"address"`
	Name    string     `json:"name"`
	Tag     string     `json:"tag"`
	Weight  int        `json:"weight"`
}

// FlushOrder says which users to move, and how. A flush moves the users of a host to where their
// hash points; a drain gives the host weight 0 first, so that all of its users leave.
type FlushOrder struct {
	Host     netip.Addr `json:"host"`     // not valid: all hosts
	Drain    bool       `json:"drain"`    // needs a host
	Force    bool       `json:"force"`    // forget the users instead of moving them; ends at once
	Rate     float64    `json:"rate"`     // users per second; 0: no limit
	Parallel int        `json:"parallel"` // moves at a time; 0: max_parallel_moves
}

// Flush is how far a flush or drain is.
type Flush struct {
	FlushOrder
	Total     int        `json:"total"` // users that have to move
	Done      int        `json:"done"`
	Failed    int        `json:"failed"` // their old sessions did not end in time, for example
	Moving    int        `json:"moving"`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at"` // null while it runs
	Error     string     `json:"error"`    // why it ended early
}

// Orders is the run-time state of a director that no configuration file knows.
type Orders struct {
	Hosts  []HostOrders `json:"hosts"`  // those that differ from the configuration
	Gone   []netip.Addr `json:"gone"`   // configured ones that were removed
	Users  []UserOrder  `json:"users"`  // moved ones whose entries live
	Drains []FlushOrder `json:"drains"` // under way

	DirectorsAdded   []netip.AddrPort `json:"directors_added"`
	DirectorsRemoved []netip.AddrPort `json:"directors_removed"`
}

// HostOrders is what differs about one host.
type HostOrders struct {
	HostOrder
	Added bool `json:"added"` // it is not in the configuration
	Down  bool `json:"down"`
}

// UserOrder is a user that was moved.
type UserOrder struct {
	User string     `json:"user"` // empty when no name is known for the hash
	Hash uint32     `json:"hash"`
	Host netip.Addr `json:"host"`
}

// The states of a Reply.
const (
	Started  = "started"  // it goes on, here or at other directors
	Finished = "finished" // nothing of it is left to do
)

// Reply is the answer to everything that changes something.
type Reply struct {
	State string `json:"state"`
	// Warnings tell what keeps the order from reaching the whole ring now.
	Warnings []string `json:"warnings"`
}

// Bodies of the requests. A host is an address, or the name of a host that has only one.
type (
	moveRequest struct {
		User string `json:"user"`
		Host string `json:"host"`
		Wait bool   `json:"wait,omitempty"`
	}
	kickRequest struct {
		User  string `json:"user,omitempty"`
		Field string `json:"field,omitempty"` // with Value, instead of User
		Value string `json:"value,omitempty"`
	}
	hostRequest struct {
		Host   string `json:"host"`
		Weight *int   `json:"weight,omitempty"` // of update
		Wait   bool   `json:"wait,omitempty"`
	}
	addRequest struct {
		HostOrder
		Wait bool `json:"wait,omitempty"`
	}
	flushRequest struct {
		Host     string  `json:"host"` // "all": every host
		Force    bool    `json:"force,omitempty"`
		Rate     float64 `json:"rate,omitempty"`
		Parallel int     `json:"parallel,omitempty"`
	}
	ringRequest struct {
		Director string `json:"director"` // address and port, or only the address
		Wait     bool   `json:"wait,omitempty"`
	}
	errorReply struct {
		Error string `json:"error"`
		Code  string `json:"code,omitempty"` // of the table in errors.go; empty: none of them
	}
)
