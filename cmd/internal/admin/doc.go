// Package admin is how people look at the daemon and command it: JSON over HTTP on a unix
// socket, the same for reading only on a TCP address, and the client of both.
//
//	usher command ─► Client ─► unix socket (0600) ─┐
//	browser, scripts ────────► TCP, GET only ──────┼─► Source ─► the daemon
//	Prometheus ──────────────► /metrics ───────────┘
//
//	GET  /api/v1/status                    Status
//	GET  /api/v1/map?host=HOST&user=USER   [MapEntry ...]; both may be left out, there may be several users
//	GET  /api/v1/user?name=USER            User
//	GET  /api/v1/flows                     [FlowInfo ...]
//	GET  /api/v1/ring                      Ring
//	GET  /api/v1/flush                     [Flush ...]
//	GET  /api/v1/orders                    Orders
//	POST /api/v1/user/move                 {"user":"u","host":"10.2.0.12","wait":true}
//	POST /api/v1/user/kick                 {"user":"u"} or {"field":"user_group","value":"staff"}
//	POST /api/v1/host/add                  {"address":"10.2.0.19","name":"","tag":"","weight":100}
//	POST /api/v1/host/update               {"host":"10.2.0.12","weight":50}
//	POST /api/v1/host/up, down, remove     {"host":"10.2.0.12"}
//	POST /api/v1/host/drain                {"host":"10.2.0.12","rate":10}
//	POST /api/v1/flush                     {"host":"all","force":false}
//	POST /api/v1/flush/stop                {"host":"10.2.0.12"}
//	POST /api/v1/ring/add, remove          {"director":"10.1.0.3:9090"}
//	GET  /healthz                          "ok" as long as the daemon answers
//	GET  /metrics                          Prometheus text format
//
// A POST returns when its order has begun, and says whether that was also its end: Reply. With
// "wait":true (move, host, ring) it returns at the end, for which the ring must agree. How far a
// flush or drain is tells GET flush; it goes on whoever asks.
//
// What changes something is only there on the unix socket, whose mode says who may: the TCP
// address knows no passwords. An error is a fitting status code and {"error":"..."}.
//
// In all JSON, times are RFC 3339, spans are seconds as numbers, hashes are numbers, addresses
// are texts ("" for none). Fields are never renamed or taken away; more may come.
package admin
