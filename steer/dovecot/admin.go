package dovecot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"usher/steer/unixsocket"
)

// Limits of the director-admin socket.
const (
	adminMode      = 0o600
	maxAdmins      = 64               // connections; more wait to be accepted
	versionTimeout = 10 * time.Second // for the client's first line; doveadm sends it at once
	writeTimeout   = 30 * time.Second // for each piece of a reply
	syncTimeout    = 30 * time.Second // for the ring, before and again after a command
)

const adminVersion = "VERSION\tdirector-doveadm\t1\t0\n"

// Admin serves the director-admin socket. It is made by ListenAdmin and lives in Run.
type Admin struct {
	listener net.Listener
	director Director
	log      zerolog.Logger

	silentPoll time.Duration // how often a command that waits looks for silent directors

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// ListenAdmin takes the socket: <base_dir>/director-admin, mode 0600. unixsocket.ErrInUse: somebody answers
// there, which may be Dovecot 2.3 itself (its director service must be off).
func ListenAdmin(path string, d Director, log zerolog.Logger) (*Admin, error) {
	l, err := unixsocket.Listen(path, adminMode)
	if err != nil {
		return nil, fmt.Errorf("listen on the director-admin socket %s: %w", path, err)
	}
	return &Admin{listener: l, director: d, log: log, silentPoll: 200 * time.Millisecond, conns: map[net.Conn]struct{}{}}, nil
}

// Close gives the socket back when Run has not been called.
func (a *Admin) Close() error { return a.listener.Close() }

// Run serves until ctx is done, then closes everything; the error is nil then. A command that is
// under way is carried out, but nobody hears of it.
func (a *Admin) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		a.listener.Close()
		a.mu.Lock()
		defer a.mu.Unlock()
		for c := range a.conns {
			c.Close()
		}
	})
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxAdmins)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := a.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("director-admin: %w", err)
		}
		wg.Go(func() {
			defer func() { <-slots }()
			a.serve(ctx, conn)
		})
	}
}

func (a *Admin) serve(ctx context.Context, conn net.Conn) {
	a.mu.Lock()
	a.conns[conn] = struct{}{}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.conns, conn)
		a.mu.Unlock()
		conn.Close()
	}()
	if ctx.Err() != nil {
		return // it came while the others were closed
	}
	if err := a.talk(ctx, conn); !errors.Is(err, io.EOF) && ctx.Err() == nil {
		a.log.Warn().Err(err).Msg("director-admin: connection closed")
	}
}

// talk reads one command after the other. What is sent ahead waits in the socket: that a command takes
// long costs none of those behind it. It ends with an error, which closes the connection without a reply, as
// in Dovecot; io.EOF: the client is done.
func (a *Admin) talk(ctx context.Context, conn net.Conn) error {
	in := bufio.NewReaderSize(conn, maxLine)
	out := bufio.NewWriter(patient{conn})
	out.WriteString(adminVersion)
	if err := out.Flush(); err != nil {
		return err
	}
	conn.SetReadDeadline(time.Now().Add(versionTimeout))
	hello, err := readLine(in)
	if err != nil {
		return err
	}
	conn.SetReadDeadline(time.Time{})
	if len(hello) < 3 || hello[0] != "VERSION" || hello[1] != "director-doveadm" || hello[2] != "1" {
		return fmt.Errorf("want VERSION of director-doveadm 1, got %q", strings.Join(hello, " "))
	}
	for {
		fields, err := readLine(in)
		if err != nil {
			return err
		}
		name, args := fields[0], fields[1:]
		c, ok := commands[name]
		if !ok {
			return fmt.Errorf("unknown command %q", name)
		}
		if c.orders {
			a.log.Info().Str("command", name).Strs("arguments", args).Msg("director-admin: command")
		}
		if err := c.do(&request{Admin: a, ctx: ctx, args: args, out: out}); err != nil {
			return fmt.Errorf("%s %q: %w", name, args, err)
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

// patient gives every write its own time, so that a long list may take long, and a reader that stopped
// reading does not.
type patient struct{ net.Conn }

func (p patient) Write(b []byte) (int, error) {
	p.SetWriteDeadline(time.Now().Add(writeTimeout))
	return p.Conn.Write(b)
}
