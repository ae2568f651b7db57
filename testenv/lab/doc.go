// Package lab builds a whole site on one machine: clients, a director node and mail backends, each in a
// network namespace of its own, with real interfaces between them.
//
//	TwoArm      client eth0 ──────── clients0  director  backends0 ──────── eth0 backend
//	            10.77.1.2            10.77.1.1           10.77.2.1          10.77.2.11, .12, .13
//
//	OneArm      client eth0 ──┐                             ┌── eth0 backend
//	                          ├── switch (a bridge) ────────┤
//	            director eth0 ┘   director: both 10.77.1.1 and 10.77.2.1 on its only interface
//
//	LoAddress   as TwoArm, but the service address 10.77.0.1 is on the director's loopback interface,
//	            and clients reach it by a route
//
// IPv6 has the same picture with fd77:0:0:1::1 for 10.77.1.1 and so on. A client on the director's own
// host is a socket of Lab.Director that connects to the service address.
//
// Everything lives in unnamed namespaces (package loader/netns): it goes with Close, and also when the
// process is killed. Nothing is shared with the machine's own network, so labs may run side by side.
package lab
