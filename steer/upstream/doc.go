// Package upstream is the leg to the backend: from the dial to the moment when the backend has accepted the user.
//
// The login speaks the client's protocol with the client's own words where they matter: an IMAP login carries the client's
// tag, so that the backend's answer can be relayed as it stands and client and backend agree on every byte from there on.
// What the backend sent behind its final line is handed on as Result.Residual.
//
// TLS by a command comes before that (StartTLS): what it returns looks like a new connection on which nothing was said yet.
//
// The protocols are in the packages below; this one holds what they share.
package upstream
