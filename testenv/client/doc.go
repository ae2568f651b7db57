// Package client is the other half of package backend: sessions of IMAP, POP3, submission and ManageSieve that check every byte they
// get, thousands of them if need be, and generators of load.
//
//	s, err := client.Dial(ctx, client.Config{NS: lab.Client, Server: addr, User: "anna"})
//	err = s.Traffic(ctx, 17)      // a random mix of commands, until ctx ends or something is wrong
//	err = s.Logout()
//
// A Session is used by one goroutine at a time. Every operation is bounded by Config.Timeout and returns an *Error,
// whose Kind says what sort of trouble it was. After an error the session is good for nothing but Close.
package client
