package steer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"usher/director"
	"usher/steer/auth"
	"usher/steer/handover"
	"usher/steer/prelogin"
	"usher/steer/prelogin/imap"
	"usher/steer/prelogin/pop3"
	"usher/steer/upstream"
	upimap "usher/steer/upstream/imap"
	uppop3 "usher/steer/upstream/pop3"
)

// protocol is what the path needs to know of a mail protocol.
type protocol struct {
	dialogue func(net.Conn, prelogin.Config) prelogin.Dialogue
	login    func(context.Context, net.Conn, upstream.Credentials, upstream.Limits) (upstream.Result, error)
	busy     string // instead of a greeting
}

var protocols = map[string]protocol{
	"imap": {imap.New, upimap.Login, "* BYE [UNAVAILABLE] Too many connections, try again later.\r\n"},
	"pop3": {pop3.New, uppop3.Login, "-ERR [SYS/TEMP] Too many connections, try again later.\r\n"},
}

// routeTimeout bounds the wait for the end of a user's move, as Dovecot's director does.
const routeTimeout = 60 * time.Second

// serve walks a connection along its path. It returns when user space has nothing
// more to do with it.
func (s *Server) serve(ctx context.Context, l *listener, c *net.TCPConn) {
	defer c.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := handover.TupleOf(c)
	observed, why := s.observe(client)
	x := s.add(l.Protocol, client, cancel)

	w := &walk{Server: s, session: x, listener: l, client: c, from: client, unseen: why}
	pair, err := w.login(ctx)
	l.waiting.Add(-1)
	if pair == nil {
		if observed {
			s.cfg.Kernel.Forget(client)
		}
		s.left(x, err)
		return
	}
	outcome := w.relay(ctx, pair)
	if outcome.Forwarded {
		s.Stats.HandOver.Add(1)
		if stop := s.forwarded(x); stop != nil {
			s.watcher.End(client, how(stop))
		}
		return
	}
	err = outcome.Err
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	s.ended(x, s.userMode, pair.Reason(), pair.ToBackend.Load(), pair.ToClient.Load(), how(err))
}

// observe begins to observe a client's connection. A flow that is there already
// belongs to a session whose client has forgotten it: it made a new connection with
// the same tuple, and the handshake is the proof.
func (s *Server) observe(client handover.Tuple) (bool, handover.Reason) {
	if s.cfg.Kernel == nil {
		return false, handover.ModeOff
	}
	err := s.cfg.Kernel.Observe(client, 0)
	if errors.Is(err, handover.ErrTaken) {
		s.watcher.Supersede(client)
		err = s.cfg.Kernel.Observe(client, 0)
	}
	switch {
	case err == nil:
		return true, handover.Spliced
	case errors.Is(err, handover.ErrFull):
		return false, handover.MapFull
	}
	s.log.Error().Err(err).Stringer("client", client.Remote).Msg("connection is not observed")
	return false, handover.KernelFailed
}

// walk is a session on its way to the login.
type walk struct {
	*Server
	session  *Session
	listener *listener
	client   *net.TCPConn
	from     handover.Tuple
	unseen   handover.Reason // why the client's connection cannot be handed over
	backend  *upstream.Conn
	bypassed bool
}

// login talks with the client until one of its attempts succeeds. Without a pair the
// connection is over; the error says why, io.EOF when the client left.
func (w *walk) login(ctx context.Context) (*handover.Pair, error) {
	dialogue := w.listener.protocol.dialogue(w.client, prelogin.Config{
		Limits:           w.cfg.Limits,
		DisablePlaintext: !w.listener.Plaintext && !w.trusted(),
	})
	for {
		w.set(w.session, Prelogin)
		attempt, err := dialogue.Next(ctx)
		if err != nil {
			return nil, err
		}
		user, result, err := w.attempt(ctx, attempt)
		if err == nil {
			return w.pair(user, dialogue, result), nil
		}
		w.unroute(w.session)
		if context.Cause(ctx) != nil {
			return nil, context.Cause(ctx)
		}
		refusal := refusalOf(err)
		w.Stats.refuse(refusal.Kind)
		w.log.Info().Uint64("session", w.session.id).Str("user", attempt.User).Stringer("client", w.from.Remote).
			Stringer("kind", refusal.Kind).Err(err).Msg("login refused")
		if err := dialogue.Refuse(refusal); err != nil {
			return nil, err
		}
	}
}

func (w *walk) trusted() bool {
	from := w.from.Remote.Addr()
	if from.IsLoopback() {
		return true
	}
	for _, p := range w.cfg.Trusted {
		if p.Contains(from) {
			return true
		}
	}
	return false
}

// attempt verifies one attempt: auth, route, upstream.
func (w *walk) attempt(ctx context.Context, attempt prelogin.Login) (user string, _ upstream.Result, err error) {
	w.set(w.session, Auth)
	answer, err := w.cfg.Auth.Authenticate(ctx, auth.Request{
		Protocol: w.listener.Protocol, Login: attempt,
		Client: w.from.Remote, Local: w.from.Local,
	})
	if err != nil {
		return "", upstream.Result{}, err
	}

	w.set(w.session, Route)
	host := answer.Host
	w.bypassed = host.IsValid()
	if !w.bypassed {
		rctx, cancel := context.WithTimeout(ctx, routeTimeout)
		assigned, err := w.Router.Route(rctx, answer.User, answer.Tag)
		cancel()
		if err != nil {
			return "", upstream.Result{}, fmt.Errorf("route user: %w", err)
		}
		host = assigned.Host.Addr
		w.route(w.session, answer.User, assigned.Key, assigned.Epoch)
	}

	w.set(w.session, Upstream)
	port := answer.Port
	if port == 0 {
		port = w.listener.BackendPort
	}
	strip, mss, err := handover.Options(w.client)
	if err != nil {
		return "", upstream.Result{}, err
	}
	backend, err := w.dialer.Dial(ctx, netip.AddrPortFrom(host, port), strip, mss)
	if err != nil {
		return "", upstream.Result{}, &unreachable{err}
	}
	result, err := w.listener.protocol.login(ctx, backend, answer.Upstream, upstream.Limits{})
	if err != nil {
		backend.Close()
		if backend.NotObserved == handover.Spliced {
			w.cfg.Kernel.Forget(backend.Tuple)
		}
		var rejected *upstream.Rejected
		if answer.Upstream.MasterUser != "" && errors.As(err, &rejected) && rejected.Kind == prelogin.AuthFailed {
			// The user's password was right: it is ours that the backend does not take.
			err = fmt.Errorf("master user at backend %v: %s: %w", host, rejected, auth.ErrTemporary)
		}
		return "", upstream.Result{}, err
	}
	w.backend = backend
	return answer.User, result, nil
}

// unreachable is a backend that did not accept the connection.
type unreachable struct{ error }

func (e *unreachable) Unwrap() error { return e.error }

// refusalOf finds the words for an attempt that failed.
func refusalOf(err error) prelogin.Refusal {
	var rejected *upstream.Rejected
	var down *unreachable
	switch {
	case errors.As(err, &rejected):
		return prelogin.Refusal{Kind: rejected.Kind, Raw: rejected.Raw}
	case errors.As(err, &down), errors.Is(err, director.ErrNoHosts), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, upstream.ErrBye), errors.Is(err, upstream.ErrGreeting):
		return prelogin.Refusal{Kind: prelogin.Unavailable}
	}
	return prelogin.Refusal{Kind: auth.Kind(err)}
}

// pair tells the director of the session, and makes what the handover package runs.
func (w *walk) pair(user string, dialogue prelogin.Dialogue, result upstream.Result) *handover.Pair {
	x := w.session
	p := &handover.Pair{
		Client: w.client, Backend: w.backend.TCPConn, ClientTuple: w.from, BackendTuple: w.backend.Tuple,
		ClientReadAhead: dialogue.Residual(), BackendReadAhead: append(result.Reply, result.Residual...),
		Owner: handover.Owner{
			Hash: x.key.Hash, Tag: x.key.Tag, Epoch: x.epoch, User: user, Protocol: x.protocol, Since: time.Unix(0, x.since),
		},
	}
	switch {
	case w.unseen != handover.Spliced:
		p.Stays = w.unseen
	case w.bypassed:
		p.Stays = handover.Bypassed
	default:
		p.Stays = w.backend.NotObserved
	}
	w.relayed(x, user, p)
	w.Stats.Logins.Add(1)
	if !w.bypassed {
		w.Router.Tell(director.SessionStart{Key: x.key, User: user, Epoch: x.epoch})
	}
	return p
}

func (w *walk) relay(ctx context.Context, p *handover.Pair) handover.Outcome {
	outcome := w.relayer.Run(ctx, p)
	if outcome.Cause != nil {
		w.log.Error().Err(outcome.Cause).Uint64("session", w.session.id).Str("user", w.session.user).Msg("hand-over failed")
	}
	return outcome
}

// left ends a session that never was logged in.
func (s *Server) left(x *Session, err error) {
	s.end(x)
	if err != nil && !errors.Is(err, io.EOF) {
		s.log.Debug().Uint64("session", x.id).Stringer("client", x.client.Tuple().Remote).Err(err).Msg("connection ended before login")
	}
}

// ended ends a session that was logged in, with its one line in the log.
func (s *Server) ended(x *Session, mode Mode, reason handover.Reason, toBackend, toClient uint64, how string) {
	ev, tell, ok := s.end(x)
	if !ok {
		return // somebody else was faster
	}
	s.Stats.end(End{mode, reason})
	s.log.Info().Uint64("session", x.id).Str("user", x.user).Str("protocol", x.protocol).
		Stringer("client", x.client.Tuple().Remote).Stringer("backend", x.backend.Tuple().Remote).Str("mode", string(mode)).
		Str("reason", string(reason)).Uint64("bytes_in", toBackend).Uint64("bytes_out", toClient).
		Dur("duration", time.Since(time.Unix(0, x.since)).Round(time.Millisecond)).Str("end", how).Msg("session ended")
	if tell {
		s.Router.Tell(ev)
	}
}

// how is the word for the log.
func how(err error) string {
	var s stopped
	switch {
	case err == nil:
		return "closed"
	case errors.As(err, &s):
		return s.how
	case errors.Is(err, errShutdown):
		return "shutdown"
	}
	return err.Error()
}
