package steer

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"usher/director"
	"usher/steer/auth/penalty"
	"usher/steer/handover"
	"usher/steer/prelogin"
	"usher/steer/proxyheader"
	"usher/steer/secure"
	"usher/steer/upstream"
)

// routeTimeout bounds the wait for the end of a user's move, as Dovecot's director does.
const routeTimeout = 60 * time.Second

// serve walks a connection along its path. It returns when user space has nothing
// more to do with it.
func (s *Server) serve(ctx context.Context, l *listener, c *net.TCPConn) {
	defer c.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := handover.TupleOf(c)
	why := s.observe(client)
	x := s.add(l.Protocol, client, cancel)

	w := &walk{Server: s, session: x, listener: l, client: c, from: client, peer: client.Remote, local: client.Local, unseen: why}
	if l.protocol.login == nil {
		err := w.lmtp(ctx)
		l.leave(client.Remote.Addr())
		s.left(x, endOf(ctx, err))
		return
	}
	pair, err := w.begin(ctx)
	l.leave(client.Remote.Addr())
	if pair == nil {
		if w.unseen == handover.Spliced {
			s.cfg.Kernel.Forget(client)
		}
		s.left(x, err)
		return
	}
	if w.encrypted() {
		err := secure.Relay(ctx, pair, w.clientConn(), w.backend.conn())
		s.ended(x, ModeCopy, handover.TLS, pair.ToBackend.Load(), pair.ToClient.Load(), how(endOf(ctx, err)))
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
	s.ended(x, s.userMode, pair.Reason(), pair.ToBackend.Load(), pair.ToClient.Load(), how(endOf(ctx, outcome.Err)))
}

// endOf is why a session ended: somebody's wish before the error that it led to.
func endOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// begin is login, where TLS is possible on a stack of its own: a handshake needs a large one, which would stay with the
// session for hours otherwise.
func (w *walk) begin(ctx context.Context) (pair *handover.Pair, err error) {
	if !w.listener.mayEncrypt() {
		return w.login(ctx)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		pair, err = w.login(ctx)
	}()
	<-done
	return pair, err
}

// observe begins to observe a client's connection. A flow that is there already
// belongs to a session whose client has forgotten it: it made a new connection with
// the same tuple, and the handshake is the proof.
func (s *Server) observe(client handover.Tuple) handover.Reason {
	if s.cfg.Kernel == nil {
		return handover.ModeOff
	}
	err := s.cfg.Kernel.Observe(client, 0)
	if errors.Is(err, handover.ErrTaken) {
		s.watcher.Supersede(client)
		err = s.cfg.Kernel.Observe(client, 0)
	}
	switch {
	case err == nil:
		return handover.Spliced
	case errors.Is(err, handover.ErrFull):
		return handover.MapFull
	}
	s.log.Error().Err(err).Stringer("client", client.Remote).Msg("connection is not observed")
	return handover.KernelFailed
}

// walk is a session on its way to the login.
type walk struct {
	*Server
	session     *Session
	listener    *listener
	client      *net.TCPConn
	from        handover.Tuple
	peer, local netip.AddrPort  // of the client, and the address that it meant: from, unless a trusted proxy named others
	unseen      handover.Reason // why the client's connection cannot be handed over
	secret      *secure.Conn    // the client's connection with TLS; nil: without
	backend     *leg
	private     bool // a trusted proxy has said that the client spoke TLS with it
	bypassed    bool
	attempts    int
	entered     *penalty.Attempt // the present one; nil: there is none
	exchanged   outcome          // of the last exchange that the driver took part in
}

func (w *walk) clientConn() net.Conn {
	if w.secret != nil {
		return w.secret
	}
	return w.client
}

// encrypted reports whether a leg is: then the kernel cannot carry the session.
func (w *walk) encrypted() bool { return w.secret != nil || w.backend.secret != nil }

// login talks with the client until one of its attempts succeeds. Without a pair the
// connection is over; the error says why, io.EOF when the client left.
func (w *walk) login(ctx context.Context) (*handover.Pair, error) {
	if err := w.arrive(ctx); err != nil {
		return nil, err
	}
	dialogue := w.listener.protocol.dialogue(w.clientConn(), w.dialogueConfig(ctx))
	defer w.leave()
	for {
		w.set(w.session, Prelogin)
		attempt, err := dialogue.Next(ctx)
		if err != nil {
			return nil, err
		}
		w.attempts++
		user, result, err := w.attempt(ctx, attempt)
		if err == nil {
			w.entered.Accepted()
			return w.pair(user, dialogue, result), nil
		}
		w.unroute(w.session)
		if context.Cause(ctx) != nil {
			return nil, context.Cause(ctx)
		}
		last, err := w.refuse(ctx, dialogue, attempt, err)
		if err != nil {
			return nil, err
		}
		if last {
			return nil, prelogin.ErrAttempts
		}
	}
}

// arrive does what comes before the first word: the PROXY header, from those who have to send one, and TLS, where it is
// implicit.
func (w *walk) arrive(ctx context.Context) error {
	proxied := within(w.listener.ProxyFrom, w.from.Remote.Addr())
	if !proxied && w.listener.TLS != TLSImplicit {
		return nil
	}
	return prelogin.Within(ctx, w.client, time.Now().Add(w.cfg.Limits.Patience()), func() error {
		if proxied {
			header, err := proxyheader.Read(w.client)
			if err != nil {
				w.Stats.ProxyFailed.Add(1)
				return err
			}
			if header.Client.IsValid() {
				w.peer, w.local, w.private = header.Client, header.Local, header.TLS
				w.behind(w.session, w.peer)
			}
		}
		if w.listener.TLS != TLSImplicit {
			return nil
		}
		_, err := w.encrypt()
		return err
	})
}

func within(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}

func (w *walk) dialogueConfig(ctx context.Context) prelogin.Config {
	cfg := prelogin.Config{
		Limits: w.cfg.Limits, Name: w.cfg.Name, Mechanisms: w.cfg.Mechanisms, Certified: w.certified, Relays: w.relays(ctx),
		DisablePlaintext: w.secret == nil && !w.private && !w.listener.Plaintext && !w.trusted(),
	}
	if w.listener.TLS == TLSStart {
		cfg.StartTLS = w.encrypt
	}
	if learnt := w.listener.learnt.Load(); learnt != nil {
		cfg.Capabilities = *learnt
	}
	return cfg
}

func (w *walk) trusted() bool {
	return w.peer.Addr().IsLoopback() || within(w.cfg.Trusted, w.peer.Addr())
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
	case w.encrypted():
		p.Stay(handover.TLS)
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
		s.log.Debug().Uint64("session", x.id).Stringer("client", x.who()).Err(err).Msg("connection ended before login")
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
		Stringer("client", x.who()).Stringer("backend", x.backend.Tuple().Remote).Str("mode", string(mode)).
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
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return "reset"
	}
	return err.Error()
}
