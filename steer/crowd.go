package steer

import (
	"net/netip"
	"sync"
)

// crowd counts the connections before login by the address that they come from: an IPv4 address, or an IPv6 /64, which is
// what one customer has.
type crowd struct {
	mu sync.Mutex
	n  map[netip.Addr]int
}

func newCrowd() *crowd { return &crowd{n: map[netip.Addr]int{}} }

// place is what stands for an address.
func place(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// enter counts one more, if there are fewer than most; 0: there is no limit.
func (c *crowd) enter(a netip.Addr, most int) bool {
	a = place(a)
	c.mu.Lock()
	defer c.mu.Unlock()
	if most > 0 && c.n[a] >= most {
		return false
	}
	c.n[a]++
	return true
}

// leave takes one back.
func (c *crowd) leave(a netip.Addr) {
	a = place(a)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[a]--; c.n[a] <= 0 {
		delete(c.n, a)
	}
}
