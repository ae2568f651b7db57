// Package sim holds a simulation of rings: the real director and the real state machine of the ring, N
// times, over a network that exists in memory only and in a time of its own. It is all tests.
//
// A seed makes a plan: how many directors, how wrong their clocks are, how slow their network, and what
// happens when: logins, orders of operators, connections that break, partitions, crashes. The plan is then
// played. Everything random comes from the seed, so the same seed plays the same way. What must hold is in
// invariant_test.go:
//
//   - while the ring is whole, no user has live sessions on two hosts, whatever operators order;
//   - after the last fault all directors soon agree about hosts and users, and the newest order stands;
//   - every lookup, move, kick and flush is answered in time; nothing panics, storms or leaks.
//
// What is known not to hold, and is left out of the plans or of the rules; all of it is the protocol's, which
// these directors share with those of Dovecot:
//
//   - A message that removes a director from the ring has no date. If a partition or a stall holds it up until the
//     director was added again, some take it out anew.
//   - What is forgotten by order (a forced flush, a removed host) comes back here and there by a user's message that
//     was on its way; the next use of the entry settles it.
//   - A login that is just being reported when its user is moved is not waited for: that is what the kick delay is for.
//   - A partition is one also when connections merely stall and break at the same time, so that the ring closes
//     without somebody who goes on to serve known users.
//   - The message that a user has no sessions left names neither its originator nor the user's tag. If the same user
//     is to be moved by two directors, or under two tags, at nearly the same time, they may take each other's for their
//     own: then only the kick delay is waited for, or the whole 30 seconds.
//   - Moves take the whole 30 seconds when neighbours change meanwhile: who has no sessions left says so to the
//     neighbour of that moment only.
//
// A seed that fails is made smaller by leaving out parts of its plan, and prints itself:
//
//	go test ./director/ring/sim -run TestSim -seed=1234 -v      # plays one seed and prints all that happens
//	go test ./director/ring/sim -run TestSim -for=1h            # as many seeds as that takes
package sim
