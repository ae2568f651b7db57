package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The acts in which the daemon dies, comes back and leaves.

// killKernel kills the daemon and lets the site go on without it until the time is over, at least until every guest
// has had an answer to a command that it sent after the daemon's death.
func (d *demo) killKernel(ctx context.Context, until time.Time) (string, error) {
	var err error
	if d.known, err = d.memory(ctx); err != nil {
		return "", err
	}
	st, err := d.site.Admin.Status(ctx)
	if err != nil {
		return "", err
	}
	d.packets = st.Kernel.Packets
	pid, guests, failed := d.site.Pid(), d.fleet.present(), d.fleet.failures()
	if err := d.kill(); err != nil {
		return "", err
	}
	begin, commands := time.Now(), d.fleet.commands.Load()
	if err := d.everyAnswer(ctx, guests, failed); err != nil {
		return "", err
	}
	sleep(ctx, time.Until(until))
	if n := count(guests, inside); n != len(guests) {
		return "", fmt.Errorf("%d of %d sessions are left", n, len(guests))
	}
	return fmt.Sprintf("%s without process %d: %s, %s commands, no error",
		brief(time.Since(begin)), pid, some(len(guests), "session"), thousands(d.fleet.commands.Load()-commands)), ctx.Err()
}

func (d *demo) kill() error {
	pid := d.site.Pid()
	if err := d.site.Kill(); err != nil {
		return err
	}
	d.watch.is(0, fmt.Sprintf("killed (it was pid %d)", pid))
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("process %d is still there", pid)
	}
	return nil
}

// everyAnswer waits until every guest has sent a command from now on, and got the answer.
// It gives up when there are more failures than before.
func (d *demo) everyAnswer(ctx context.Context, guests []*guest, failed int) error {
	now := time.Now().UnixNano()
	answered := func(g *guest) bool { return g.answered.Load() > now }
	err := await(ctx, "every client has got an answer", func() bool {
		return count(guests, answered) == len(guests) || d.fleet.failures() > failed
	})
	if n := count(guests, answered); err == nil && n < len(guests) {
		err = fmt.Errorf("%d of %d clients got answers", n, len(guests))
	}
	return err
}

// restartKernel starts the daemon again. It must know everything that the killed one knew, and no session may notice.
func (d *demo) restartKernel(ctx context.Context, _ time.Time) (string, error) {
	guests, failed, begin := d.fleet.present(), d.fleet.failures(), time.Now()
	if err := d.startDaemon(ctx); err != nil {
		return "", errors.Join(errAbort, err)
	}
	took := time.Since(begin)
	m, err := d.memory(ctx)
	if err != nil {
		return "", err
	}
	if !maps.Equal(m.hosts, d.known.hosts) {
		return "", fmt.Errorf("users changed their hosts: %s", difference(d.known.hosts, m.hosts))
	}
	if !maps.Equal(m.sessions, d.known.sessions) {
		return "", fmt.Errorf("other sessions than before: %s", difference(d.known.sessions, m.sessions))
	}
	if n := d.forwarded(ctx); n != len(guests) {
		return "", fmt.Errorf("%d sessions in the kernel, there were %d", n, len(guests))
	}
	st, err := d.site.Admin.Status(ctx)
	if err == nil && st.Kernel.Packets <= d.packets {
		err = fmt.Errorf("the kernel forwarded nothing in the meantime: %d packets, %d before", st.Kernel.Packets, d.packets)
	}
	if err == nil {
		err = d.everyAnswer(ctx, guests, failed)
	}
	return fmt.Sprintf("all %d sessions adopted (%s); it knows all %d users as before", len(guests), brief(took), len(m.hosts)), err
}

// difference tells the first of the differences.
func difference[K, V comparable](before, after map[K]V) string {
	n, first := 0, ""
	note := func(k K, old, now any) {
		if n++; n == 1 {
			first = fmt.Sprintf("%v: %v before, %v now", k, old, now)
		}
	}
	for k, v := range before {
		if now, ok := after[k]; !ok {
			note(k, v, "gone")
		} else if now != v {
			note(k, v, now)
		}
	}
	for k, v := range after {
		if _, ok := before[k]; !ok {
			note(k, "unknown", v)
		}
	}
	return fmt.Sprintf("%d differences, one is %s", n, first)
}

// killUserSpace kills the daemon; nobody else has its sockets, so every session must end.
func (d *demo) killUserSpace(ctx context.Context, until time.Time) (string, error) {
	var err error
	if d.known, err = d.memory(ctx); err != nil {
		return "", err
	}
	guests := d.fleet.present()
	d.fleet.hold()
	d.over = expectEnd(guests, true)
	if err := d.kill(); err != nil {
		return "", err
	}
	if err := allEnd(ctx, guests); err != nil {
		return "", err
	}
	sleep(ctx, time.Until(until))
	return fmt.Sprintf("all %d sessions ended with it", len(guests)), ctx.Err()
}

func allEnd(ctx context.Context, guests []*guest) error {
	return await(ctx, "all sessions have ended", func() bool {
		return count(guests, func(g *guest) bool { return g.ended.Load() > 0 && !g.inside.Load() }) == len(guests)
	})
}

// restartUserSpace starts the daemon, which has lost all entries: users come back to where their hash says. That is
// the host they had; and the one who had been moved is in the state file.
func (d *demo) restartUserSpace(ctx context.Context, _ time.Time) (string, error) {
	if err := d.startDaemon(ctx); err != nil {
		return "", errors.Join(errAbort, err)
	}
	guests := d.fleet.all()
	d.fleet.admit()
	failed := d.fleet.failures()
	err := await(ctx, "all clients are back", func() bool {
		return count(guests, inside) == len(guests) || d.fleet.failures() > failed
	})
	if err != nil {
		return "", err
	}
	d.over()
	m, err := d.memory(ctx)
	if err != nil {
		return "", err
	}
	if !maps.Equal(m.hosts, d.known.hosts) {
		return "", fmt.Errorf("users are on another host than before: %s", difference(d.known.hosts, m.hosts))
	}
	return fmt.Sprintf("same hosts as before, also %s, who was moved", d.moved()), nil
}

// stopKernel ends the daemon in good order; its sessions do not notice.
func (d *demo) stopKernel(ctx context.Context, _ time.Time) (string, error) {
	guests, failed := d.fleet.present(), d.fleet.failures()
	took, err := d.stop()
	if err != nil {
		return "", err
	}
	err = d.everyAnswer(ctx, guests, failed)
	return fmt.Sprintf("in good order (%s); the kernel goes on with %d sessions", brief(took), len(guests)), err
}

func (d *demo) stopUserSpace(ctx context.Context, _ time.Time) (string, error) {
	guests := d.fleet.present()
	expectEnd(guests, false)
	took, err := d.stop()
	if err != nil {
		return "", err
	}
	err = allEnd(ctx, guests)
	return fmt.Sprintf("in good order (%s); its %d sessions ended with it", brief(took), len(guests)), err
}

// stop sends SIGTERM, and reads what the daemon logged in its lives.
func (d *demo) stop() (time.Duration, error) {
	begin := time.Now()
	d.watch.is(0, "stopped")
	if err := d.site.Stop(); err != nil {
		return 0, fmt.Errorf("the daemon ended with: %w", err)
	}
	took := time.Since(begin)
	log, err := os.ReadFile(d.site.LogFile())
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(log) {
		for _, bad := range []string{`"level":"error"`, `"level":"fatal"`, `"level":"panic"`, "panic:", "fatal error:", "DATA RACE"} {
			if bytes.Contains(line, []byte(bad)) {
				return 0, fmt.Errorf("the daemon logged: %s", bytes.TrimSpace(line))
			}
		}
	}
	return took, nil
}

// unpin removes the programs and maps; nobody translates the packets of the sessions any more, and the
// director's host answers them with resets.
//
// That is the answer to a packet: a client that is waiting for an answer would wait in vain. So they fall silent before.
func (d *demo) unpin(ctx context.Context, _ time.Time) (string, error) {
	speak, err := d.fleet.silence(ctx)
	if err != nil {
		return "", err
	}
	guests := d.fleet.present()
	expectEnd(guests, false)
	err = d.site.Unpin()
	speak()
	if err != nil {
		return "", err
	}
	left, err := os.ReadDir(filepath.Dir(d.site.PinPath))
	if err != nil {
		return "", err
	}
	for _, f := range left {
		if !strings.HasSuffix(f.Name(), ".debug") { // the kernel's own, in every bpffs
			return "", fmt.Errorf("%s is still in %s", f.Name(), filepath.Dir(d.site.PinPath))
		}
	}
	err = allEnd(ctx, guests)
	return fmt.Sprintf("nothing of usher is left in the kernel; %d sessions were reset", len(guests)), err
}
