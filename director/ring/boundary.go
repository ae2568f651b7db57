package ring

import "net/netip"

// A Conn is the number of a connection, never used twice.
type Conn uint64

// An Event is something that happens on the network: one of the types below.
type Event interface{ event() }

// Accepted: somebody has connected. That the address is Allowed has been checked by the caller before.
type Accepted struct {
	Conn   Conn // chosen by the caller with NextConn
	Remote netip.AddrPort
}

// Connected: a Connect has succeeded.
type Connected struct{ Conn Conn }

// Received: bytes came in, cut anywhere. They are not kept.
type Received struct {
	Conn Conn
	Data []byte
}

// Written: so many bytes of what was sent have left.
type Written struct {
	Conn  Conn
	Bytes int
}

// Closed: a connection is gone, or a Connect has failed.
type Closed struct {
	Conn Conn
	Err  error // for people; nil: the peer closed it
}

// An Action is something to be done on the network: one of the types below.
type Action interface{ action() }

// Connect to a director, from our own address. It is answered by Connected or Closed.
type Connect struct {
	Conn   Conn
	Remote netip.AddrPort
}

// Send these bytes. The caller keeps them until they are written, and may not change them.
type Send struct {
	Conn Conn
	Data []byte
}

// Close a connection when what was sent before has been written, or after a second. No Closed follows.
type Close struct {
	Conn   Conn
	Reason string // for the log
}

// Log: something that people should know.
type Log struct {
	Level  Level
	Remote netip.AddrPort // may be invalid
	Text   string
}

// Level of a Log.
type Level uint8

// The levels.
const (
	Info Level = iota
	Warning
	Error
)

func (Accepted) event()  {}
func (Connected) event() {}
func (Received) event()  {}
func (Written) event()   {}
func (Closed) event()    {}

func (Connect) action() {}
func (Send) action()    {}
func (Close) action()   {}
func (Log) action()     {}
