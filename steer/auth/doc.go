// Package auth is the step between "who they say they are" and "where they go": it verifies a login or leaves that to the
// backend, names the user that the director routes, and says with which credentials the proxy logs in there.
//
// A driver that cannot verify (Static) must send the client's own password upstream, so that the backend does it. One
// that verifies (PasswdFile) may send a master user's instead.
package auth
