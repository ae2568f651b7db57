// Package serve wires the daemon: configuration, kernel, director, path and admin.
package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/config"
	"usher/cmd/internal/state"
	"usher/director"
	"usher/loader"
	"usher/steer"
	"usher/steer/dovecot"
	"usher/steer/health"
	"usher/steer/route"
)

// resolveTimeout bounds the look-up of backend names at the start.
const resolveTimeout = 30 * time.Second

// Run is `usher serve`: it returns when ctx ends, or with the error that keeps the
// daemon from serving.
func Run(ctx context.Context, cfg *config.Config, version string, logTo io.Writer) error {
	log := logger(cfg.Log, logTo)
	if os.Getenv("GOGC") == "" {
		// Most of the heap is small records of sessions that sleep in the kernel. Half the
		// usual slack is a third less memory, and collecting costs nothing beside logins.
		debug.SetGCPercent(50)
	}
	for _, w := range cfg.Warnings() {
		log.Warn().Msg(w.String())
	}
	driver, err := newAuth(cfg.Auth, log)
	if err != nil {
		return err
	}
	if d, ok := driver.(interface{ Close() }); ok {
		defer d.Close()
	}
	certificates, backends, err := openTLS(cfg, log)
	if err != nil {
		return err
	}
	kernel, reason, err := openKernel(cfg.Steer, log)
	if err != nil {
		return err
	}
	if kernel != nil {
		defer kernel.Close()
	}
	hosts, err := resolve(ctx, cfg)
	if err != nil {
		return err
	}
	self, members, err := cfg.Ring(ctx, net.DefaultResolver, config.MayBind)
	if err != nil {
		return err
	}
	kept, err := loadState(cfg.Director.StateFile, hosts, log)
	if err != nil {
		return err
	}
	rc, err := newRoute(cfg, hosts, self, members, kept, log)
	if err != nil {
		return err
	}
	// The ring and its network need each other; nothing happens on the network before it runs.
	var server *steer.Server
	peers, err := listenRing(cfg.Director, self, func() *route.Router { return server.Router }, log)
	if err != nil {
		return err
	}
	if peers != nil {
		rc.Network = peers
	}
	var checker *health.Checker
	rc.Vote = func(v director.HealthVote) {
		if checker != nil {
			checker.Hear(v.Director, v.Host, v.Up)
		}
	}
	guests := newDropIn(cfg, &rc, func() *route.Router { return server.Router }, log)
	p := path{route: rc, auth: driver, penalty: newPenalty(cfg.Auth), certificates: certificates, backends: backends, kernel: kernel}
	if server, err = newServer(cfg, p, log); err != nil {
		return err
	}
	o := newOrders(server.Router, cfg, hosts, members)
	if cfg.Director.StateFile != "" {
		o.memory = state.NewWriter(cfg.Director.StateFile, o.state, log)
	}
	if checker, err = newHealth(cfg, hosts, self, server.Router, o.drain, kernel, backends, log); err != nil {
		server.Close()
		return err
	}
	s := &site{
		cfg: cfg, hosts: hosts, server: server, orders: o, checker: checker, kernel: kernel, reason: reason, start: time.Now(), version: version,
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &metrics{site: s})
	adm, err := admin.Listen(admin.Config{
		Socket: cfg.Admin.Socket, HTTP: cfg.Admin.HTTP, Source: s, Gatherer: registry, Log: log,
	})
	if err != nil {
		server.Close()
		return err
	}

	parts := newParts(ctx)
	parts.start(adm.Run)
	parts.start(hangups(certificates, log))
	registry.MustRegister(&penaltyMetrics{p.penalty})
	if certificates != nil {
		registry.MustRegister(expiryMetric(certificates))
	}
	if checker != nil {
		registry.MustRegister(&healthMetrics{checker: checker})
		parts.start(checker.Run)
	}
	if cfg.Dovecot.BaseDir != "" {
		socket, err := dovecot.ListenAdmin(filepath.Join(cfg.Dovecot.BaseDir, "director-admin"), o, log)
		if err != nil {
			server.Close()
			return errors.Join(err, parts.stop())
		}
		parts.start(socket.Run)
		parts.start(guests.Run)
	}
	if o.memory != nil {
		parts.start(o.memory.Run)
	}
	if peers != nil {
		parts.start(peers.Run)
	}
	parts.start(func(ctx context.Context) error { o.resume(ctx, kept.Drains); return nil })
	ready := log.Info().Str("mode", string(s.mode())).Str("reason", reason).Int("pid", os.Getpid())
	if kernel != nil {
		ready = ready.Strs("interfaces", kernel.Interfaces())
	}
	if self.IsValid() {
		ready = ready.Stringer("director", self).Int("directors", len(members))
	}
	ready.Msg("serving")
	err = server.Run(parts.ctx)
	if peers != nil {
		server.Router.Quit() // the neighbours need not find out by themselves
	}
	err = errors.Join(err, parts.stop())
	if left := server.Counts().ByMode[s.mode()]; kernel != nil && left > 0 {
		log.Info().Int("sessions", left).Msg("stopped; the kernel goes on with its sessions")
	}
	return err
}

func logger(cfg config.Log, to io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(cfg.Level)
	if err != nil {
		level = zerolog.InfoLevel
	}
	format := cfg.Format
	if format == "" {
		format = "json"
		if f, ok := to.(*os.File); ok && isTerminal(f) {
			format = "console"
		}
	}
	if format == "console" {
		to = zerolog.ConsoleWriter{Out: to, TimeFormat: time.TimeOnly}
	}
	return zerolog.New(to).Level(level).With().Timestamp().Logger()
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// resolve returns the configured hosts, names looked up.
func resolve(ctx context.Context, cfg *config.Config) ([]config.Host, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	return cfg.Hosts(ctx, net.DefaultResolver)
}

// openKernel finds the best mode that works here, or exactly the wanted one. Without
// a kernel the reason says why. Sessions that are in the kernel forbid to do without it:
// nobody would know their users, who could come to a second backend.
func openKernel(cfg config.Steer, log zerolog.Logger) (*loader.Kernel, string, error) {
	mode := cfg.Mode
	switch mode {
	case "splice", "copy":
		return nil, "configured", leftAlone(cfg, nil)
	case "auto":
		// XDP is for physical interfaces and wanted by name: see README.
		mode = loader.ModeTC
	}
	k, err := loader.Open(loader.Config{
		PinPath: cfg.PinPath, MaxFlows: cfg.MaxFlows, Mode: mode, Interfaces: cfg.Interfaces, Clsact: cfg.ClsAct, Log: log,
	})
	switch {
	case err == nil:
		return k, "", nil
	case cfg.Mode == "auto" && !errors.Is(err, loader.ErrLayout) && !errors.Is(err, loader.ErrInUse):
		if err := leftAlone(cfg, err); err != nil {
			return nil, "", err
		}
		log.Warn().Err(err).Msg("the kernel cannot carry sessions here: they stay in user space")
		return nil, err.Error(), nil
	}
	return nil, "", fmt.Errorf("steer.mode = %q: %w", cfg.Mode, err)
}

// leftAlone is the error of a start in user space, for the given reason, that would leave
// sessions in the kernel alone.
func leftAlone(cfg config.Steer, why error) error {
	n := loader.Left(cfg.PinPath)
	if n == 0 {
		return nil
	}
	err := fmt.Errorf("steer.mode = %q: the kernel still carries sessions of an earlier daemon (%d flows below %s): "+
		"start with mode \"auto\" until they have ended, or end them with `usher unpin --pin-path %s`",
		cfg.Mode, n, cfg.PinPath, cfg.PinPath)
	if why != nil {
		err = fmt.Errorf("%w; the kernel path does not work: %w", err, why)
	}
	return err
}

// Unpin is `usher unpin`.
func Unpin(_ context.Context, pinPath string) error {
	return loader.Unpin(cmp.Or(pinPath, config.Default().Steer.PinPath))
}
