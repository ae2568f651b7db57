// Package httphook is the auth driver that asks a web server, by the protocol of nginx's mail proxy (auth_http): a site that
// comes from there keeps its endpoint. One attempt is one GET whose headers say who wants to log in, and whose answer's
// headers say what is to be done; bodies are ignored.
//
//	GET /auth HTTP/1.1                      HTTP/1.1 200 OK
//	Auth-Method: plain                      Auth-Status: OK
//	Auth-User: fred%20x                     Auth-Server: 10.2.0.11
//	Auth-Pass: s3cret                       Auth-Port: 143
//	Auth-Protocol: imap
//	Auth-Login-Attempt: 1                   HTTP/1.1 200 OK
//	Client-IP: 192.0.2.42                   Auth-Status: Invalid login or password
//	                                        Auth-Wait: 3
//
// What goes beyond nginx: Auth-Server may be missing, and then the director decides, among the hosts of the tag in
// Auth-Director-Tag. With Auth-Server the director is not asked. Auth-Port counts in both cases, and may be missing too.
// Requests name the address that the client connected to (Server-Addr, Server-Port), the session (Auth-Session), and the
// user that a client wants to be by SASL's authzid (Auth-Authzid); such a login needs an Auth-User in the answer that is the
// same. A name with the site's separator in it needs one too: the hook has to say that it knew what it was asked.
//
// What nginx tolerates and this does not: an answer with one Auth- header twice, with a status of 500 and above, or
// without Auth-Status.
//
// Nothing that a client, its name server or its certificate wrote reaches a header as a control character (CVE-2026-28753
// is a reverse look-up whose answer had line ends in it). User and password are percent-encoded as nginx does it.
package httphook
