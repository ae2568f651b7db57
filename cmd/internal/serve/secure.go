package serve

import (
	"context"
	"crypto/tls"
	"os"
	"os/signal"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"usher/cmd/internal/config"
	"usher/steer/secure"
)

// openTLS reads what the configuration has for clients, nil when no listener has TLS, and for backends. The latter are
// always there: the auth driver may want TLS with a backend although no listener does.
func openTLS(cfg *config.Config, log zerolog.Logger) (*secure.Certificates, *secure.Backends, error) {
	version := uint16(tls.VersionTLS12)
	if cfg.TLS.MinVersion == "1.3" {
		version = tls.VersionTLS13
	}
	backends, err := secure.OpenBackends(secure.BackendsConfig{CA: cfg.TLS.BackendCA, MinVersion: version})
	if err != nil {
		return nil, nil, err
	}
	if !slices.ContainsFunc(cfg.Listeners, func(l config.Listener) bool { return l.TLS != "none" }) {
		return nil, backends, nil
	}
	c := secure.CertificatesConfig{
		Pairs:      []secure.Pair{{Certificate: cfg.TLS.Certificate, Key: cfg.TLS.Key, Staple: cfg.TLS.Staple}},
		MinVersion: version, ClientCA: cfg.TLS.ClientCA, Log: log,
	}
	for _, p := range cfg.TLS.Pairs {
		c.Pairs = append(c.Pairs, secure.Pair(p))
	}
	certificates, err := secure.OpenCertificates(c)
	return certificates, backends, err
}

// hangups reads the certificates again at each SIGHUP, which those who renew them like to send. Changed files are found
// without it, only some seconds later; the same is true of the passwd-file.
func hangups(certificates *secure.Certificates, log zerolog.Logger) func(context.Context) error {
	// From here on the signal does not end the process any more.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	return func(ctx context.Context) error {
		defer signal.Stop(hup)
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hup:
			}
			if certificates == nil {
				continue
			}
			if err := certificates.Reload(); err != nil {
				log.Error().Err(err).Msg("SIGHUP: certificates are broken, the old ones stay in use")
				continue
			}
			log.Info().Time("expires", certificates.Expiry()).Msg("certificates loaded after SIGHUP")
		}
	}
}

// expiryMetric is a metric of the moment in which the first certificate ends.
func expiryMetric(certificates *secure.Certificates) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "usher_tls_certificate_expiry_seconds", Help: "When the first of the certificates that clients are shown ends, in seconds since 1970.",
	}, func() float64 { return float64(certificates.Expiry().Unix()) })
}
