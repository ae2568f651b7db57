// Package backend is a mail server for tests: it speaks as much IMAP (RFC 3501), POP3 (RFC 1939), submission, ManageSieve and LMTP as
// a proxy and a load generator need, holds thousands of connections cheaply, misbehaves on request, and remembers
// who logged in when and how each session ended.
//
// It stores no mail. Message n is content.Message(n, content.Size(n)), and an appended message is answered
// with its SHA-256:
//
//	C: a APPEND INBOX {310}
//	S: + OK
//	C: <310 bytes>
//	S: a OK [APPENDUID 1 1] 5e1c…(64 hex digits) Append completed.
//
// All protocols but LMTP have the following commands of our own after login, here in IMAP; elsewhere there is no tag, and the last
// line is the protocol's own. Raw bytes follow a command's line directly, and go before the final line:
//
//	a X-WHO                   * X-WHO <user> <server name> <session number>
//	a X-ECHO n                n raw bytes follow, and come back
//	a X-SOURCE n seed         sends n bytes of content.Stream(seed); seed 0: a cheap constant pattern
//	a X-DISCARD n             n raw bytes follow, and are dropped
//	a X-PINGPONG req rep      rounds of req bytes (at least 1) answered by rep zero bytes, at once and without
//	                          parsing, until a request begins with 'Q'; that one is answered by the final line
//	a X-FINISH                final line, then the server closes its direction (FIN), reads to the end and
//	                          records count and hash of what came (Session.Tail, Session.TailSHA256)
//	a X-RESET                 the server resets the connection (RST) instead of an answer
package backend
