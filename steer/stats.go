package steer

import (
	"sync"
	"sync/atomic"

	"usher/steer/handover"
	"usher/steer/prelogin"
)

// Stats counts since the start of the process.
type Stats struct {
	Accepted    atomic.Uint64 // connections
	TLSFailed   atomic.Uint64 // handshakes with clients that failed
	ProxyFailed atomic.Uint64 // connections without the PROXY header that they had to have
	TooMany     atomic.Uint64 // connections refused by max_connections
	Logins      atomic.Uint64 // sessions that were logged in at a backend
	HandOver    atomic.Uint64 // sessions that the kernel took over
	Undone      atomic.Uint64 // hand-overs that were undone
	Adopted     atomic.Uint64 // sessions found in the kernel at the start

	mu      sync.Mutex
	refused map[prelogin.Kind]uint64
	ended   map[End]uint64
}

// End is how a logged-in session ended: the labels of its metric.
type End struct {
	Mode   Mode
	Reason handover.Reason // why it was not in the kernel
}

func (s *Stats) init() {
	s.refused = map[prelogin.Kind]uint64{}
	s.ended = map[End]uint64{}
}

func (s *Stats) refuse(k prelogin.Kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[k]++
}

func (s *Stats) end(e End) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended[e]++
}

// Refused calls yield with the number of refused logins of each kind.
func (s *Stats) Refused(yield func(prelogin.Kind, uint64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, n := range s.refused {
		yield(k, n)
	}
}

// Ended calls yield with the number of ended sessions by mode and reason.
func (s *Stats) Ended(yield func(End, uint64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e, n := range s.ended {
		yield(e, n)
	}
}
