// Package wire is the text of the ring protocol: lines to typed values and back (ring.md sections 1, 3, 5, 6).
//
//	USER <TAB> 704933450 <TAB> 127.0.2.2 <TAB> 1795435488 <LF>
//	     └────────── *User{Hash: 704933450, Host: 127.0.2.2, Refreshed: 1795435488}
//
// It knows the form of each line and nothing of its meaning: what is allowed when, and what follows from it,
// is the business of package ring. Everything that comes from a peer is hostile until proven otherwise: a
// line is either exactly understood or an error, and its size is bounded by MaxLine before it is looked at.
//
// # What Ushers add
//
// Dovecot's directors ignore more arguments than they know in some lines. Ushers use that once, in ME, to
// recognise each other ("usher=", and a number for the life of the process); everything else that is not Dovecot's is written to those Peers only
// that have said so: when an operator ordered a weight or a move (behind HOST, USER, U and USER-MOVE),
// whether a host is up or down by a health check (behind HOST), and the line USHER-HEALTH.
package wire
