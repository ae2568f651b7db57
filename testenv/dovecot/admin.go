package dovecot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DoveadmError is a doveadm command that failed.
type DoveadmError struct {
	Command string
	Code    int    // of the exit: 68 not found, 75 temporary failure (admin.md section 3)
	Text    string // what it said
}

func (e *DoveadmError) Error() string {
	return fmt.Sprintf("doveadm director %s: exit %d: %s", e.Command, e.Code, strings.TrimSpace(e.Text))
}

// Admin drives a director by the real `doveadm director`.
type Admin struct {
	config string // of a Dovecot
	socket string // director-admin; empty: that of the configuration
}

// NewAdmin drives any director by its director-admin socket. The directory takes a configuration file for doveadm.
func NewAdmin(dir, socket string) (Admin, error) {
	a := Admin{config: filepath.Join(dir, "doveadm.conf"), socket: socket}
	return a, os.WriteFile(a.config, []byte("log_path = /dev/stderr\nssl = no\n"), 0o644)
}

// Doveadm runs `doveadm -f tab director ARGS` and returns what it printed. The error is a *DoveadmError when the
// command ran and failed.
func (a Admin) Doveadm(ctx context.Context, args ...string) (string, error) {
	all := []string{"-c", a.config, "-f", "tab", "director"}
	if a.socket != "" { // it goes behind the command, which may be two words
		words := 1
		if args[0] == "ring" {
			words = 2
		}
		args = slices.Concat(args[:words], []string{"-a", a.socket}, args[words:])
	}
	cmd := exec.CommandContext(ctx, "/usr/bin/doveadm", append(all, args...)...)
	var out, errout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errout
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.String(), &DoveadmError{strings.Join(args, " "), exit.ExitCode(), errout.String()}
	}
	return out.String(), err
}

// DirectorHost is a line of `doveadm director status`.
type DirectorHost struct {
	Addr   netip.Addr
	Tag    string
	Weight int
	Up     bool
	Users  int
}

// parseHosts takes the output of `doveadm -f tab director status` apart.
func parseHosts(out string) (hosts []DirectorHost, err error) {
	for _, f := range table(out) {
		if len(f) < 6 {
			return nil, fmt.Errorf("status line %q", f)
		}
		h := DirectorHost{Tag: f[1], Up: f[3] == "up"}
		var errs [3]error
		h.Addr, errs[0] = netip.ParseAddr(f[0])
		h.Weight, errs[1] = strconv.Atoi(f[2])
		h.Users, errs[2] = strconv.Atoi(f[5])
		if err := errors.Join(errs[:]...); err != nil {
			return nil, fmt.Errorf("status line %q: %w", f, err)
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// table returns the fields of every line but the first, which has the titles.
func table(out string) (rows [][]string) {
	for i, line := range strings.Split(strings.TrimRight(out, "\n"), "\n") {
		if i > 0 {
			rows = append(rows, strings.Split(line, "\t"))
		}
	}
	return rows
}

// Hosts returns what `doveadm director status` says.
func (a Admin) Hosts(ctx context.Context) ([]DirectorHost, error) {
	out, err := a.Doveadm(ctx, "status")
	if err != nil {
		return nil, err
	}
	return parseHosts(out)
}

// parseLookup takes the output of `doveadm -f tab director status USER` apart; an invalid address means that
// there is no entry.
func parseLookup(out string) (current, hashed netip.Addr, err error) {
	rows := table(out)
	if len(rows) != 1 || len(rows[0]) < 3 {
		return current, hashed, fmt.Errorf("status of a user: %q", out)
	}
	if s := rows[0][0]; s != "" && s != "n/a" {
		if current, err = netip.ParseAddr(s); err != nil {
			return current, hashed, err
		}
	}
	if s := rows[0][2]; s != "" && s != "n/a" {
		hashed, err = netip.ParseAddr(s)
	}
	return current, hashed, err
}

// Lookup returns the host of a user, invalid if there is no entry, and that of its hash.
func (a Admin) Lookup(ctx context.Context, user string) (current, hashed netip.Addr, err error) {
	out, err := a.Doveadm(ctx, "status", user)
	if err != nil {
		return current, hashed, err
	}
	return parseLookup(out)
}

// parseMap takes the output of `doveadm -f tab director map` apart: host by user hash.
func parseMap(out string) (map[uint32]netip.Addr, error) {
	m := map[uint32]netip.Addr{}
	for _, f := range table(out) {
		if len(f) < 3 {
			return nil, fmt.Errorf("map line %q", f)
		}
		hash, err := strconv.ParseUint(f[1], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("map line %q: %w", f, err)
		}
		if m[uint32(hash)], err = netip.ParseAddr(f[2]); err != nil {
			return nil, fmt.Errorf("map line %q: %w", f, err)
		}
	}
	return m, nil
}

// Map returns the entries: host by user hash.
func (a Admin) Map(ctx context.Context) (map[uint32]netip.Addr, error) {
	// The empty list of names: there is no userdb to ask.
	out, err := a.Doveadm(ctx, "map", "-f", "/dev/null")
	if err != nil {
		return nil, err
	}
	return parseMap(out)
}

// Synced reports whether the ring is synced as this director sees it, and how many directors it is connected to.
func (a Admin) Synced(ctx context.Context) (synced bool, neighbours int, err error) {
	out, err := a.Doveadm(ctx, "ring", "status")
	if err != nil {
		return false, 0, err
	}
	known := map[string]bool{}
	for _, f := range table(out) {
		switch {
		case len(f) < 5:
			return false, 0, fmt.Errorf("ring status line %q", f)
		case f[2] == "self":
			synced = f[4] == "ring synced"
		case (f[2] == "left" || f[2] == "right") && f[4] == "synced":
			known[f[0]] = true
		}
	}
	return synced, len(known), nil
}

// AwaitSync waits until the director is in a synced ring with at least so many other neighbours: 1 in a ring of two, 2 in
// a bigger one, 0 for one that is alone.
func (a Admin) AwaitSync(ctx context.Context, neighbours int) error {
	for {
		synced, n, err := a.Synced(ctx)
		if err == nil && synced && n >= neighbours {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("synced %v with %d neighbours, want %d: %w", synced, n, neighbours, errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
