package handover

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Reset sends a RST to the remote end of a connection that no socket of this host
// holds any more: its flow must have been removed before. snd is the sequence
// number that the remote host expects next (its last acknowledgement), rcv what we
// acknowledge.
//
// The kernel makes the packet: a socket is put into the connection's state by
// TCP_REPAIR and closed. When data was under way and snd is too low, the remote
// host answers with a challenge ACK (RFC 5961), which our stack, having no socket,
// answers with the exact RST. Needs CAP_NET_ADMIN.
func Reset(t Tuple, snd, rcv uint32) (err error) {
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
