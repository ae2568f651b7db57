package serve

import (
	"context"

	"github.com/rs/zerolog"

	"usher/cmd/internal/config"
	"usher/director"
	"usher/steer/dovecot"
	"usher/steer/route"
)

// newDropIn makes what stands in for Dovecot's director before the processes of the Dovecot on this machine, and has it told
// which sessions must end; nil without one. The router is asked for when it is needed: it is made of rc.
func newDropIn(cfg *config.Config, rc *route.Config, router func() *route.Router, log zerolog.Logger) *dovecot.DropIn {
	if cfg.Dovecot.BaseDir == "" {
		return nil
	}
	d := dovecot.NewDropIn(dovecot.DropInConfig{
		BaseDir: cfg.Dovecot.BaseDir, IPC: cfg.Dovecot.IPC, UserExpire: cfg.Director.UserExpire.Std(), Log: log,
	}, lateRouter(router))
	rc.Guests, rc.StopAlt = d.Stop, d.StopAlt
	return d
}

// lateRouter is a router that is made later.
type lateRouter func() *route.Router

// Route implements dovecot.Router.
func (r lateRouter) Route(ctx context.Context, user, tag string) (director.Assigned, error) {
	return r().Route(ctx, user, tag)
}

// Tell implements dovecot.Router.
func (r lateRouter) Tell(ev director.Event) { r().Tell(ev) }

// View implements dovecot.Router.
func (r lateRouter) View(f func(*director.Director)) { r().View(f) }

// WaitSynced implements dovecot.Router.
func (r lateRouter) WaitSynced(ctx context.Context) error { return r().WaitSynced(ctx) }
