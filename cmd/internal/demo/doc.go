// Package demo is `usher demo`: a whole site on one machine, shown at work.
//
//	guests (users' mail clients) ──► usher serve ──► three backends
//	   │ every answer is checked        ▲                │ who is logged in where
//	   ▼                                │                ▼
//	 fleet ────────────► acts ──────────┴──────────── watch ──► view: a screen, lines, or JSON
//
// The acts follow one another over the time that is given: log in, move, kick, kill -9, start again, and
// so on. Each says what it is about to do, does it, and looks whether what should happen
// did: by the daemon's word, by what the clients got, and by what the scripted backends saw. From
// the first login to the last act every client checks every answer that it gets.
//
// As root the site is in network namespaces, and the kernel carries the sessions; otherwise it is on
// the loopback interface, and the sessions live and die with the daemon's process. The acts
// are the same, but some of them then have another right outcome, and say so.
package demo
