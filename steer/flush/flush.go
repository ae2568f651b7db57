// Package flush runs the operator's flush program: after a moved user's sessions have ended it is asked to
// make the old host write what it still has of the user, so that the move need not wait for the kick delay
// (director_flush_socket; behaviours.md section 4).
package flush

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	connectTimeout = 10 * time.Second
	maxOutput      = 16 << 10 // bytes of output that are kept for the log
)

// ErrFailed is the program's own "no"; its output is in the error's text.
var ErrFailed = errors.New("the flush program failed")

// A User was moved.
type User struct {
	Hash      uint32
	Old, New  netip.Addr
	NewName   string // host name of New, may be empty
	OldUp     bool
	OldWeight int
}

// A Program is what director.flush_socket names. Its text may contain %i, the new host's address, %h, its
// name, and %%.
type Program struct {
	kind, target string
}

// Parse returns the program of a setting: "exec:/path arg…", "unix:/path" or "tcp:host:port". The error
// says what is wrong with it. Dovecot's director crashes when the scheme is missing.
func Parse(s string) (*Program, error) {
	kind, target, found := strings.Cut(s, ":")
	if kind == "fork" {
		kind = "exec"
	}
	p := &Program{kind: kind, target: target}
	switch {
	case !found || kind != "exec" && kind != "unix" && kind != "tcp":
		return nil, fmt.Errorf("flush program %q: want exec:PROGRAM, unix:PATH or tcp:HOST:PORT", s)
	case kind == "tcp":
		if _, port, err := net.SplitHostPort(target); err != nil || port == "" {
			return nil, fmt.Errorf("flush program %q: want tcp:HOST:PORT", s)
		}
	case !filepath.IsAbs(strings.TrimSpace(target)):
		return nil, fmt.Errorf("flush program %q: the path must be absolute", s)
	}
	return p, nil
}

// Run asks the program and returns what it printed, for the log. Errors: ErrFailed, or that it could not be
// asked, or the cause of ctx.
func (p *Program) Run(ctx context.Context, u User) (output string, err error) {
	target := p.expand(u)
	if p.kind == "exec" {
		output, err = run(ctx, strings.Fields(target), u.words())
	} else {
		output, err = ask(ctx, p.kind, target, u.words())
	}
	if err != nil {
		err = fmt.Errorf("flush program %s:%s: %w", p.kind, target, err)
	}
	return output, err
}

func (p *Program) expand(u User) string {
	return strings.NewReplacer("%%", "%", "%i", u.New.String(), "%h", u.NewName).Replace(p.target)
}

// words are the arguments of the program, and the lines of the socket's request.
func (u User) words() []string {
	state := "down"
	if u.OldUp {
		state = "up"
	}
	return []string{
		"FLUSH", strconv.FormatUint(uint64(u.Hash), 10), u.Old.String(), u.New.String(), state, strconv.Itoa(u.OldWeight),
	}
}

func run(ctx context.Context, command, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, command[0], append(command[1:], args...)...)
	var out limited
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // a child that keeps the pipe open
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.As(err, &exit):
		err = fmt.Errorf("%w: %v", ErrFailed, exit.ProcessState)
	}
	return out.String(), err
}

// ask speaks the protocol of Dovecot's script service, version 4.0.
func ask(ctx context.Context, network, address string, words []string) (string, error) {
	dialer := net.Dialer{Timeout: connectTimeout}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	// "-" stands for "no timeout of yours"; the empty line ends the arguments.
	request := "VERSION\tscript\t4\t0\n-\n" + strings.Join(words, "\n") + "\n\n"
	if _, err := io.WriteString(conn, request); err != nil {
		return "", cause(ctx, err)
	}
	// The verdict is the last line, which can only be told when the connection ends.
	var out limited
	if _, err := io.Copy(&out, conn); err != nil {
		return out.String(), cause(ctx, err)
	}
	return out.verdict()
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

// limited keeps the beginning of what is written, and its end.
type limited struct {
	head bytes.Buffer
	tail string
}

func (l *limited) Write(p []byte) (int, error) {
	l.head.Write(p[:min(len(p), maxOutput-l.head.Len())])
	l.tail += string(p[max(0, len(p)-4):])
	l.tail = l.tail[max(0, len(l.tail)-4):]
	return len(p), nil
}

func (l *limited) String() string { return strings.TrimSpace(l.head.String()) }

// verdict takes the last line off the output.
func (l *limited) verdict() (output string, err error) {
	end := "\n" + strings.TrimSuffix(l.tail, "\n")
	switch {
	case strings.HasSuffix(end, "\n+"):
	case strings.HasSuffix(end, "\n-"):
		err = ErrFailed
	default:
		return l.String(), fmt.Errorf("%w: the connection ended without + or -", ErrFailed)
	}
	if l.head.Len() < maxOutput { // otherwise the verdict is not in it
		l.head.Truncate(len(strings.TrimRight(strings.TrimSuffix(l.head.String(), "\n"), "+-")))
	}
	return l.String(), err
}
