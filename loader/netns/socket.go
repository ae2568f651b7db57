package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen announces on a local address of the namespace. network and address are those of net.Listen,
// with a literal IP address (names would be looked up outside). The listener is never an MPTCP socket.
func (ns *NS) Listen(network, address string) (net.Listener, error) {
	lc := net.ListenConfig{Control: ns.Control}
	lc.SetMultipathTCP(false)
	return lc.Listen(context.Background(), network, address)
}

// Dialer returns a new dialer whose sockets are inside the namespace. Its other fields may be set; a caller with a
// Control function of its own calls NS.Control first in it. Addresses must be literal.
func (ns *NS) Dialer() *net.Dialer {
	return &net.Dialer{Control: ns.Control}
}

// Dial connects from inside the namespace to a literal address; laddr may be nil.
func (ns *NS) Dial(ctx context.Context, network string, laddr net.Addr, raddr string) (net.Conn, error) {
	d := ns.Dialer()
	d.LocalAddr = laddr
	return d.DialContext(ctx, network, raddr)
}

// Control is the Control function for a net.Dialer or net.ListenConfig: it puts a socket of the
// namespace under the file descriptor that package net has just made.
//
// At that moment the descriptor is not yet bound, connected or known to the poller, so the exchange is
// invisible to package net, and nothing of a connection (timeouts, cancelling, keepalive) has to be written again.
func (ns *NS) Control(_, _ string, c syscall.RawConn) error {
	if ns == nil {
		return nil
	}
	var err error
	cerr := c.Control(func(fd uintptr) { err = ns.exchange(int(fd)) })
	return errors.Join(cerr, err)
}

// inherited are the options that package net sets before it calls Control.
var inherited = [...]struct{ level, name int }{
	{unix.SOL_SOCKET, unix.SO_REUSEADDR},
	{unix.SOL_SOCKET, unix.SO_BROADCAST},
	{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY},
}

func (ns *NS) exchange(fd int) error {
	var domain, kind, proto int
	for _, o := range []struct {
		value *int
		name  int
	}{{&domain, unix.SO_DOMAIN}, {&kind, unix.SO_TYPE}, {&proto, unix.SO_PROTOCOL}} {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.name)
		if err != nil {
			return fmt.Errorf("read socket option %d: %w", o.name, err)
		}
		*o.value = v
	}
	var inside int
	err := ns.Do(func() (err error) {
		inside, err = unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		return err
	})
	if err != nil {
		return fmt.Errorf("create socket in network namespace: %w", err)
	}
	defer unix.Close(inside)
	for _, o := range inherited {
		if o.level == unix.IPPROTO_IPV6 && domain != unix.AF_INET6 {
			continue
		}
		v, err := unix.GetsockoptInt(fd, o.level, o.name)
		if err == nil && v != 0 {
			err = unix.SetsockoptInt(inside, o.level, o.name, v)
		}
		if err != nil {
			return fmt.Errorf("copy socket option %d/%d: %w", o.level, o.name, err)
		}
	}
	if err := unix.Dup3(inside, fd, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("exchange socket: %w", err)
	}
	return nil
}

// StartProcess starts cmd inside the namespace; the caller waits for it as usual. Unless cmd says
// otherwise the kernel kills the process when the namespace is closed or this process dies, so that nothing can
// keep the namespace alive. (In a nil NS there is no thread to tie it to: the process is simply started.)
func (ns *NS) StartProcess(cmd *exec.Cmd) error {
	if ns != nil {
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		if cmd.SysProcAttr.Pdeathsig == 0 {
			cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		}
	}
	// The child is cloned from the thread that calls, and takes its namespace.
	return ns.Do(cmd.Start)
}
