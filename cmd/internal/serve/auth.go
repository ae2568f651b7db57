package serve

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"usher/cmd/internal/config"
	"usher/steer/auth"
	authdovecot "usher/steer/auth/dovecot"
	"usher/steer/auth/httphook"
	"usher/steer/auth/penalty"
)

// newAuth makes the driver that the configuration names.
func newAuth(cfg config.Auth, log zerolog.Logger) (auth.Driver, error) {
	// The separator cuts names even where there is no master user.
	master := auth.Master{User: cfg.MasterUser, Separator: cfg.UserSeparator}
	if cfg.MasterPasswordFile != "" {
		b, err := os.ReadFile(cfg.MasterPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("auth.master_password_file: %w", err)
		}
		master.Password = strings.TrimRight(string(b), "\r\n")
	}
	log = log.With().Str("auth", cfg.Driver).Logger()
	switch cfg.Driver {
	case "passwd-file":
		return auth.OpenPasswdFile(cfg.File, master, log)
	case "http":
		header, err := readHeader(cfg.HeaderFile)
		if err != nil {
			return nil, fmt.Errorf("auth.header_file: %w", err)
		}
		return httphook.New(httphook.Config{
			URL: cfg.URL, CA: cfg.CA, Header: header, PassClientCert: cfg.PassClientCert, Timeout: cfg.Timeout.Std(), Master: master, Log: log,
		})
	case "dovecot":
		return authdovecot.New(authdovecot.Config{
			LoginSocket: cfg.LoginSocket, UserSocket: cfg.Socket, Timeout: cfg.Timeout.Std(),
			// Dovecot would punish one address, ours or the client's, a second time.
			NoPenalty: true, Master: master, Log: log,
		})
	}
	return auth.Static{NoPassword: cfg.NoPassword, Host: cfg.Host, Separator: cfg.UserSeparator}, nil
}

// readHeader reads lines "Name: value"; empty lines and those that begin with # are left out.
func readHeader(path string) (http.Header, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("%s line %d: want \"Name: value\"", path, number) // it is a secret: not repeated
		}
		header.Add(name, strings.TrimSpace(value))
	}
	return header, lines.Err()
}

// newPenalty makes the table of what failed logins cost.
func newPenalty(cfg config.Auth) *penalty.Table {
	u := cfg.UnknownUsers
	c := penalty.Config{
		FailureDelay: cfg.FailureDelay.Std(), Exempt: prefixes(cfg.TrustedNetworks),
		PerAddress: penalty.Rate{PerSecond: float64(u.PerAddress), Burst: u.PerAddressBurst},
		Total:      penalty.Rate{PerSecond: float64(u.Total), Burst: u.TotalBurst},
	}
	if c.FailureDelay == 0 {
		c.FailureDelay = -1 // there, 0 is the default
	}
	return penalty.New(c)
}

var (
	descPenaltyAddresses = desc("penalty_addresses", "Addresses in the table of failed logins and unknown names.")
	descPenaltyFailed    = desc("penalty_failed_total", "Logins with a wrong password.")
	descPenaltyDelayed   = desc("penalty_delayed_total", "Attempts that waited because of earlier ones of their address.")
	descPenaltyBusy      = desc("penalty_busy_total", "Attempts refused because too many of their address waited.")
	descProvisional      = desc("penalty_provisional_total", "Logins with unknown names that the backend was to verify, by what became of them: accepted, refused by a backend or still on their way (other), or not made because there were too many (rate).", "result")
)

// penaltyMetrics reads the table when it is scraped.
type penaltyMetrics struct{ table *penalty.Table }

// Describe implements prometheus.Collector.
func (m *penaltyMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *penaltyMetrics) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	s := m.table.Stats()
	ch <- prometheus.MustNewConstMetric(descPenaltyAddresses, prometheus.GaugeValue, float64(s.Addresses))
	counter(descPenaltyFailed, s.Failed)
	counter(descPenaltyDelayed, s.Delayed)
	counter(descPenaltyBusy, s.Busy)
	counter(descProvisional, s.Accepted, "accepted")
	counter(descProvisional, s.Provisional-s.Accepted, "other")
	counter(descProvisional, s.Rate, "rate")
}
