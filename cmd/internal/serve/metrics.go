package serve

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"usher/director"
	"usher/steer"
	"usher/steer/prelogin"
)

// metrics reads the state when it is scraped; nothing is counted twice.
type metrics struct{ site *site }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("usher_"+name, help, labels, nil)
}

var (
	descUsers    = desc("director_users", "Entries of users.")
	descMoving   = desc("director_moving", "Entries that are being moved.")
	descWaiting  = desc("director_waiting", "Logins that wait for the ring or for the end of a move.")
	descConflict = desc("director_conflicts_total", "Users that were found on two hosts; should be 0.")
	descSynced   = desc("ring_synced", "Whether the ring agrees about hosts and members.")
	descMembers  = desc("ring_directors", "Directors in the ring, this one included.")
	descSilent   = desc("ring_silent", "Whether a director owes an answer for longer than usual.", "director")
	descClock    = desc("ring_clock_difference_seconds", "A director's clock minus ours, when it connected.", "director")
	descQueued   = desc("ring_queued_bytes", "Bytes that wait to be written to a director.", "director", "role")
	descLag      = desc("ring_lag_seconds", "Age of the oldest byte that waits to be written to a director.", "director", "role")
	descHostUp   = desc("director_host_up", "Whether a backend is up.", "host", "tag")
	descWeight   = desc("director_host_weight", "Weight (vhosts) of a backend.", "host", "tag")
	descHostUser = desc("director_host_users", "Entries that point to a backend.", "host", "tag")
	descSessions = desc("steer_sessions", "Sessions by mode; mode prelogin: before their login.", "mode")
	descStay     = desc("steer_stay_sessions", "Sessions in user space by the reason why the kernel does not carry them.", "reason")
	descAccepted = desc("steer_accepted_total", "Accepted connections.")
	descTooMany  = desc("steer_too_many_total", "Connections refused by max_connections and max_connections_per_address.")
	descTLS      = desc("steer_tls_handshake_failures_total", "TLS handshakes with clients that failed.")
	descProxy    = desc("steer_proxy_header_failures_total", "Connections without the PROXY header that they had to have.")
	descLogins   = desc("steer_logins_total", "Sessions that were logged in at a backend.")
	descRefused  = desc("steer_refused_total", "Refused logins by kind.", "kind")
	descEnded    = desc("steer_ended_total", "Ended sessions by mode, and by the reason for not being in the kernel.", "mode", "reason")
	descHandOver = desc("steer_handover_total", "Sessions handed over to the kernel.")
	descUndone   = desc("steer_handover_undone_total", "Hand-overs that were undone.")
	descAdopted  = desc("steer_adopted_total", "Sessions found in the kernel at the start.")
	descPackets  = desc("kernel_packets_total", "Packets by verdict of the kernel programs.", "verdict")
	descBytes    = desc("kernel_bytes_total", "Bytes of the frames by verdict of the kernel programs.", "verdict")
	descMode     = desc("kernel_mode_info", "What new sessions aim at; 1.", "mode")
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := m.site.server
	s.Router.View(func(d *director.Director) {
		gauge(descUsers, float64(d.Users()))
		gauge(descMoving, float64(d.Moving()))
		gauge(descWaiting, float64(d.LookupsWaiting()))
		counter(descConflict, uint64(d.Conflicts()))
		for _, h := range d.Hosts() {
			gauge(descHostUp, oneIf(h.Up), h.Addr.String(), h.Tag)
			gauge(descWeight, float64(h.Weight), h.Addr.String(), h.Tag)
			gauge(descHostUser, float64(h.Users), h.Addr.String(), h.Tag)
		}
	})
	if len(m.site.orders.members) > 0 {
		m.ring(gauge)
	}
	counts := s.Counts()
	for _, mode := range steer.Modes {
		gauge(descSessions, float64(counts.ByMode[mode]), string(mode))
	}
	gauge(descSessions, float64(counts.Prelogin), "prelogin")
	for reason, n := range s.StayReasons() {
		gauge(descStay, float64(n), string(reason))
	}
	counter(descAccepted, s.Stats.Accepted.Load())
	counter(descTooMany, s.Stats.TooMany.Load())
	counter(descTLS, s.Stats.TLSFailed.Load())
	counter(descProxy, s.Stats.ProxyFailed.Load())
	counter(descLogins, s.Stats.Logins.Load())
	counter(descHandOver, s.Stats.HandOver.Load())
	counter(descUndone, s.Stats.Undone.Load())
	counter(descAdopted, s.Stats.Adopted.Load())
	s.Stats.Refused(func(k prelogin.Kind, n uint64) { counter(descRefused, n, k.String()) })
	s.Stats.Ended(func(e steer.End, n uint64) { counter(descEnded, n, string(e.Mode), string(e.Reason)) })
	gauge(descMode, 1, string(m.site.mode()))
	if m.site.kernel == nil {
		return
	}
	verdicts, err := m.site.kernel.Counters()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descPackets, err)
		return
	}
	for name, c := range verdicts {
		counter(descPackets, c.Packets, name)
		counter(descBytes, c.Bytes, name)
	}
}

// ring is what the ring adds.
func (m *metrics) ring(gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	st := m.site.orders.Ring()
	members := 0
	for _, d := range st.Directors {
		if d.Removed {
			continue
		}
		members++
		if d.Addr != st.Self {
			gauge(descSilent, oneIf(slices.Contains(st.Silent, d.Addr)), d.Addr.String())
			gauge(descClock, d.ClockDiff.Seconds(), d.Addr.String())
		}
	}
	gauge(descMembers, float64(members))
	gauge(descSynced, oneIf(st.Synced))
	for _, c := range st.Conns {
		// Others come and go, and may be there twice for a moment.
		if c.Role == "left" || c.Role == "right" {
			gauge(descQueued, float64(c.Queued), c.Remote.String(), c.Role)
			gauge(descLag, c.Lag.Seconds(), c.Remote.String(), c.Role)
		}
	}
}
