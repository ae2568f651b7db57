// Package handover moves the bytes of a logged-in session and hands the session
// to the kernel as soon as it can.
//
// It takes any two TCP connections and the bytes read ahead; it knows nothing of
// mail, users or TLS. A session starts in user space (relay.go): two pumps copy,
// by splice(2) in long transfers. In the first quiet moment Run tries to hand it
// over (attempt.go):
//
//	relay ──quiet──► freeze ──► repair ──► settled? ──yes──► forward ──► close both sockets
//	  ▲                                       │
//	  └───────────── thaw, undo ◄─────no──────┘
//
// freeze  Both flows change from OBSERVE to HOLD inside BPF: from here on no
//
//	packet reaches the sockets, and the answer says what passed before.
//
// repair  TCP_REPAIR makes the sockets silent and shows their sequence numbers.
// settled Every byte that passed up was received, read, relayed and acknowledged.
// forward The flows' translation is written and their state changes inside BPF.
//
// What cannot be handed over stays in user space, with a Reason.
package handover
