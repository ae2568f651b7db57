package steer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"usher/director"
	"usher/steer/auth"
	"usher/steer/auth/penalty"
	"usher/steer/expire"
	"usher/steer/handover"
	"usher/steer/prelogin"
	"usher/steer/route"
	"usher/steer/secure"
	"usher/steer/upstream"
)

// Kernel is the kernel side of a site; package loader has it.
type Kernel interface {
	handover.Kernel
	expire.Kernel
	Mode() string // ModeXDP or ModeTC
	// DropUnfinished removes the flows that an earlier process had not handed over.
	DropUnfinished() (int, error)
}

// Listener is one listening socket.
type Listener struct {
	Protocol       string         // "imap", "pop3", "submission", "sieve" or "lmtp"
	Address        netip.AddrPort // of our socket; [::] takes IPv4 too
	BackendPort    uint16
	Plaintext      bool // passwords are allowed from everywhere, not only from Trusted and loopback
	MaxConnections int  // before login
	MaxPerAddress  int  // the same from one address, but for Trusted and ProxyFrom; 0: no limit

	TLS        TLSMode // with clients; empty: TLSNone
	BackendTLS TLSMode // with backends, unless the auth driver says otherwise; empty: TLSNone
	Forward    bool    // tell backends who the client is, if they say that they want to know

	ProxyFrom    []netip.Prefix // networks that must send a PROXY header; others are not listened to when they do
	ProxyBackend bool           // send a PROXY header, version 2, to backends

	Delimiter string // LMTP: between a user's name and the detail of an address; empty: names are not cut
	MaxMail   int64  // LMTP: bytes; 0: the backends decide
}

// Config is what a Server needs.
type Config struct {
	Listeners []Listener
	Auth      auth.Driver
	Penalty   *penalty.Table // what failed logins cost, and unknown names; nil: no delays, and the default bounds
	Route     route.Config   // of the director with its hosts, which the Server owns from now on; Stop is the Server's
	Trusted   []netip.Prefix // networks that may send passwords in plaintext
	Sources   []netip.Addr   // for connections to backends; empty: the kernel's choice

	Name         string               // of this host, in greetings that have one
	Certificates *secure.Certificates // for clients; nil: no listener has TLS
	Backends     *secure.Backends     // for backends; nil: none is spoken to with TLS
	Mechanisms   []string             // SASL mechanisms offered to clients; nil: prelogin.DefaultMechanisms

	Kernel      Kernel               // nil: user space only
	UserMode    Mode                 // ModeSplice or ModeCopy: how user space moves bytes
	Quiet       func() time.Duration // silence before a hand-over
	IdleTimeout time.Duration        // of sessions in the kernel

	Limits prelogin.Limits
	Log    zerolog.Logger
}

// Server accepts connections and runs sessions.
type Server struct {
	*Table
	Router *route.Router
	Stats  Stats

	cfg       Config
	relayer   handover.Relayer
	dialer    upstream.Dialer
	watcher   *expire.Watcher // nil without a kernel
	log       zerolog.Logger
	listeners []*listener
	sessions  sync.WaitGroup
}

type listener struct {
	Listener
	socket   net.Listener
	protocol protocol
	waiting  atomic.Int64             // connections before login
	crowd    *crowd                   // the same by address
	tls      *tls.Config              // for clients
	learnt   atomic.Pointer[[]string] // capabilities, see protocol.learns; nil: none yet
}

func (l *listener) mayEncrypt() bool {
	return l.tls != nil || l.BackendTLS != "" && l.BackendTLS != TLSNone
}

// New makes a server and opens its listening sockets. Sessions that an earlier
// process left in the kernel are adopted; nothing is accepted before Run.
func New(cfg Config) (_ *Server, err error) {
	if cfg.Penalty == nil {
		cfg.Penalty = penalty.New(penalty.Config{FailureDelay: -1})
	}
	s := &Server{cfg: cfg, log: cfg.Log}
	s.Stats.init()
	kernelMode := Mode("")
	if cfg.Kernel != nil {
		kernelMode = Mode(cfg.Kernel.Mode())
		s.relayer.Kernel = cfg.Kernel
		s.dialer.Kernel = cfg.Kernel
	}
	s.Table = newTable(kernelMode, cfg.UserMode)
	cfg.Route.Stop = s.stop
	s.Router = route.New(cfg.Route)
	s.relayer.Quiet = cfg.Quiet
	s.relayer.Copy = cfg.UserMode == ModeCopy
	s.relayer.Undone = func() { s.Stats.Undone.Add(1) }
	s.dialer.Sources = cfg.Sources
	if cfg.Kernel != nil {
		s.watcher = expire.New(cfg.Kernel, (*watched)(s), cfg.IdleTimeout, cfg.Log)
	}
	for _, l := range cfg.Listeners {
		if err := s.listen(l); err != nil {
			s.closeListeners()
			return nil, err
		}
	}
	if err := s.adopt(); err != nil {
		s.closeListeners()
		return nil, err
	}
	return s, nil
}

func (s *Server) listen(l Listener) error {
	p, ok := protocols[l.Protocol]
	if !ok {
		return fmt.Errorf("listener %v: protocol %q is not built", l.Address, l.Protocol)
	}
	if err := s.cfg.checkTLS(l); err != nil {
		return err
	}
	lc := net.ListenConfig{
		KeepAlive: -1, // the handover package decides: a frozen socket must be silent
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			})
			return errors.Join(cerr, err)
		},
	}
	lc.SetMultipathTCP(false) // such a connection cannot be handed over
	ln, err := lc.Listen(context.Background(), "tcp", l.Address.String())
	if err != nil {
		return fmt.Errorf("listen for %s: %w", l.Protocol, err)
	}
	bound := &listener{Listener: l, protocol: p, socket: ln, crowd: newCrowd()}
	if l.TLS == TLSStart || l.TLS == TLSImplicit {
		bound.tls = s.cfg.Certificates.Server(l.Protocol)
	}
	s.listeners = append(s.listeners, bound)
	return nil
}

// Close closes the listening sockets of a server that is not Run.
func (s *Server) Close() { s.closeListeners() }

func (s *Server) closeListeners() {
	for _, l := range s.listeners {
		l.socket.Close()
	}
}

// Run serves until ctx ends. Then it stops accepting and ends the sessions in user
// space; those in the kernel go on.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts sync.WaitGroup
	failed := make(chan error, len(s.listeners)+2)
	start := func(run func(context.Context) error) {
		parts.Go(func() {
			if err := run(ctx); err != nil {
				failed <- err
			}
		})
	}
	start(s.Router.Run)
	if s.cfg.Certificates != nil {
		start(s.cfg.Certificates.Run)
	}
	if s.watcher != nil {
		start(s.watcher.Run)
	}
	// Sessions are told why they end, and so do not end with ctx.
	sctx, endSessions := context.WithCancelCause(context.WithoutCancel(ctx))
	defer endSessions(nil)
	for _, l := range s.listeners {
		start(func(ctx context.Context) error { return s.accept(ctx, sctx, l) })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	s.closeListeners()
	parts.Wait() // from here on no session begins
	s.finishHandOvers()
	endSessions(errShutdown)
	s.sessions.Wait()
	return err
}

// shutdownGrace is how long a stopping server waits for sessions that may still be
// handed over: those survive it.
const shutdownGrace = 2 * time.Second

func (s *Server) finishHandOvers() {
	if s.cfg.Kernel == nil {
		return
	}
	deadline := time.Now().Add(shutdownGrace)
	for s.StayReasons()[handover.Waiting] > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
}

// accept starts a session, under sctx, for each connection until ctx ends.
func (s *Server) accept(ctx, sctx context.Context, l *listener) error {
	for {
		c, err := l.socket.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept at %v: %w", l.Address, err)
			}
			// Too many descriptors, no memory, a network that is going down: all of it passes.
			s.log.Error().Err(err).Stringer("listener", l.Address).Msg("accept failed, waiting")
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		s.Stats.Accepted.Add(1)
		if !s.enter(l, handover.TupleOf(c.(*net.TCPConn)).Remote.Addr()) {
			s.Stats.TooMany.Add(1)
			if l.TLS != TLSImplicit { // a handshake is what there is no room for
				_ = c.SetWriteDeadline(time.Now().Add(time.Second))
				_, _ = c.Write([]byte(l.protocol.busy))
			}
			c.Close()
			continue
		}
		s.sessions.Go(func() { s.serve(sctx, l, c.(*net.TCPConn)) })
	}
}

// enter counts a connection before its login, if there is room for it.
func (s *Server) enter(l *listener, from netip.Addr) bool {
	most := l.MaxPerAddress
	if within(s.cfg.Trusted, from) || within(l.ProxyFrom, from) {
		most = 0
	}
	if n := l.waiting.Add(1); l.MaxConnections > 0 && n > int64(l.MaxConnections) || !l.crowd.enter(from, most) {
		l.waiting.Add(-1)
		return false
	}
	return true
}

// leave ends what enter began.
func (l *listener) leave(from netip.Addr) {
	l.waiting.Add(-1)
	l.crowd.leave(from)
}

// stop carries out a Stop of the director.
func (s *Server) stop(stop director.Stop) {
	for _, client := range s.Table.stop(stop) {
		s.watcher.End(client, stop.Reason.String())
	}
}

// adopt takes over the entries and sessions that an earlier process left.
func (s *Server) adopt() error {
	if s.cfg.Kernel == nil {
		return nil
	}
	dropped, err := s.cfg.Kernel.DropUnfinished()
	if err != nil {
		return fmt.Errorf("adopt sessions: %w", err)
	}
	stored, err := s.cfg.Route.Store.Entries()
	if err != nil {
		return fmt.Errorf("adopt entries: %w", err)
	}
	epochs := map[director.Key]uint32{}
	for _, e := range stored {
		epochs[e.Key] = e.Epoch
	}
	counts := map[director.Key]map[string]int{}
	var stale []handover.Tuple
	adopted := 0
	err = s.cfg.Kernel.Flows(func(f handover.Flow) bool {
		if !f.FromClient || s.find(f.Tuple) != nil {
			return true
		}
		key := director.Key{Hash: f.Owner.Hash, Tag: f.Owner.Tag}
		if epoch, ok := epochs[key]; !ok || epoch != f.Owner.Epoch {
			stale = append(stale, f.Tuple)
			return true
		}
		// The flows of an ended session stay for a while, and half a session when the
		// process was killed while it removed it; the watcher's sweep removes both.
		if back, err := s.cfg.Kernel.Flow(f.Other); err != nil || back.Other != f.Tuple || handover.Ended(f, back) {
			return true
		}
		s.Table.adopt(f)
		adopted++
		if counts[key] == nil {
			counts[key] = map[string]int{}
		}
		counts[key][f.Owner.User]++
		return true
	})
	if err != nil {
		return fmt.Errorf("adopt sessions: %w", err)
	}
	for _, t := range stale {
		s.watcher.End(t, "stale")
	}
	var entries []director.Adopted
	for _, e := range stored {
		last := e.LastSeen
		if e.Active && counts[e.Key] == nil {
			last = time.Now() // it had sessions in user space, which ended with the process
		}
		entries = append(entries, director.Adopted{
			Key: e.Key, Host: e.Host, Epoch: e.Epoch, LastRefresh: last, Users: e.Users, Sessions: counts[e.Key],
		})
	}
	s.Router.Tell(director.Adopt{Entries: entries})
	s.Stats.Adopted.Add(uint64(adopted))
	if len(entries) > 0 || dropped > 0 {
		s.log.Info().Int("sessions", adopted).Int("users", len(entries)).Int("stale", len(stale)).
			Int("unfinished", dropped).Msg("adopted what an earlier process left")
	}
	return nil
}

// watched is the Server as the expire package sees it.
type watched Server

// Known implements expire.Sessions.
func (w *watched) Known(client handover.Tuple, began time.Time) bool {
	x := w.find(client)
	return x != nil && x.since == began.UnixNano()
}

// Ended implements expire.Sessions. A session that the kernel has just taken over may
// end before its goroutine has said that it is Forwarded.
func (w *watched) Ended(client handover.Tuple, began time.Time, toBackend, toClient uint64, how string) {
	s := (*Server)(w)
	if x := s.find(client); x != nil && x.since == began.UnixNano() && s.stateOf(x) >= Relayed {
		s.ended(x, s.kernelMode, "", toBackend, toClient, how)
	}
}
