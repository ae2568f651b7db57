// Package cli is the usher command: what it is asked by words, and how it answers people and
// scripts.
//
// A noun looks and never changes anything (status, map, user NAME, flows, host list); a verb changes
// something (user move, host down, flush). An order returns when it has begun and says whether it is
// finished; --wait returns at the end and fails if the order failed. Each command prints tables for people, or with --json exactly what the
// daemon's API says. Exit codes:
//
//	0  it worked
//	1  it failed; stderr says why
//	2  the command line is wrong
//	3  the daemon cannot be reached
//
// What a command does beyond talking to the daemon comes in by the hooks of Env, so that this
// package knows nothing of kernels and demo sites.
package cli
