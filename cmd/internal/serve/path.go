package serve

import (
	"net/netip"

	"github.com/rs/zerolog"

	"usher/cmd/internal/config"
	"usher/loader"
	"usher/steer"
	"usher/steer/auth"
	"usher/steer/auth/penalty"
	"usher/steer/prelogin"
	"usher/steer/route"
	"usher/steer/secure"
)

// path is what a session meets on its way, beside the listener that it came through.
type path struct {
	route        route.Config
	auth         auth.Driver
	penalty      *penalty.Table
	certificates *secure.Certificates // nil: no listener has TLS
	backends     *secure.Backends
	kernel       *loader.Kernel // nil: user space only
}

// newServer makes the server of the configuration's listeners.
func newServer(cfg *config.Config, p path, log zerolog.Logger) (*steer.Server, error) {
	sc := steer.Config{
		Name: cfg.Director.Name, Auth: p.auth, Penalty: p.penalty, Mechanisms: cfg.Auth.Mechanisms, Trusted: prefixes(cfg.Auth.TrustedNetworks),
		Certificates: p.certificates, Backends: p.backends,
		Route: p.route, Sources: cfg.Steer.SourceAddresses,
		UserMode: steer.ModeSplice, Quiet: cfg.Steer.Quiet.Std, IdleTimeout: cfg.Steer.IdleTimeout.Std(),
		Limits: limits(cfg.Limits), Log: log,
	}
	if cfg.Steer.Mode == "copy" {
		sc.UserMode = steer.ModeCopy
	}
	sc.Route.Store = route.Forgetful{}
	if p.kernel != nil {
		sc.Kernel, sc.Route.Store = p.kernel, p.kernel
	}
	for _, l := range cfg.Listeners {
		sc.Listeners = append(sc.Listeners, steer.Listener{
			Protocol: l.Protocol, Address: l.Address.AddrPort, BackendPort: uint16(l.BackendPort),
			Plaintext: !l.DisablePlaintextAuth, MaxConnections: l.MaxConnections, MaxPerAddress: l.MaxConnectionsPerAddress,
			TLS: steer.TLSMode(l.TLS), BackendTLS: steer.TLSMode(l.BackendTLS), Forward: l.ForwardClient,
			ProxyFrom: prefixes(l.ProxyProtocolFrom), ProxyBackend: l.BackendProxyProtocol,
			Delimiter: l.RecipientDelimiter, MaxMail: int64(l.MaxMail),
		})
	}
	return steer.New(sc)
}

func limits(l config.Limits) prelogin.Limits {
	return prelogin.Limits{
		Line: int(l.Line), Literal: int(l.Literal), Bytes: int(l.Bytes), Commands: l.Commands, Invalid: l.Invalid, Attempts: l.Attempts,
		Idle: l.Idle.Std(), Whole: l.Whole.Std(),
	}
}

func prefixes(networks []config.Network) (all []netip.Prefix) {
	for _, n := range networks {
		all = append(all, n.Prefix)
	}
	return all
}
