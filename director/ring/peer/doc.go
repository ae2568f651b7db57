// Package peer has the sockets of the ring: it carries out what a ring.Ring wants done on the network, and
// tells it what happens there. It is the one part of director/ that touches the world.
//
//	Ring.Actions ──► Do ─┐            ┌─► hear ──► Ring.Hear
//	                     ├─ Peers ────┤
//	     accept, dial ───┘            └─► the other directors
//
// Each connection has a goroutine that reads and one that writes. Neither knows the protocol. Memory is
// bounded by the Ring, which closes connections whose output piles up.
//
// # TLS
//
// Dovecot's directors know each other by address alone, and speak in the clear. With Config.TLS this is so
// only with the addresses of Config.Plain; all other connections are TLS 1.3, both sides show a certificate,
// and it must be valid for the address at the other end.
package peer
