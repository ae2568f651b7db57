// Package serve wires the daemon: configuration, kernel, director, path and admin.
package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/config"
	"usher/director"
	"usher/director/placement"
	"usher/loader"
	"usher/steer"
	"usher/steer/auth"
	"usher/steer/handover"
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
	d, err := newDirector(cfg.Director, cfg.Auth.UserSeparator, hosts, kernel, log)
	if err != nil {
		return err
	}
	server, err := newServer(cfg, d, driver, kernel, log)
	if err != nil {
		return err
	}
	s := &site{cfg: cfg, hosts: hosts, server: server, kernel: kernel, reason: reason, start: time.Now(), version: version}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &metrics{site: s})
	adm, err := admin.Listen(admin.Config{
		Socket: cfg.Admin.Socket, HTTP: cfg.Admin.HTTP, Source: s, Gatherer: registry, Log: log,
	})
	if err != nil {
		server.Close()
		return err
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var admErr error
	var parts sync.WaitGroup
	parts.Go(func() {
		defer cancel()
		admErr = adm.Run(ctx)
	})
	ready := log.Info().Str("mode", string(s.mode())).Str("reason", reason).Int("pid", os.Getpid())
	if kernel != nil {
		ready = ready.Strs("interfaces", kernel.Interfaces())
	}
	ready.Msg("serving")
	err = server.Run(ctx)
	cancel()
	parts.Wait()
	if left := server.Counts().ByMode[s.mode()]; kernel != nil && left > 0 {
		log.Info().Int("sessions", left).Msg("stopped; the kernel goes on with its sessions")
	}
	return errors.Join(err, admErr)
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

// newDirector makes the director with the configured hosts. What an operator ordered
// of them before a restart still holds, but for a weight that the configuration has
// changed since.
func newDirector(cfg config.Director, separator string, hosts []config.Host, k *loader.Kernel, log zerolog.Logger) (*director.Director, error) {
	format, err := placement.ParseFormat(cfg.UsernameHash)
	if err != nil {
		return nil, fmt.Errorf("director.username_hash: %w", err)
	}
	d := director.New(director.Config{
		UserExpire: cfg.UserExpire.Std(), KickDelay: cfg.UserKickDelay.Std(),
		UsernameHash: format, UserSeparator: separator,
	})
	now := time.Now()
	for _, h := range hosts {
		order, ordered := loader.HostOrder{}, false
		if k != nil {
			if order, ordered, err = k.Host(h.Addr); err != nil {
				return nil, err
			}
		}
		if ordered && order.Configured == h.Weight {
			h.Weight = order.Weight
		}
		d.Step(now, director.HostPut{Host: director.Host(h)})
		if ordered && order.Down {
			d.Step(now, director.HostUp{Addr: h.Addr})
			log.Warn().Stringer("host", h.Addr).Msg("host is down, as ordered before the restart")
		}
	}
	return d, nil
}

func newAuth(cfg config.Auth, log zerolog.Logger) (auth.Driver, error) {
	if cfg.Driver == "static" {
		return auth.Static{NoPassword: cfg.NoPassword, Host: cfg.Host}, nil
	}
	master := auth.Master{User: cfg.MasterUser, Separator: cfg.UserSeparator}
	if cfg.MasterPasswordFile != "" {
		b, err := os.ReadFile(cfg.MasterPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("auth.master_password_file: %w", err)
		}
		master.Password = strings.TrimRight(string(b), "\r\n")
	}
	return auth.OpenPasswdFile(cfg.File, master, log)
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

func newServer(cfg *config.Config, d *director.Director, driver auth.Driver, k *loader.Kernel, log zerolog.Logger) (*steer.Server, error) {
	sc := steer.Config{
		Auth: driver, Director: d, Store: route.Forgetful{}, Sources: cfg.Steer.SourceAddresses,
		UserMode: steer.ModeSplice, Quiet: cfg.Steer.Quiet.Std, IdleTimeout: cfg.Steer.IdleTimeout.Std(), Log: log,
	}
	if cfg.Steer.Mode == "copy" {
		sc.UserMode = steer.ModeCopy
	}
	if k != nil {
		sc.Kernel, sc.Store = k, k
	}
	for _, n := range cfg.Auth.TrustedNetworks {
		sc.Trusted = append(sc.Trusted, n.Prefix)
	}
	for _, l := range cfg.Listeners {
		sc.Listeners = append(sc.Listeners, steer.Listener{
			Protocol: l.Protocol, Address: l.Address.AddrPort, BackendPort: uint16(l.BackendPort),
			Plaintext: !l.DisablePlaintextAuth, MaxConnections: l.MaxConnections,
		})
	}
	return steer.New(sc)
}

// site is the daemon as the admin interface sees it.
type site struct {
	cfg     *config.Config
	hosts   []config.Host // as configured
	server  *steer.Server
	kernel  *loader.Kernel // nil: user space only
	reason  string         // why
	start   time.Time
	version string
}

var _ admin.Source = (*site)(nil)

// mode is what new sessions aim at.
func (s *site) mode() steer.Mode {
	if s.kernel != nil {
		return steer.Mode(s.kernel.Mode())
	}
	if s.cfg.Steer.Mode == "copy" {
		return steer.ModeCopy
	}
	return steer.ModeSplice
}

// Status implements admin.Source.
func (s *site) Status() admin.Status {
	counts := s.server.Counts()
	st := admin.Status{
		Director: admin.DirectorStatus{Name: s.cfg.Director.Name, UptimeS: time.Since(s.start).Seconds(), Version: s.version},
		Sessions: admin.SessionCounts{
			Total: counts.Total, Prelogin: counts.Prelogin,
			XDP: counts.ByMode[steer.ModeXDP], TC: counts.ByMode[steer.ModeTC],
			Splice: counts.ByMode[steer.ModeSplice], Copy: counts.ByMode[steer.ModeCopy],
		},
		Kernel: admin.KernelStatus{Mode: string(s.mode()), Reason: s.reason},
	}
	s.server.Router.View(func(d *director.Director) {
		st.Director.Users = d.Users()
		for _, h := range d.Hosts() {
			st.Hosts = append(st.Hosts, admin.HostStatus{
				Address: h.Addr, Name: h.Name, Tag: h.Tag, Weight: h.Weight, Up: h.Up, Users: h.Users, Sessions: h.Sessions,
			})
		}
	})
	if s.kernel != nil {
		st.Kernel.Program = s.kernel.Program()
		st.Kernel.Flows = 2 * counts.ByMode[s.mode()]
		if c, err := s.kernel.Counters(); err == nil {
			st.Kernel.Packets, st.Kernel.Bytes = c["forwarded"].Packets, c["forwarded"].Bytes
		}
	}
	return st
}

func expiry(at time.Time) *time.Time {
	if at.IsZero() {
		return nil
	}
	return &at
}

// Map implements admin.Source.
func (s *site) Map() []admin.MapEntry {
	var all []admin.MapEntry
	s.server.Router.View(func(d *director.Director) {
		for e := range d.Entries() {
			all = append(all, admin.MapEntry{
				Hash: e.Key.Hash, Users: e.Users, Tag: e.Key.Tag, Host: e.Host, Sessions: e.Sessions,
				Moving: e.Moving, ExpiresAt: expiry(e.ExpiresAt),
			})
		}
	})
	return all
}

// User implements admin.Source. The user of a name that looks like a number is found
// by its name first, unlike in Dovecot.
func (s *site) User(name string) (admin.User, error) {
	var u admin.User
	var key director.Key
	found := false
	s.server.Router.View(func(d *director.Director) {
		var e director.EntryInfo
		if e, found = s.entry(d, name); !found {
			return
		}
		key = e.Key
		u = admin.User{
			User: name, Hash: key.Hash, Tag: key.Tag, Host: e.Host, ExpiresAt: expiry(e.ExpiresAt), Names: e.Users,
			Epoch: e.Epoch, Moving: e.Moving, LastRefresh: e.LastRefresh,
		}
		u.HashedHost, _ = d.HashedHost(key)
	})
	if !found {
		return u, fmt.Errorf("%w: %s", admin.ErrUnknownUser, name)
	}
	for _, i := range s.server.Of(key) {
		if i.Mode == "" {
			continue // still logging in
		}
		x := admin.Session{
			Client: i.Client.Remote, Backend: i.Backend.Remote, Protocol: i.Protocol, Mode: string(i.Mode), Since: i.Since,
			BytesIn: i.ToBackend, BytesOut: i.ToClient,
			ID: fmt.Sprint(i.ID), User: i.User, State: i.State.String(), Reason: string(i.Reason),
		}
		if i.State == steer.Forwarded {
			if f, err := s.kernel.Flow(i.Client); err == nil {
				x.BytesIn = f.Bytes
			}
			if f, err := s.kernel.Flow(i.Backend); err == nil {
				x.BytesOut = f.Bytes
			}
		}
		u.Sessions = append(u.Sessions, x)
	}
	return u, nil
}

// entry finds the entry of a user, of any tag, or of a hash in decimal.
func (s *site) entry(d *director.Director, name string) (director.EntryInfo, bool) {
	for _, tag := range s.tags() {
		if e, ok := d.Entry(d.KeyOf(name, tag)); ok {
			return e, true
		}
	}
	var hash uint32
	if n, err := fmt.Sscanf(name, "%d", &hash); n == 1 && err == nil && fmt.Sprint(hash) == name {
		for _, tag := range s.tags() {
			if e, ok := d.Entry(director.Key{Hash: hash, Tag: tag}); ok {
				return e, true
			}
		}
	}
	return director.EntryInfo{}, false
}

// tags returns the tags of the configured backends, none first.
func (s *site) tags() []string {
	all := []string{""}
	for _, b := range s.cfg.Backends {
		if b.Tag != "" {
			all = append(all, b.Tag)
		}
	}
	return all
}

// Flows implements admin.Source.
func (s *site) Flows() ([]admin.FlowInfo, error) {
	if s.kernel == nil {
		return nil, nil
	}
	var all []admin.FlowInfo
	err := s.kernel.Flows(func(f handover.Flow) bool {
		i := admin.FlowInfo{
			User: f.Owner.User, Client: f.Other.Remote, Backend: f.Tuple.Remote, Mode: string(s.mode()),
			Packets: f.Packets, Bytes: f.Bytes, IdleS: f.Idle.Seconds(), State: f.State(), Direction: "out",
			Hash: f.Owner.Hash, Epoch: f.Owner.Epoch,
		}
		if f.FromClient {
			i.Client, i.Backend, i.Direction = i.Backend, i.Client, "in"
		}
		all = append(all, i)
		return true
	})
	return all, err
}

// Move implements admin.Source.
func (s *site) Move(ctx context.Context, user, host string) error {
	to, err := netip.ParseAddr(host)
	if err != nil {
		return fmt.Errorf("%w: host %q is not an IP address", admin.ErrInvalid, host)
	}
	h, _ := s.host(to.Unmap())
	return adminError(s.server.Router.Move(ctx, user, h.Tag, to.Unmap()))
}

// Kick implements admin.Source. The user's own spelling of the name counts less than
// whom it means: alice is also who logged in as Alice, if the hash says so.
func (s *site) Kick(ctx context.Context, user string) error {
	var entry director.EntryInfo
	s.server.Router.View(func(d *director.Director) { entry, _ = s.entry(d, user) })
	names := slices.DeleteFunc(slices.Clone(entry.Users), func(name string) bool { return !strings.EqualFold(name, user) })
	if len(names) == 0 && len(entry.Users) > 0 {
		return fmt.Errorf("%w: %s; its hash %v is that of %s", admin.ErrUnknownUser, user, entry.Key, strings.Join(entry.Users, ", "))
	}
	if len(names) == 0 {
		names = []string{user}
	}
	for _, name := range names {
		if err := s.server.Router.Kick(ctx, name, entry.Key.Tag); err != nil {
			return adminError(err)
		}
	}
	return nil
}

// HostSet implements admin.Source.
func (s *site) HostSet(_ context.Context, address string, weight *int, up *bool) error {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("%w: host %q is not an IP address", admin.ErrInvalid, address)
	}
	host, ok := s.host(addr.Unmap())
	if !ok {
		return fmt.Errorf("%w: %v", admin.ErrUnknownHost, addr)
	}
	if weight != nil {
		host.Weight = *weight
		s.server.Router.Tell(director.HostPut{Host: host.Host})
	}
	if up != nil {
		host.Up = *up
		s.server.Router.Tell(director.HostUp{Addr: host.Addr, Up: *up})
	}
	if s.kernel == nil {
		return nil
	}
	configured := host.Weight
	for _, b := range s.hosts {
		if b.Addr == host.Addr {
			configured = b.Weight
		}
	}
	return s.kernel.PutHost(host.Addr, loader.HostOrder{Weight: host.Weight, Configured: configured, Down: !host.Up})
}

// host finds a host of the director.
func (s *site) host(addr netip.Addr) (found director.HostInfo, ok bool) {
	s.server.Router.View(func(d *director.Director) {
		for _, h := range d.Hosts() {
			if h.Addr == addr {
				found, ok = h, true
			}
		}
	})
	return found, ok
}

// adminError gives the director's errors the identity that the admin interface knows.
func adminError(err error) error {
	for _, e := range []struct{ director, admin error }{
		{director.ErrUnknownUser, admin.ErrUnknownUser},
		{director.ErrUnknownHost, admin.ErrUnknownHost},
		{director.ErrTagMismatch, admin.ErrInvalid},
		{director.ErrMoveInProgress, admin.ErrConflict},
		{director.ErrHostRemoved, admin.ErrConflict},
	} {
		if errors.Is(err, e.director) {
			return fmt.Errorf("%w (%w)", err, e.admin)
		}
	}
	return err
}

// Unpin is `usher unpin`.
func Unpin(_ context.Context, pinPath string) error {
	return loader.Unpin(cmp.Or(pinPath, config.Default().Steer.PinPath))
}
