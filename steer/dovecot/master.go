package dovecot

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	sys "golang.org/x/sys/unix" // the package has a function of that name
)

// masterPoll is how often we look whether Dovecot has started. That it ended is known at once.
const masterPoll = 100 * time.Millisecond

// master is Dovecot's first process.
type master struct {
	pid int
	fd  int // pidfd
}

// awaitMaster returns Dovecot's master as soon as it runs, nil when ctx is done. Its pid file is written after it has
// taken its own sockets, and thus has looked who else listens. waiting is called if there is none now.
func awaitMaster(ctx context.Context, base string, waiting func()) *master {
	for {
		if m := findMaster(base); m != nil {
			if ctx.Err() == nil {
				return m
			}
			m.close()
		}
		waiting()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(masterPoll):
		}
	}
}

func findMaster(base string) *master {
	path := filepath.Join(base, "master.pid")
	pid, ok := readPid(path)
	if !ok {
		return nil
	}
	fd, err := sys.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	m := &master{pid: pid, fd: fd}
	// A file that a crash has left names a process that is gone, or by now another one: then nobody listens for auth.
	again, ok := readPid(path)
	if !ok || again != pid || !answers(filepath.Join(base, authLogin)) || m.ended(0) {
		m.close()
		return nil
	}
	return m
}

func answers(path string) bool {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func readPid(path string) (pid int, ok bool) {
	b, err := os.ReadFile(path)
	if err != nil || !bytes.HasSuffix(b, []byte("\n")) {
		return 0, false
	}
	pid, err = strconv.Atoi(string(bytes.TrimSpace(b)))
	return pid, err == nil && pid > 0
}

// gone waits for a moment and reports whether the process has ended.
func (m *master) gone() bool { return m.ended(2 * masterPoll) }

func (m *master) ended(wait time.Duration) bool {
	fds := []sys.PollFd{{Fd: int32(m.fd), Events: sys.POLLIN}}
	n, err := sys.Poll(fds, int(wait/time.Millisecond))
	return err == nil && n > 0 // a signal: not yet
}

func (m *master) close() { sys.Close(m.fd) }
