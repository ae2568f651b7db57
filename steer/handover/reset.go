package handover

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Reset sends a RST to the remote host of a flow; other is the session's other flow.
// Both must have been removed before: no socket of this host holds the connection any
// more, and what comes back has to find that out. Needs CAP_NET_ADMIN.
//
// When data is under way the RST comes before some of it, and the remote host answers
// with a challenge ACK (RFC 5961), which our stack, having no socket, answers with the
// exact RST.
func (f Flow) Reset(other Flow) error {
	return reset(f.Tuple, f.sndNxt(other), other.MaxAck+other.AckAdd)
}

// sndNxt is the sequence number of a RST, chosen as the kernel does for a socket of its
// own (tcp_acceptable_seq): the end of what was sent to the remote host. Its last
// acknowledgement will not do: a later one may have been dropped since the session was
// stopped, and a RST below what it has received is discarded without an answer. So is one
// beyond its window; but windows are rounded to their scale, which may seem to take a
// promise back.
func (f Flow) sndNxt(other Flow) uint32 {
	end, edge := other.EndSeq-f.AckAdd, f.MaxAck+f.Window
	if int32(end-edge) >= 1<<f.Scale {
		return edge
	}
	return end
}

// reset sends a RST on a connection that has no socket; snd is its sequence number, rcv
// its acknowledgement. The kernel makes the packet: a socket is put into the connection's
// state by TCP_REPAIR and closed.
func reset(t Tuple, snd, rcv uint32) (err error) {
	local, family := sockaddr(t.Local)
	remote, _ := sockaddr(t.Remote)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("reset %v: socket: %w", t.Remote, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := setRepair(fd, repairOn); err != nil {
		return fmt.Errorf("reset %v: %w", t.Remote, err)
	}
	if err := unix.Bind(fd, local); err != nil {
		return fmt.Errorf("reset %v: bind to %v: %w", t.Remote, t.Local, err)
	}
	for _, q := range []struct {
		queue int
		seq   uint32
	}{{queueSend, snd}, {queueReceive, rcv}} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, q.queue); err != nil {
			return fmt.Errorf("reset %v: set TCP_REPAIR_QUEUE: %w", t.Remote, err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, int(int32(q.seq))); err != nil {
			return fmt.Errorf("reset %v: set TCP_QUEUE_SEQ: %w", t.Remote, err)
		}
	}
	if err := unix.Connect(fd, remote); err != nil {
		return fmt.Errorf("reset %v: connect: %w", t.Remote, err)
	}
	if err := setRepair(fd, repairOffSilently); err != nil {
		return fmt.Errorf("reset %v: %w", t.Remote, err)
	}
	// Closing with a linger time of zero is an abort.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("reset %v: set SO_LINGER: %w", t.Remote, err)
	}
	return nil
}
