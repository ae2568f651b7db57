// Package auth is the step between "who they say they are" and "where they go": it verifies a login or leaves that to the
// backend, names the user that the director routes, and says with which credentials the proxy logs in there.
//
// A driver that cannot verify (Static) must send the client's own password upstream, so that the backend does it. One
// that verifies (PasswdFile, package dovecot, package httphook) may send a master user's instead. The optional abilities
// of a driver are interfaces of their own: Finder looks up users without a password, Relayer takes part in SASL exchanges
// of several steps. What is common to all drivers is here: who a client wants to be (Identify), how the proxy logs in for
// it (Master), and what Dovecot's passdb fields mean (Fields).
//
// What failed logins cost, and how many unknown names a client may try, is package penalty.
package auth
