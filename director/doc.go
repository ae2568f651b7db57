// Package director decides which host a user is on. It is the whole decision and nothing else: no
// socket, no goroutine, no clock. Everything it learns comes in as an Event, everything it wants done
// comes out as Effects, and the same events at the same times always give the same effects:
//
//	Lookup, SessionStart, SessionEnd, Active,   ┌──────────┐  Assigned, Refused,
//	HostPut, HostUp, HostRemove, HostFlush,  ──►│   Step   │──► EntryPut, EntryDrop, NamePut,
//	Move, Kick, Adopt, Restore, Tick            │          │  Stop, Flush, Done
//	                                            │          │
//	RingState, RingSynced, HostsReplace,     ──►│          │──► Tell, Pass, SyncNeeded,
//	Heard (what other directors say)            └──────────┘  Conflict, Invalid, Warn
//
// A Director is not safe for concurrent use: one goroutine owns it, and carries out the effects of a
// Step in their order before the next Step. Next says when the next Tick is useful.
//
// # The life of an entry
//
// The first Lookup of a user (more exactly of a Key: hash and tag) makes an entry on the host that the
// consistent-hash ring names. From then on the entry decides, whatever happens to the ring; a host that
// is down or has weight 0 keeps its users. Every Lookup, Active, SessionStart and SessionEnd refreshes the
// entry. It expires Config.UserExpire after the last refresh, and never while it has sessions. A Move
// puts it on another host; HostRemove drops it.
//
// # One user, one host
//
// Two rules keep the sessions of a key on one host at any time. While an entry moves (Move, or HostRemove
// with sessions left) its Lookups wait, until the old sessions are gone or their deadline has passed.
// And sessions are bound to the moment of their assignment by an epoch:
//
//	Lookup ──► Assigned{Epoch: 7} ──► dial, log in ──► SessionStart{Epoch: 7} ──► SessionEnd{Epoch: 7}
//	                                        ▲
//	                                  Move: EntryPut{Epoch: 8}, Stop{Epoch: 7}
//
// Each entry has an epoch, which Move, HostRemove, and a Kick that hits all sessions of the entry
// raise. A session is valid while its epoch is that of the entry, so the one map write of EntryPut ends
// all flows in the kernel. Epochs are only compared for equality there; they never come back for a key,
// not even when its entry is dropped and made again, or after a restart with Adopt.
//
// A session that starts with a stale epoch (its user was moved, kicked or forgotten while it logged in)
// is answered at once with a Stop of reason StopStale that names its key, user and epoch. It may be
// reported as every other session: whoever sends SessionStart sends SessionEnd exactly once, with the
// same epoch, stopped or not; the director knows which of them it counts. While a move goes on, such a
// session is counted and the move waits for its end.
//
// A Kick of one name whose entry has sessions of other names too (their hashes collide, or the format
// hashes less than the name) cannot use the epoch. It raises nothing and gives Stop{Key, User}, and user
// space ends the sessions of that name one by one.
//
// # A ring of directors
//
// With Config.Ring a director is one of several that share users and hosts. Package ring knows how they are
// connected and what goes over the wire; it hands what they say to Step as Heard, and sends what Step gives as
// Tell and Pass. What the director adds (ring.md sections 6, 8 and 9; testdata/ring-*.txt show each rule at work):
//
//   - Lookups wait until this director has joined, and those of unknown users while the ring is not synced: no
//     two may choose differently because they see different hosts. Nothing waits for longer than 30 seconds.
//   - Every use of an entry that is a new second for the others is told. Entries with sessions are told twice in
//     their life, as the others do not see the sessions.
//   - An entry that is about to expire, and whose hash points elsewhere, is weak while the others are asked.
//   - A move ends when all directors have ended the user's sessions: see package move.
//   - When two have a user on different hosts the lower address wins. Here, unlike with Dovecot's directors, the
//     newest order of an operator comes before that, for users and for the weights of hosts, and an "up" of before
//     an operator's "down" does not undo it: so the side of a split that did not hear of an order does not win. Ushers
//     tell each other when orders were given; towards Dovecot's directors an order is imposed as a move.
//
// Whenever the host of an entry changes, for whatever reason, its epoch is raised and its sessions here are
// stopped. So within one director no user is ever on two hosts, whatever the others say.
package director
