// Package admin is how people look at the daemon and command it: JSON over HTTP on a unix
// socket, the same for reading only on a TCP address, and the client of both.
//
//	usher command ─► Client ─► unix socket (0600) ─┐
//	browser, scripts ────────► TCP, GET only ──────┼─► Source ─► the daemon
//	Prometheus ──────────────► /metrics ───────────┘
//
//	GET  /api/v1/status           Status
//	GET  /api/v1/map              [MapEntry ...]
//	GET  /api/v1/user?name=USER   User
//	GET  /api/v1/flows            [FlowInfo ...]
//	POST /api/v1/move             {"user":"u","host":"10.2.0.12"}
//	POST /api/v1/kick             {"user":"u"}
//	POST /api/v1/host             {"address":"10.2.0.12","weight":50,"up":false}
//	GET  /healthz                 "ok" as long as the daemon answers
//	GET  /metrics                 Prometheus text format
//
// What changes something is only there on the unix socket, whose mode says who may: the TCP
// address knows no passwords. An error is a fitting status code and {"error":"..."}.
//
// In all JSON, times are RFC 3339, spans are seconds as numbers, hashes are numbers, addresses
// are texts ("" for none). Fields are never renamed or taken away; more may come.
package admin
