package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"usher/cmd/internal/admin"
)

// endless is a drain that never ends.
func endless(t *testing.T) (*site, string) {
	s := newSite()
	s.ring.Directors = nil
	return s, daemon(t, s)
}

// Who interrupts the command ends the looking, and is told that the drain goes on.
func TestInterruptedDrainGoesOn(t *testing.T) {
	s, socket := endless(t)
	stop := time.AfterFunc(200*time.Millisecond, func() { syscall.Kill(os.Getpid(), syscall.SIGINT) })
	defer stop.Stop()
	code, stdout, stderr := run(socket, nil, "host", "drain", "10.2.0.11", "--wait")
	if code != 1 || !strings.HasPrefix(stdout, "10.2.0.11  25 %, 300 of 1200") ||
		stderr != "usher: interrupted: the drain goes on in the daemon; the same command shows it again, --stop ends it\n" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if len(s.calls) != 1 || !strings.HasPrefix(s.calls[0], "flush {") {
		t.Errorf("the daemon got %q", s.calls)
	}
}

// On a terminal there is one line, written again and again.
func TestProgressOnATerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer master.Close()
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer tty.Close()

	s := newSite()
	s.ring.Directors = nil
	s.step = func(f *admin.Flush) {
		if f.Done += 450; f.Done >= f.Total {
			at := now.Add(90 * time.Second)
			f.Done, f.Moving, f.EndedAt = f.Total, 0, &at
		}
	}
	code, _, stderr := run(daemon(t, s), func(e *Env) { e.Stdout = tty }, "host", "drain", "10.2.0.11", "--wait")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	want := "\r\x1b[K10.2.0.11  [##################............]  62 %, 750 of 1200, 20 moving, 25.0/s, 18s left" +
		"\r\x1b[K10.2.0.11  [##############################]  100 %, 1200 of 1200\r\n" +
		"the drain of 10.2.0.11 has ended after 2m: 1200 users moved\r\n"
	shown := make(chan string, 1)
	go func() { // it comes in pieces, and blocks when it is too short
		buf := make([]byte, len(want))
		n, _ := io.ReadFull(master, buf)
		shown <- string(buf[:n])
	}()
	select {
	case got := <-shown:
		if got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	case <-time.After(5 * time.Second):
		t.Error("less than expected was shown")
	}
}

// A daemon that is restarted meanwhile resumes the drain; the one who watches need not care.
func TestDrainOverARestart(t *testing.T) {
	s := newSite()
	s.ring.Directors = nil
	socket := filepath.Join(t.TempDir(), "admin.sock")
	serve := func(ctx context.Context) {
		server, err := admin.Listen(admin.Config{Socket: socket, Source: s, Log: zerolog.Nop()})
		if err != nil {
			t.Error(err)
			return
		}
		if err := server.Run(ctx); err != nil {
			t.Error(err)
		}
	}
	first, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	second, end := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		serve(first)
		time.Sleep(700 * time.Millisecond) // at least one look finds nobody
		s.step = func(f *admin.Flush) { at := now; f.Done, f.EndedAt = f.Total, &at }
		serve(second)
	}()
	for range 100 {
		if _, err := os.Lstat(socket); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	code, stdout, stderr := run(socket, nil, "host", "drain", "10.2.0.11", "--wait")
	if code != 0 || !strings.HasSuffix(stdout, "has ended after 30s: 1200 users moved\n") || stderr != "" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	end()
	<-over
}
