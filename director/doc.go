// Package director decides which host a user is on. It is the whole decision and nothing else: no
// socket, no goroutine, no clock. Everything it learns comes in as an Event, everything it wants done
// comes out as Effects, and the same events at the same times always give the same effects:
//
//	Lookup, SessionStart, SessionEnd, Active,  ┌──────────┐  Assigned, Refused,
//	HostPut, HostUp, HostRemove,            ──►│   Step   │──► EntryPut, EntryDrop, NamePut,
//	Move, Kick, Adopt, Tick                    └──────────┘  Stop, Done
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
// # What a ring of directors will add
//
// More events (what peers say) and more effects (what to tell them), and a phase of a move that waits
// for the peers. Entries may already be made with a last use in the past.
package director
