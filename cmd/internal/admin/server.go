package admin

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"usher/steer/unixsocket"
)

// ErrRunning means that another daemon answers on the socket.
var ErrRunning = errors.New("another usher is running")

// Timeouts and limits of the server. Its users are few; one that hangs must not cost anything.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	idleTimeout       = 60 * time.Second
	commandTimeout    = 60 * time.Second // a move waits for the sessions to end and the kick delay
	writeTimeout      = 90 * time.Second // from the end of the request's header: more than commandTimeout
	stopTimeout       = 2 * time.Second  // for requests that are running when the daemon ends
	maxHeader         = 16 << 10
	maxBody           = 64 << 10
	maxConnections    = 64 // per listener
	socketMode        = 0o600
)

// Config says where to serve what.
type Config struct {
	Socket   string              // path of the unix socket; empty: none
	HTTP     netip.AddrPort      // read-only HTTP; not valid: none
	Source   Source              // must be set
	Gatherer prometheus.Gatherer // what /metrics shows; nil: there is no /metrics
	Log      zerolog.Logger
}

// Server serves a Source. It is made by Listen and lives in Run.
type Server struct {
	log    zerolog.Logger
	served []served
}

type served struct {
	listener net.Listener
	server   *http.Server
}

// Listen takes the socket and the address, so that a daemon which cannot have them fails before
// it does anything else. ErrRunning: another daemon has the socket.
func Listen(cfg Config) (*Server, error) {
	s := &Server{log: cfg.Log}
	if cfg.Socket != "" {
		l, err := unixsocket.Listen(cfg.Socket, socketMode)
		if errors.Is(err, unixsocket.ErrInUse) {
			err = fmt.Errorf("%w: %w", ErrRunning, err)
		}
		if err != nil {
			return nil, fmt.Errorf("listen on the admin socket %s: %w", cfg.Socket, err)
		}
		s.add(l, handler(cfg, true))
	}
	if cfg.HTTP.IsValid() {
		l, err := net.Listen("tcp", cfg.HTTP.String())
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("listen on admin.http %s: %w", cfg.HTTP, err)
		}
		s.add(l, handler(cfg, false))
	}
	return s, nil
}

func (s *Server) add(l net.Listener, h http.Handler) {
	s.served = append(s.served, served{limit(l, maxConnections), &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(s.log, "admin: ", 0),
	}})
}

// HTTPAddr is where HTTP is served, which tells the port when port 0 was asked for. It is not
// valid when it is off.
func (s *Server) HTTPAddr() netip.AddrPort {
	for _, sv := range s.served {
		if a, ok := sv.listener.Addr().(*net.TCPAddr); ok {
			return a.AddrPort()
		}
	}
	return netip.AddrPort{}
}

// Run serves until ctx is done, gives running requests a moment, and closes everything. The
// error is nil then.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, len(s.served))
	var wg sync.WaitGroup
	for _, sv := range s.served {
		wg.Go(func() {
			err := sv.server.Serve(sv.listener)
			if !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", sv.listener.Addr(), err)
			}
		})
		s.log.Debug().Stringer("address", sv.listener.Addr()).Msg("admin server is ready")
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	for _, sv := range s.served {
		if sv.server.Shutdown(stop) != nil {
			// Whoever is still waiting for a move has to ask the next daemon.
			sv.server.Close()
		}
	}
	wg.Wait()
	return err
}

// Close gives the socket and the address back when Run has not been called. After Run it does
// nothing.
func (s *Server) Close() error {
	var errs []error
	for _, sv := range s.served {
		if err := sv.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
