package health

import (
	"iter"
	"net/netip"
	"time"
)

// Say is what a director said of a host, and until when it counts.
type Say struct {
	Up    bool
	Until time.Time
}

// Ballot is what one director says of the hosts.
type Ballot map[netip.Addr]Say

// counts reports whether a director finds any host up: otherwise it is likely to be its own way out that is
// broken.
func (b Ballot) counts(now time.Time) bool {
	for _, s := range b {
		if s.Up && now.Before(s.Until) {
			return true
		}
	}
	return false
}

// Tally is the outcome of a vote about one host.
type Tally struct {
	Down, Counted int // directors
	// Leader is the lowest address of those that were counted: who has to move the host's users.
	Leader netip.AddrPort
}

// Verdict is Down for more than half of the directors, and Unknown when none was counted.
func (t Tally) Verdict() Verdict {
	switch {
	case t.Counted == 0:
		return Unknown
	case 2*t.Down > t.Counted:
		return Down
	}
	return Up
}

// Vote counts the ballots about a host. The package documentation has the rule and its reason.
func Vote(now time.Time, host netip.Addr, ballots iter.Seq2[netip.AddrPort, Ballot]) Tally {
	var t Tally
	for director, b := range ballots {
		s, ok := b[host]
		if !ok || !now.Before(s.Until) || !b.counts(now) {
			continue
		}
		if t.Counted == 0 || director.Compare(t.Leader) < 0 {
			t.Leader = director
		}
		t.Counted++
		if !s.Up {
			t.Down++
		}
	}
	return t
}
