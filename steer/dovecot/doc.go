// Package dovecot has the sockets that Dovecot's own programs talk to.
//
//	doveadm director …, poolmon ─► <base_dir>/director-admin  ─► Admin  ─► Director (the decision and its ring)
//
//	imap-login, pop3-login, …   ─► login/director     ─► auth-login   ┐
//	lmtp, doveadm               ─► director-userdb    ─► auth-userdb  ├─ DropIn ─► Router
//	their sessions that live    ─► login/proxy-notify                 │
//	their sessions that must end ◄─ ipc (2.3), anvil (2.4)            ┘
//
// # Admin
//
// The protocol is that of admin.md, with what Dovecot 2.3's doveadm expects byte for byte. On purpose it
// differs in these points:
//
//   - Commands that arrive while an earlier one waits for the ring are done in their order, never lost
//     (behaviours.md section 8, number 1).
//   - When a director of the ring does not answer, a command that changes something is done here and answered at
//     once, with a text that says so, instead of after 30 s.
//
// # DropIn
//
// Dovecot's processes ask auth, and a director in the middle adds to the answer where the user goes (auth-client.md,
// auth-master.md). Everything else passes as it is, byte for byte, on one connection to auth for each of theirs.
//
// The director counts sessions, and Dovecot's processes do not say when one begins or ends: only that some session
// of a user lives, each half life of an entry (proxy-notify-ipc.md). So there is one guest for all sessions under a login
// name: SessionStart before the first answer is given, SessionEnd when nobody has refreshed it for the life of an entry, or
// when it was kicked:
//
//	Stop{Key, Epoch} ──► guests.stop ──► kick by hash, or by name ──► all processes have answered ──► SessionEnd
//
// and as the director lets no lookup of a moved user pass before that, nobody is given the new host while a session on
// the old one lives. Three things could break this, and do not:
//
//   - The answer that overtakes the kick. A guest is in the table before the director hears of it, so a Stop always finds
//     it, and one whose SessionStart is stale is not given its answer but asks again.
//   - The kick that overtakes the answer. What a process has not read yet it cannot kick: a user who was given a host within
//     the last second is kicked once more after it (settle).
//   - The session that we do not know of, because an earlier process gave it its host. Dovecot is asked at the start which
//     sessions there are (census); every Stop is followed by a kick, guest or not; and a refresh makes a guest, too.
//
// A kick by hash says which host is right, where it can, and so spares those who came there meanwhile. LMTP and doveadm
// have no long sessions, and no guests: a look-up refreshes the entry, as in Dovecot.
package dovecot
