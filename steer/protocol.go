package steer

import (
	"context"
	"net"

	"usher/steer/prelogin"
	"usher/steer/prelogin/imap"
	"usher/steer/prelogin/pop3"
	"usher/steer/prelogin/sieve"
	"usher/steer/prelogin/submission"
	"usher/steer/upstream"
	upimap "usher/steer/upstream/imap"
	uppop3 "usher/steer/upstream/pop3"
	upsieve "usher/steer/upstream/sieve"
	upsubmission "usher/steer/upstream/submission"
)

// protocol is what the path needs to know of a mail protocol.
type protocol struct {
	dialogue func(net.Conn, prelogin.Config) prelogin.Dialogue
	login    func(context.Context, net.Conn, upstream.Credentials, upstream.Limits) (upstream.Result, error)
	// startTLS is for the connection to the backend, before login.
	startTLS func(context.Context, net.Conn, upstream.Limits, upstream.Handshake) (net.Conn, error)
	busy     string // instead of a greeting
	learns   bool   // clients are told the capabilities of the last backend that let somebody in
}

var protocols = map[string]protocol{
	"imap": {
		dialogue: imap.New, login: upimap.Login, startTLS: upimap.StartTLS,
		busy: "* BYE [UNAVAILABLE] Too many connections, try again later.\r\n",
	},
	"pop3": {
		dialogue: pop3.New, login: uppop3.Login, startTLS: uppop3.StartTLS,
		busy: "-ERR [SYS/TEMP] Too many connections, try again later.\r\n",
	},
	"submission": {
		dialogue: submission.New, login: upsubmission.Login, startTLS: upsubmission.StartTLS, learns: true,
		busy: "421 4.3.2 Too many connections, try again later.\r\n",
	},
	// LMTP has no login; see lmtp.go.
	"lmtp": {busy: "421 4.3.2 Too many connections, try again later.\r\n"},
	"sieve": {
		dialogue: sieve.New, login: upsieve.Login, startTLS: upsieve.StartTLS, learns: true,
		busy: "BYE (TRYLATER) \"Too many connections, try again later.\"\r\n",
	},
}
