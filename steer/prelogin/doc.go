// Package prelogin is what the mail protocols share until a user's name is known: bounded reading, limits and
// deadlines, and the words in which a dialogue tells the rest of the path what the client wants (Login) and is told
// what became of it (Refusal).
//
//	accept ─► Dialogue.Next ─► Login ─► auth, route, upstream ─┬─ no  ─► Dialogue.Refuse ─► Dialogue.Next ...
//	                                                           └─ yes ─► Dialogue.Residual, then the connection alone
//
// The success line is never written here: the backend's own one is relayed, so a dialogue that succeeded has said
// nothing about it. Whoever took the Residual owns the connection; the bytes in it belong in front of the next read.
//
// Nothing before login is guessed at. A line that is not understood is an error with a count, and every count, size
// and wait has a limit, because everybody on the network may speak to this code.
package prelogin
