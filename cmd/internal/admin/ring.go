package admin

import (
	"net/netip"
	"time"

	"usher/director/ring"
)

// RingSummary is the ring in the status.
type RingSummary struct {
	Directors  int  `json:"directors"` // this one included, removed ones not
	Handshaked bool `json:"handshaked"`
	Synced     bool `json:"synced"`
	Silent     int  `json:"silent"` // directors that do not answer
}

// Ring is the ring of directors as this one sees it.
type Ring struct {
	Self       netip.AddrPort `json:"self"`
	Handshaked bool           `json:"handshaked"` // it has agreed with the others once
	Synced     bool           `json:"synced"`     // nothing is under way
	LastSync   *time.Time     `json:"last_sync"`  // null: never
	SyncS      float64        `json:"sync_s"`     // how long the last one took
	Minor      int            `json:"minor"`      // lowest protocol version in the ring
	Directors  []RingDirector `json:"directors"`
	// Incoming connections that have not said yet who they are.
	Unknown []RingConn `json:"unknown"`
}

// RingDirector is a member of the ring.
type RingDirector struct {
	Address    netip.AddrPort `json:"address"`
	Self       bool           `json:"self"`
	Removed    bool           `json:"removed"`
	Usher      bool           `json:"usher"`       // this program, as far as known
	Silent     bool           `json:"silent"`      // it owes an answer for longer than usual
	LastFailed *time.Time     `json:"last_failed"` // null: never
	LastError  string         `json:"last_error"`
	ClockDiffS float64        `json:"clock_diff_s"` // its clock minus ours, when it connected
	Conns      []RingConn     `json:"connections"`
}

// RingConn is a connection to a member.
type RingConn struct {
	Remote     netip.AddrPort `json:"remote"` // not valid: not known yet
	Role       string         `json:"role"`   // "left", "right", "in", "out"
	State      string         `json:"state"`  // "handshaking", "syncing", "synced"
	Users      int            `json:"users"`  // sent or received in the handshake
	PingMS     float64        `json:"ping_ms"`
	Received   uint64         `json:"bytes_received"`
	Sent       uint64         `json:"bytes_sent"`
	Queued     int            `json:"bytes_queued"`
	QueuedPeak int            `json:"bytes_queued_peak"`
	LagS       float64        `json:"lag_s"` // age of the oldest byte that is queued
	LastRead   *time.Time     `json:"last_read"`
	LastWrite  *time.Time     `json:"last_write"`
}

// NewRing makes a Ring of what the ring itself says.
func NewRing(s ring.Status) Ring {
	r := Ring{
		Self: s.Self, Handshaked: s.Handshaked, Synced: s.Synced, LastSync: timeOrNull(s.LastSync),
		SyncS: s.SyncTime.Seconds(), Minor: s.Minor, Directors: []RingDirector{}, Unknown: []RingConn{},
	}
	at := map[netip.AddrPort]int{}
	for _, m := range s.Directors {
		at[m.Addr] = len(r.Directors)
		r.Directors = append(r.Directors, RingDirector{
			Address: m.Addr, Self: m.Addr == s.Self, Removed: m.Removed, Usher: m.Usher || m.Addr == s.Self,
			LastFailed: timeOrNull(m.LastFailed), LastError: m.LastError, ClockDiffS: m.ClockDiff.Seconds(), Conns: []RingConn{},
		})
	}
	for _, silent := range s.Silent {
		if i, ok := at[silent]; ok {
			r.Directors[i].Silent = true
		}
	}
	for _, c := range s.Conns {
		conn := RingConn{
			Remote: c.Remote, Role: c.Role, State: c.State, Users: c.Users, PingMS: float64(c.Ping) / float64(time.Millisecond),
			Received: c.Received, Sent: c.Sent, Queued: c.Queued, QueuedPeak: c.QueuedPeak, LagS: c.Lag.Seconds(),
			LastRead: timeOrNull(c.LastRead), LastWrite: timeOrNull(c.LastWrite),
		}
		if i, ok := at[c.Remote]; ok {
			r.Directors[i].Conns = append(r.Directors[i].Conns, conn)
		} else {
			r.Unknown = append(r.Unknown, conn)
		}
	}
	return r
}

// Summary is what the status shows.
func (r Ring) Summary() RingSummary {
	s := RingSummary{Handshaked: r.Handshaked, Synced: r.Synced}
	for _, d := range r.Directors {
		if !d.Removed {
			s.Directors++
		}
		if d.Silent {
			s.Silent++
		}
	}
	return s
}

// Others is how many members there are beside this one.
func (r Ring) Others() int { return max(0, r.Summary().Directors-1) }

func timeOrNull(at time.Time) *time.Time {
	if at.IsZero() {
		return nil
	}
	return &at
}
