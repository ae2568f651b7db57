package dovecot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrKick is a kick that Dovecot refused.
var ErrKick = errors.New("kick was refused")

// openLever opens what this Dovecot has: 2.3 has a service ipc, 2.4 has none and kicks by anvil.
func (d *DropIn) openLever(ctx context.Context) (lever, error) {
	if d.cfg.IPC != "" {
		return openIPC(ctx, d.cfg.IPC)
	}
	lv, err := openIPC(ctx, filepath.Join(d.cfg.BaseDir, "ipc"))
	if err == nil {
		return lv, nil
	}
	lv, other := openAnvil(ctx, filepath.Join(d.cfg.BaseDir, "anvil"))
	if other != nil {
		return nil, errors.Join(err, other)
	}
	return lv, nil
}

// wire is a connection on which one line is asked after the other.
type wire struct {
	conn net.Conn
	in   *bufio.Reader
}

func openWire(ctx context.Context, path string) (*wire, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return &wire{conn: conn, in: bufio.NewReaderSize(conn, maxRelayLine)}, nil
}

func (w *wire) close() { w.conn.Close() }

// say sends a line, and lets what follows take as long as ctx does.
func (w *wire) say(ctx context.Context, fields ...string) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(kickTimeout)
	}
	w.conn.SetDeadline(deadline)
	var b strings.Builder
	for i, f := range fields {
		if i > 0 {
			b.WriteByte('\t')
		}
		b.WriteString(escape(f))
	}
	b.WriteByte('\n')
	_, err := w.conn.Write([]byte(b.String()))
	return err
}

// hear returns a line without its LF.
func (w *wire) hear() (string, error) {
	b, err := line(w.in)
	if err != nil {
		return "", err
	}
	return string(b[:len(b)-1]), nil
}

// ipc is the service of Dovecot 2.3 that reaches all login processes (proxy-notify-ipc.md section 2).
type ipc struct{ *wire }

func openIPC(ctx context.Context, path string) (lever, error) {
	w, err := openWire(ctx, path)
	if err != nil {
		return nil, err
	}
	return ipc{w}, nil
}

// command asks all login processes. There may be none: that is success, too. data gets the lines before the last.
func (i ipc) command(ctx context.Context, data func(line string), fields ...string) error {
	if err := i.say(ctx, append([]string{"proxy", "*"}, fields...)...); err != nil {
		return err
	}
	for {
		reply, err := i.hear()
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(reply, ":"):
			data(reply[1:])
		case strings.HasPrefix(reply, "+"):
			return nil
		case strings.HasPrefix(reply, "-"):
			return fmt.Errorf("%w: %s: %q", ErrKick, fields[0], reply[1:])
		default:
			return fmt.Errorf("%w: ipc answers %q", ErrKick, reply)
		}
	}
}

func (i ipc) kickUser(ctx context.Context, login string) error {
	return i.command(ctx, ignore, "KICK", login)
}

func (i ipc) kickHash(ctx context.Context, hash uint32, except netip.Addr) error {
	fields := []string{"KICK-DIRECTOR-HASH", strconv.FormatUint(uint64(hash), 10)}
	if except.IsValid() {
		fields = append(fields, except.String())
	}
	return i.command(ctx, ignore, fields...)
}

func (i ipc) kickField(ctx context.Context, field, value string) error {
	return i.command(ctx, ignore, "KICK-ALT", field, value)
}

func ignore(string) {}

// list: each process begins with the titles "username <fields> service src-ip dest-ip dest-port".
func (i ipc) list(ctx context.Context, yield func(login string, host netip.Addr)) error {
	return i.command(ctx, func(line string) {
		f := strings.Split(line, "\t")
		if len(f) < 5 || f[len(f)-1] == "dest-port" {
			return
		}
		if host, err := netip.ParseAddr(f[len(f)-2]); err == nil {
			yield(unescape(f[0]), host.Unmap())
		}
	}, "LIST-FULL")
}
