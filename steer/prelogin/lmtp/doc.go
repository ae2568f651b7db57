// Package lmtp takes mail by LMTP (RFC 2033) and gives each recipient's copy to that recipient's backend, within the one
// transaction of the client:
//
//	client                          Usher                           backends
//	MAIL FROM:<a>           ──►  250, remembered
//	RCPT TO:<b>             ──►  find b, connect          ──►  MAIL, RCPT     ──►  the backend's own reply
//	RCPT TO:<c>             ──►  find c, another backend  ──►  MAIL, RCPT     ──►  the backend's own reply
//	DATA                    ──►                           ──►  DATA to both   ──►  354
//	the mail                ──►  piece by piece           ──►  to both at once
//	.                       ──►                           ──►  .              ──►  one reply per recipient, in order
//
// Nothing is stored here: a mail is as large as it likes, and a buffer is what it takes. A backend that fails costs its own
// recipients a 4xx, whenever it fails, and nobody else anything. A mail whose client leaves in the middle is ended nowhere.
//
// There is one way to read the data, whoever reads it: CR LF "." CR LF ends it, and a bare LF, which some servers take for
// the end of a line as well, goes on as CR LF, with its dot doubled. So no mail can carry commands.
//
// CHUNKING, DSN and SMTPUTF8 are not offered.
package lmtp
