package dovecot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"usher/director"
)

// Limits of the connections between Dovecot's processes and auth.
const (
	maxRelayLine  = 16 << 10         // with its LF, in both directions
	maxRelays     = 16 << 10         // connections; more are closed at once
	maxWaiting    = 20_000           // answers that wait for the director, of all connections together; more fail at once
	dialPatience  = time.Second      // for auth, which may just be starting
	routePatience = 60 * time.Second // for the end of a move; the director gives up after 30 s by itself
)

// errCanceled is why nobody waits for the host of a user any more.
var errCanceled = errors.New("the request was canceled")

// desk is one of the two sockets that stand before auth's: what comes from there is passed on, but answers about
// users who go to a backend are completed with it.
type desk struct {
	*DropIn
	name  string // for the log
	auth  string // the socket behind it
	kind  string // the answers that are looked at: OK or PASS
	login bool   // a login process carries the session and tells that it lives (proxy-notify)
}

// relay is a connection of a client to auth. Each has one of its own: the numbers in the
// protocol belong to the connection (auth-client.md section 1).
type relay struct {
	desk
	client, upstream net.Conn
	ctx              context.Context
	minor            int // of the client's protocol

	mu      sync.Mutex
	out     *bufio.Writer // to the client
	waiting map[string]*waiter
	routes  sync.WaitGroup
}

// waiter is an answer that waits for the director.
type waiter struct{ cancel context.CancelCauseFunc }

// serve carries one connection until either side closes it.
func (d desk) serve(ctx context.Context, client net.Conn) {
	defer client.Close()
	upstream, err := d.dial(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.log.Error().Err(err).Str("socket", d.name).Msg("auth does not answer: connection closed")
		}
		return
	}
	defer upstream.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	r := &relay{
		desk: d, client: client, upstream: upstream, ctx: ctx,
		out: bufio.NewWriter(patient{client}), waiting: map[string]*waiter{},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.end("client", r.fromClient())
		cancel(errCanceled)
	}()
	r.end("auth", r.fromAuth())
	cancel(errCanceled)
	<-done
	r.routes.Wait()
}

// end closes both connections: when auth goes the client's pending requests fail, and when the client
// goes nobody wants the answers.
func (r *relay) end(side string, err error) {
	r.client.Close()
	r.upstream.Close()
	if errors.Is(err, errTooLong) && r.ctx.Err() == nil {
		r.log.Warn().Str("socket", r.name).Str("side", side).Err(err).Msg("connection closed")
	}
}

// dial connects to auth, which listens a moment after Dovecot's start, and for a moment not when it restarts.
func (d desk) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", d.auth)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// line returns the next line with its LF. It is valid until the next call.
func line(in *bufio.Reader) ([]byte, error) {
	b, err := in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, fmt.Errorf("%w of %d bytes", errTooLong, maxRelayLine)
	}
	return b, err
}

// fromClient passes on what the client says: everything, as it is.
func (r *relay) fromClient() error {
	in := bufio.NewReaderSize(r.client, maxRelayLine)
	out := bufio.NewWriter(patient{r.upstream})
	for {
		b, err := line(in)
		if err != nil {
			return err
		}
		if minor, ok := minorVersion(b); ok {
			r.mu.Lock()
			r.minor = minor
			r.mu.Unlock()
		}
		if id, ok := canceled(b); ok {
			r.drop(id)
		}
		if _, err := out.Write(b); err != nil {
			return err
		}
		if in.Buffered() > 0 {
			continue
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

// fromAuth passes on what auth says, and asks the director where that is missing.
func (r *relay) fromAuth() error {
	in := bufio.NewReaderSize(r.upstream, maxRelayLine)
	for {
		b, err := line(in)
		if err != nil {
			return err
		}
		if a, ok := parseAnswer(b[:len(b)-1], r.kind); ok && a.routed() {
			r.route(a, append([]byte(nil), b...))
			continue
		}
		if err := r.answer(b, in.Buffered() == 0); err != nil {
			return err
		}
	}
}

// answer writes a line to the client.
func (r *relay) answer(b []byte, flush bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.out.Write(b); err != nil {
		return err
	}
	if !flush {
		return nil
	}
	return r.out.Flush()
}

// drop takes a request back whose answer waits for the director.
func (r *relay) drop(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q, ok := r.waiting[id]; ok {
		delete(r.waiting, id)
		q.cancel(errCanceled)
	}
}

// route completes an answer. It returns at once: that one user is being moved is nothing for
// the others to wait for, and the order of answers is free.
func (r *relay) route(a answer, b []byte) {
	if r.pending.Add(1) > maxWaiting {
		r.pending.Add(-1)
		r.log.Warn().Str("user", a.user).Msg("too many users wait for a host")
		_ = r.answer(temporary(a.id), true)
		return
	}
	ctx, cancel := context.WithCancelCause(r.ctx)
	q := &waiter{cancel}
	r.mu.Lock()
	if old, ok := r.waiting[a.id]; ok { // auth repeats itself; the later answer counts
		old.cancel(errCanceled)
	}
	r.waiting[a.id] = q
	r.mu.Unlock()
	r.routes.Go(func() {
		defer r.pending.Add(-1)
		defer cancel(nil)
		g, b := r.complete(ctx, a, b)
		r.mu.Lock()
		current := r.waiting[a.id] == q
		if current {
			delete(r.waiting, a.id)
		}
		r.mu.Unlock()
		if !current || r.ctx.Err() != nil {
			return // nobody waits for it; the guest, if there is one, ends by itself
		}
		if r.answer(b, true) == nil && g != nil && r.guests.wrote(g) {
			r.again(g)
		}
	})
}

// complete returns the answer that a client gets, and the guest that it makes.
func (r *relay) complete(ctx context.Context, a answer, b []byte) (*guest, []byte) {
	ctx, cancel := context.WithTimeout(ctx, routePatience)
	defer cancel()
	for {
		assigned, err := r.router.Route(ctx, a.user, a.tag)
		if err != nil {
			if ctx.Err() == nil || errors.Is(err, context.DeadlineExceeded) {
				r.log.Error().Err(err).Str("user", a.user).Str("tag", a.tag).Str("socket", r.name).Msg("no host for user")
			}
			return nil, temporary(a.id)
		}
		if a.local(assigned.Host.Addr) {
			return nil, b
		}
		var g *guest
		if r.login {
			var current bool
			if g, current = r.guests.welcome(a.user, a.login, assigned); !current {
				continue // moved or kicked in this moment: the guest is being seen off
			}
		}
		return g, r.write(b, assigned)
	}
}

func (r *relay) write(b []byte, assigned director.Assigned) []byte {
	b = appendHost(b, assigned.Host, r.refreshSeconds())
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.login && r.minor > 2 {
		b = appendHash(b, assigned.Key)
	}
	return b
}
