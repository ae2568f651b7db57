// Package ring is a director's place in the ring of directors: the protocol that Dovecot's directors speak
// with each other, version 1.9 (ring.md), as a state machine without sockets, goroutines or a clock.
//
//	node events ──► Step ─┐                  ┌─► effects for the node (Assigned, EntryPut, Stop, Done, …)
//	                      ├─ Ring ───────────┤
//	network     ──► Hear ─┘  owns Director   └─► Actions for the network (Connect, Send, Close, Log)
//
// It passes what other directors say about users and hosts to the Director (director.Heard), and tells them
// what the Director wants told. Its own business is who is in the ring, who is connected to whom, and whether
// all agree.
//
// # The ring
//
// Directors are sorted by address. Each one connects to the next, its right neighbour, and is connected to by
// the one before, its left:
//
//	┌──► 10.0.0.1 ──► 10.0.0.2 ──► 10.0.0.3 ──┐
//	└─────────────────────────────────────────┘
//
// A connection begins with a handshake, in which the one who connects tells all directors, hosts and users it
// knows (handshake.go). Then it is given a place (neighbours.go). News travel in both directions, to everybody
// but where they came from; what was seen before is dropped (news.go). Whenever the ring or its hosts change,
// everybody sends a SYNC around the circle to the right: the one whose own SYNC comes back knows that all have
// the same hosts, and is synced (sync.go). PINGs find neighbours that are silent (timers.go).
//
// # What is different from Dovecot, on purpose
//
//   - A director is alone when it could not reach anybody for 20 seconds, each time, instead of once in the
//     life of the process; silent addresses do not make that longer. While it is alone it tries to find the
//     others every few seconds.
//   - A director that was alone is not synced any more from its first neighbour on, instead of the second.
//   - A neighbour that is idle is pinged every 5 seconds instead of 15.
//   - A CONNECT is followed by making the new connection first and breaking the old one when the new one is
//     ready, so that the ring stays synced while somebody joins.
//   - What comes over a connection that was told to go elsewhere is heard until it has gone.
//   - Commands that were overtaken by younger ones, on a new and shorter way, are not lost (seqs.go).
//   - A director that finds somebody between itself and its left says so also when both were still shaking hands.
//   - A director whose SYNCs keep coming although nobody told of it is taken into the list.
//   - Who connects to us and does not list a director that we know hears of it.
//   - Sequence numbers start at the unix time of the start.
//   - The director that ME names must have the address that the connection comes from.
//   - Ushers recognise each other and tell each other more (package wire). What that is goes from Usher to Usher
//     only: a Dovecot between them does not pass it on.
package ring
