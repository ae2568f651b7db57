// Package state keeps over a restart what was ordered of a director at run time and stands in no
// configuration file: changed, added and removed hosts, moved users, changed ring members, drains
// under way. It is one TOML file that people can read:
//
//	start:   Load ─► Reconcile with the configuration ─► director.Restore, ring members, drains
//	running: an order ─► Writer.Changed ─► (a moment later) the file is replaced as a whole
//
// A ring that the director then joins knows better, and supersedes it; entries of live sessions come
// back from the kernel, not from here.
//
// The file has a version. One of another version is not touched, and keeps the daemon from starting: guessing
// what it means could undo orders in silence. A file that cannot be read at all is kept aside.
package state
