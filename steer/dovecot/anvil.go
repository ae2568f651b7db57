package dovecot

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// anvil is how Dovecot 2.4 is asked to kick (proxy-notify-ipc.md section 3). It counts sessions that it did not end: those of
// login processes with one client each, the default there. Whether it does what it says is looked at once.
type anvil struct {
	*wire
	honest bool // a session that was kicked was seen to be gone
}

func openAnvil(ctx context.Context, path string) (lever, error) {
	w, err := openWire(ctx, path)
	if err != nil {
		return nil, err
	}
	a := &anvil{wire: w}
	if err := a.handshake(ctx); err != nil {
		w.close()
		return nil, fmt.Errorf("anvil: %w", err)
	}
	return a, nil
}

func (a *anvil) handshake(ctx context.Context) error {
	if err := a.say(ctx, "VERSION", "anvil-client", "2", "0"); err != nil {
		return err
	}
	// An empty line says that we are not a service that can be asked in return.
	if err := a.say(ctx, ""); err != nil {
		return err
	}
	hello, err := a.hear()
	if err != nil {
		return err
	}
	if f := strings.Split(hello, "\t"); len(f) < 3 || f[0] != "VERSION" || f[1] != "anvil-server" || f[2] != "2" {
		return fmt.Errorf("want VERSION of anvil-server 2, got %q", hello)
	}
	return nil
}

// ask gives an order and returns how many sessions were kicked, or at least told.
func (a *anvil) ask(ctx context.Context, fields ...string) (int, error) {
	if err := a.say(ctx, fields...); err != nil {
		return 0, err
	}
	reply, err := a.hear()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(reply, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%w: anvil answers %q", ErrKick, reply)
	}
	return int(n), nil
}

func (a *anvil) kickUser(ctx context.Context, login string) error {
	n, err := a.ask(ctx, "KICK-USER", login)
	if err != nil || n == 0 {
		return err
	}
	return a.check(ctx, func(s anvilSession) bool { return s.user == login })
}

// kickHash knows no exception: the one that anvil has is compared with the client's address.
func (a *anvil) kickHash(ctx context.Context, hash uint32, _ netip.Addr) error {
	return a.kickField(ctx, hashField, strconv.FormatUint(uint64(hash), 10))
}

func (a *anvil) kickField(ctx context.Context, field, value string) error {
	n, err := a.ask(ctx, "KICK-ALT-USER", field, value)
	if err != nil || n == 0 {
		return err
	}
	return a.check(ctx, func(s anvilSession) bool { return s.fields[field] == value })
}

// How long a kicked session may be listed still.
const (
	anvilLooks = 10
	anvilPause = 50 * time.Millisecond
)

// check looks whether the sessions that were kicked are gone, unless that was seen before: the list has all
// sessions, and is long. A process that has such a session and no other one is killed.
func (a *anvil) check(ctx context.Context, kicked func(anvilSession) bool) error {
	if a.honest {
		return nil
	}
	var all []anvilSession
	for range anvilLooks {
		var err error
		if all, err = a.sessions(ctx); err != nil {
			return err
		}
		if !slices.ContainsFunc(all, kicked) {
			a.honest = true
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(anvilPause):
		}
	}
	each := map[int]int{}
	for _, s := range all {
		each[s.pid]++
	}
	left := 0
	for _, s := range all {
		if kicked(s) && (each[s.pid] > 1 || !killLogin(s.pid)) {
			left++
		}
	}
	if left > 0 {
		return fmt.Errorf("%w: anvil has counted %d sessions that it did not end", ErrKick, left)
	}
	return nil
}

// killLogin kills a login process, if it is one: we may be in another pid namespace than Dovecot, where the number means
// somebody else.
func killLogin(pid int) bool {
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && strings.HasSuffix(program, "-login") && syscall.Kill(pid, syscall.SIGKILL) == nil
}

// anvilSession is a session of a login process.
type anvilSession struct {
	pid    int // of the login process
	user   string
	host   netip.Addr        // of the backend; not valid if it has none
	fields map[string]string // user_*
}

func (a *anvil) list(ctx context.Context, yield func(login string, host netip.Addr)) error {
	all, err := a.sessions(ctx)
	for _, s := range all {
		if s.host.IsValid() {
			yield(s.user, s.host)
		}
	}
	return err
}

// sessions lists all sessions that Dovecot knows of.
func (a *anvil) sessions(ctx context.Context) (all []anvilSession, err error) {
	if err := a.say(ctx, "CONNECT-DUMP"); err != nil {
		return nil, err
	}
	names, err := a.hear()
	if err != nil {
		return nil, err
	}
	titles := strings.Split(names, "\t")
	for {
		line, err := a.hear()
		if err != nil || line == "" {
			return all, err
		}
		// pid, user, service, address of the client, guid, address of the backend, and the values of the fields
		f := strings.Split(line, "\t")
		if len(f) < 6 {
			return nil, fmt.Errorf("%w: anvil lists %q", ErrKick, line)
		}
		s := anvilSession{user: unescape(f[1]), fields: map[string]string{}}
		if s.pid, err = strconv.Atoi(f[0]); err != nil || s.pid <= 1 {
			return nil, fmt.Errorf("%w: anvil lists %q", ErrKick, line)
		}
		if host, err := netip.ParseAddr(f[5]); err == nil {
			s.host = host.Unmap()
		}
		for i, value := range f[6:] {
			if i < len(titles) {
				s.fields[unescape(titles[i])] = unescape(value)
			}
		}
		all = append(all, s)
	}
}
