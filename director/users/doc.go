// Package users is the directory of users: one entry per (tag, hash), saying which host it is on, how
// many sessions it has and when it was last used. It holds ten million entries in bounded memory:
//
//   - an entry is 48 bytes without a pointer, kept in chunks that never move and that the garbage
//     collector does not look into; with its place in the index it is some 65 bytes;
//   - host addresses and tags are kept once and referred to by number;
//   - entries are linked into lists ordered by the second of their last use, one of those without sessions and one
//     of those with: finding the next one to expire, or to tell the other directors about, is looking at the head,
//     and an entry that others have used in the past finds its place at once: O(1), no scan;
//   - the names seen under a hash are kept beside it (24 bytes and the text), only for users that had a
//     session; a login that failed leaves no name.
//
// # Epochs
//
// Every entry has an epoch, and every session carries the epoch under which its host was chosen. A
// session is valid exactly while the two are equal; raising the epoch (Bump) ends all sessions at once.
// Epochs must not come back for a key, or a forgotten old session would become valid again. So a new
// entry starts at the directory's floor, and the floor is kept above every epoch of an entry that was
// removed. Born is the epoch an entry started with: sessions below it belong to a predecessor of the
// entry and are not counted.
//
// Time is a duration since a moment that the caller chooses; entries may be made with a last use in the past.
package users
