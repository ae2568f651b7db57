package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrClosed is returned by the methods of a namespace that has been closed.
var ErrClosed = errors.New("network namespace is closed")

// errLeft is what Do returns when its function ended the worker (runtime.Goexit, as in t.FailNow).
var errLeft = errors.New("function left the namespace's thread")

// NS is a network namespace. It is safe for use by several goroutines.
type NS struct {
	file   *os.File // keeps the namespace alive, and is what other tools and links refer to
	inode  uint64
	handle *netlink.Handle // its socket was created inside
	jobs   chan job
	closed chan struct{}
	once   sync.Once
}

type job struct {
	f    func() error
	done chan error // buffered: the worker never waits for the one who asked
}

// New makes an empty namespace; its loopback interface is up. It needs CAP_SYS_ADMIN (for the
// namespace) and CAP_NET_ADMIN (for the loopback interface).
func New() (*NS, error) {
	ns := &NS{jobs: make(chan job), closed: make(chan struct{})}
	ready := make(chan error)
	go ns.work(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	if err := ns.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("make network namespace: %w", err), ns.Close())
	}
	return ns, nil
}

// Available says why New does not work here, or nil when it does. Tests skip with its text.
func Available() error {
	ns, err := New()
	if err != nil {
		return fmt.Errorf("needs root and network namespaces: %w", err)
	}
	return ns.Close()
}

// work is the worker: it enters a new namespace and runs jobs in it.
func (ns *NS) work(ready chan error) {
	// Never unlocked, so that the runtime ends the thread together with this goroutine.
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The runtime cannot end the process's first thread, it would park it inside the namespace and
		// keep that alive for ever. As long as we hold this thread, the next try is on another.
		moved := make(chan error)
		go ns.work(moved)
		err := <-moved
		runtime.UnlockOSThread()
		ready <- err
		return
	}
	err := unix.Unshare(unix.CLONE_NEWNET)
	ready <- err
	if err != nil {
		return
	}
	for {
		select {
		case j := <-ns.jobs:
			ns.run(j)
		case <-ns.closed:
			return
		}
	}
}

func (ns *NS) run(j job) {
	finished := false
	defer func() {
		if !finished {
			ns.once.Do(func() { close(ns.closed) }) // the thread is going: later callers must not wait for it
			j.done <- errLeft
		}
	}()
	err := j.f()
	finished = true
	j.done <- err
}

// open collects what is needed of the inside, and brings the loopback interface up.
func (ns *NS) open() error {
	return ns.Do(func() error {
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		ns.file = f
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return fmt.Errorf("stat %s: %w", f.Name(), err)
		}
		ns.inode = st.Ino
		if ns.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		return ns.SetUp("lo")
	})
}

// Do runs f on the thread inside the namespace and returns its error. One function runs at a time and
// all others wait: f should create what belongs inside, and not wait for a peer. f must not call Do of
// the same namespace, must not end its goroutine (t.FailNow), and goroutines it starts are outside again.
func (ns *NS) Do(f func() error) error {
	if ns == nil {
		return f()
	}
	j := job{f: f, done: make(chan error, 1)}
	select {
	case ns.jobs <- j:
		return <-j.done
	case <-ns.closed:
		return ErrClosed
	}
}

// Inode is the number of the namespace, as /proc/PID/ns/net shows it; 0 for a nil NS.
func (ns *NS) Inode() uint64 {
	if ns == nil {
		return 0
	}
	return ns.inode
}

// Fd is a file descriptor of the namespace, valid until Close. Not for a nil NS.
func (ns *NS) Fd() int { return int(ns.file.Fd()) }

// Netlink is a route socket inside the namespace, valid until Close, for what has no method here.
func (ns *NS) Netlink() *netlink.Handle {
	if ns == nil {
		return &netlink.Handle{} // opens a socket of the process's own namespace for every request
	}
	return ns.handle
}

// Close lets go of the namespace. The kernel destroys it, with its links, when nothing else is inside: sockets that
// are still open keep it alive until they are closed. Closing twice is harmless.
func (ns *NS) Close() error {
	if ns == nil {
		return nil
	}
	ns.once.Do(func() { close(ns.closed) })
	if ns.handle != nil {
		ns.handle.Close()
	}
	if ns.file == nil {
		return nil
	}
	if err := ns.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close network namespace: %w", err)
	}
	return nil
}
