package state

import (
	"net/netip"

	"usher/director"
)

// State is what is kept. The zero value is that of a director to whom nothing was ordered.
type State struct {
	Orders director.Orders
	// Configured are the weights that the configuration file had when the orders were given.
	Configured map[netip.Addr]int
	// Names are those of moved users, for people who read the file. Load does not give them back.
	Names map[director.Key]string

	DirectorsAdded   []netip.AddrPort // to the ring
	DirectorsRemoved []netip.AddrPort

	Drains []Drain // under way
}

// Drain is a flush or a drain that has to go on after a restart.
type Drain struct {
	Host     netip.Addr
	Rate     float64 // users per second; 0: no limit
	Parallel int     // moves at a time; 0: as configured
}

// Reconcile drops the orders that the configuration file has overtaken: what somebody has written there
// about a host since an order was given is newer than the order.
//
//   - A host that was taken out of the file is gone, whatever was ordered of it.
//   - A host whose weight was changed in the file, or that was put into it, has the weight of the
//     file, and is not removed any more. That it was taken down holds.
func (s *State) Reconcile(hosts []director.Host) {
	configured := map[netip.Addr]int{}
	for _, h := range hosts {
		configured[h.Addr] = h.Weight
	}
	var kept []director.HostOrder
	for _, o := range s.Orders.Hosts {
		was, before := s.Configured[o.Host.Addr]
		is, now := configured[o.Host.Addr]
		switch {
		case before && !now:
			continue
		case before == now && was == is:
		case o.Removed:
			continue
		default:
			// An order that was never given leaves the weight to the file (director.Restore).
			o.Ordered, o.Host.Weight = 0, is
		}
		kept = append(kept, o)
	}
	s.Orders.Hosts = kept
	s.Configured = configured
}
