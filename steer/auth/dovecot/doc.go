// Package dovecot is the auth driver that asks a real Dovecot auth, 2.3 or 2.4, over its unix sockets: all its passdbs and
// SASL mechanisms work. Logins go to a socket of the auth-client protocol (login/login, auth-login or auth-client), users
// without a password (LMTP's recipients) to one of the auth-master protocol (auth-userdb).
//
//	Authenticate ──► AUTH, CONT ─┐                      ┌─► login socket ─┐
//	Begin, Next  ──► AUTH, CONT ─┼─ ids, a few ─────────┤                 ├─ Dovecot's auth
//	Find         ──► PASS, USER ─┘  shared connections  └─► user socket ──┘
//
// Who may ask: auth takes its permissions from the socket file. PASS needs one that is not mode 0666 unless Usher runs as
// root or as the file's owner (auth-master.md).
//
// The fields of a reply are auth.Fields. A reply without proxy, proxy_maybe or director_proxy_maybe is a user who is not
// to be proxied, and refused. Fields that mean nothing here are named once in the log.
//
// EXTERNAL needs auth_ssl_username_from_cert = yes at auth; master users need a passdb with master = yes and pass = yes,
// or their logins have no proxy field.
//
// Master users are Dovecot's business: names with a separator and authzids are passed on as they come, and the reply says
// who it is.
package dovecot
