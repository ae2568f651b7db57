// Package steer is the path of a connection, in this order:
//
//	accept ► prelogin ► auth ► route ► upstream ► handover ► kernel ► expire
//
// Each step has a folder; this package has the session that walks along it
// (session.go), what becomes of one attempt to log in (attempt.go), the table of all
// sessions (table.go) and the server that starts them (server.go).
//
// Two kinds of traffic leave the path before its end. A session with TLS on a leg is
// relayed in user space, by package secure. LMTP has no session at all: its mails go to
// the backends of their recipients, and the connection stays (lmtp.go).
//
// A session is in one State, and its bytes move in one Mode. Both words appear
// alike in the log, in `usher user` and in metrics.
package steer

import "fmt"

// State says where on its way a session is.
type State uint8

// The states, in the order of a session's life.
const (
	Accepted  State = iota // connection made
	Prelogin               // talking with the client until its user is known
	Auth                   // the auth driver decides
	Route                  // the director decides
	Upstream               // logging in at the backend
	Relayed                // logged in; user space moves the bytes
	Forwarded              // logged in; the kernel moves the bytes
)

var stateNames = [...]string{"accepted", "prelogin", "auth", "route", "upstream", "relayed", "forwarded"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", s)
}

// Mode says what moves a session's bytes.
type Mode string

// The modes. A session before its login has none.
const (
	ModeXDP    Mode = "xdp"    // kernel, XDP program
	ModeTC     Mode = "tc"     // kernel, tc program
	ModeSplice Mode = "splice" // user space, splice(2) in long transfers
	ModeCopy   Mode = "copy"   // user space, always copying
)

// Modes are all modes.
var Modes = []Mode{ModeXDP, ModeTC, ModeSplice, ModeCopy}
