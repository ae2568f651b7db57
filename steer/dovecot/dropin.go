package dovecot

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"usher/director"
)

// Router is what the drop-in needs of package route.
type Router interface {
	Route(ctx context.Context, user, tag string) (director.Assigned, error)
	Tell(director.Event)
	View(func(*director.Director))
	WaitSynced(ctx context.Context) error
}

// DropInConfig is what a DropIn needs.
type DropInConfig struct {
	BaseDir    string        // of Dovecot
	IPC        string        // socket for kicks; empty: <base_dir>/ipc, and without one <base_dir>/anvil
	UserExpire time.Duration // of the director; at least 2 s
	Log        zerolog.Logger
}

// DropIn takes the place of Dovecot's director for the processes of the Dovecot on this machine. It is made by
// NewDropIn, and lives in Run.
type DropIn struct {
	cfg     DropInConfig
	router  Router
	log     zerolog.Logger
	guests  *guests
	kicks   *kicks
	connect func(context.Context) (lever, error)
	pending atomic.Int64 // answers that wait for a host
	up      atomic.Bool  // Dovecot runs

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// NewDropIn makes a DropIn. Its Stop and StopAlt are to be called for those effects of the director
// (route.Config's Guests and StopAlt); the router is not used before one of them or Run.
func NewDropIn(cfg DropInConfig, router Router) *DropIn {
	d := &DropIn{cfg: cfg, router: router, log: cfg.Log.With().Str("base_dir", cfg.BaseDir).Logger(), conns: map[net.Conn]struct{}{}}
	d.guests = newGuests(router, cfg.UserExpire)
	d.kicks = newKicks(d)
	d.connect = d.openLever
	return d
}

// refreshSeconds is how often a login process is to say that its session lives.
func (d *DropIn) refreshSeconds() int { return max(int(d.cfg.UserExpire/2/time.Second), 1) }

// Guests returns how many users' sessions are counted that Dovecot's processes carry.
func (d *DropIn) Guests() int { return d.guests.len() }

// retryPause is between attempts to make the sockets.
const retryPause = 2 * time.Second

// Run waits for Dovecot, serves its processes while it runs, and waits again, until ctx is done. Dovecot refuses to start
// when anybody listens in its directory login/ (config.md section 6): the sockets are there only while its
// master process is.
func (d *DropIn) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { d.guests.run(ctx) })
	wg.Go(func() { d.kicks.run(ctx) })
	said := "" // one thing is said once
	for {
		m := awaitMaster(ctx, d.cfg.BaseDir, func() {
			if waiting := "waiting for Dovecot to start"; said != waiting {
				said = waiting
				d.log.Info().Msg(waiting)
			}
		})
		if m == nil {
			return nil
		}
		d.up.Store(true)
		err := d.attend(ctx, m)
		d.up.Store(false)
		m.close()
		d.linger()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if said != err.Error() {
				said = err.Error()
				d.log.Error().Err(err).Msg("Dovecot's login processes are not served, trying again")
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(retryPause):
			}
			continue
		}
		d.log.Info().Int("pid", m.pid).Msg("Dovecot has ended")
		said = ""
	}
}

// lingering is how long login processes were seen to go on with their sessions after their master has ended. Nobody
// can kick them then.
const lingering = 30 * time.Second

// linger ends all guests when Dovecot's login processes are gone as well. A move waits for that; not for longer
// than for anybody else.
func (d *DropIn) linger() {
	all := d.guests.all()
	if len(all) == 0 {
		return
	}
	time.AfterFunc(lingering, func() {
		for _, g := range all {
			d.guests.end(g)
		}
	})
}

// attend serves one run of Dovecot. The error is nil at its end and at that of ctx.
func (d *DropIn) attend(ctx context.Context, m *master) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	p := &place{base: d.cfg.BaseDir}
	defer p.close() // before the connections have ended: the next Dovecot may be starting already
	defer cancel()
	if err := p.open(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, p.close)
	defer stop()
	wg.Go(func() {
		d.accept(ctx, p.login, desk{d, loginSocket, filepath.Join(d.cfg.BaseDir, authLogin), "OK", true})
	})
	wg.Go(func() {
		d.accept(ctx, p.userdb, desk{d, userdbSocket, filepath.Join(d.cfg.BaseDir, authUserdb), "PASS", false})
	})
	wg.Go(func() {
		if err := heed(ctx, p.fifo, d.guests.refresh); err != nil {
			d.log.Error().Err(err).Msg("refreshes of sessions are not heard")
		}
	})
	wg.Go(func() {
		if err := d.census(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn().Err(err).Msg("sessions of Dovecot's login processes are not known before they are refreshed")
		}
	})
	d.log.Info().Int("pid", m.pid).Msg("serving Dovecot's login processes")
	for !m.gone() {
		if ctx.Err() != nil {
			return nil
		}
		if !p.there() {
			return errors.New("somebody has removed a socket")
		}
	}
	return nil
}

// census counts the sessions that login processes have already, as soon as the ring has told where their users are: when
// Usher was restarted, and Dovecot was not.
func (d *DropIn) census(ctx context.Context) error {
	if err := d.router.WaitSynced(ctx); err != nil {
		return err
	}
	tags := map[netip.Addr]string{}
	d.router.View(func(x *director.Director) {
		for _, h := range x.Hosts() {
			tags[h.Addr] = h.Tag
		}
	})
	lv, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer lv.close()
	ctx, cancel := context.WithTimeout(ctx, kickTimeout)
	defer cancel()
	return lv.list(ctx, func(login string, host netip.Addr) {
		if tag, ok := tags[host]; ok {
			d.guests.count(login, host, tag)
		}
	})
}

// accept serves connections of one socket until ctx is done.
func (d *DropIn) accept(ctx context.Context, l net.Listener, desk desk) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, d.hangUp)
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			d.log.Error().Err(err).Str("socket", desk.name).Msg("accept failed, waiting")
			time.Sleep(100 * time.Millisecond) // too many descriptors: it passes
			continue
		}
		if !d.admit(ctx, conn) {
			d.log.Warn().Str("socket", desk.name).Int("connections", maxRelays).Msg("too many connections: one was closed")
			conn.Close()
			continue
		}
		wg.Go(func() {
			desk.serve(ctx, conn)
			d.mu.Lock()
			delete(d.conns, conn)
			d.mu.Unlock()
		})
	}
}

func (d *DropIn) admit(ctx context.Context, conn net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.conns) >= maxRelays {
		return false
	}
	d.conns[conn] = struct{}{}
	if ctx.Err() != nil {
		conn.Close() // it came while the others were closed
	}
	return true
}

func (d *DropIn) hangUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for conn := range d.conns {
		conn.Close()
	}
}
