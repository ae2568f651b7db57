package serve

import (
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
	descHostUp   = desc("director_host_up", "Whether a backend is up.", "host", "tag")
	descWeight   = desc("director_host_weight", "Weight (vhosts) of a backend.", "host", "tag")
	descHostUser = desc("director_host_users", "Entries that point to a backend.", "host", "tag")
	descSessions = desc("steer_sessions", "Sessions by mode; mode prelogin: before their login.", "mode")
	descStay     = desc("steer_stay_sessions", "Sessions in user space by the reason why the kernel does not carry them.", "reason")
	descAccepted = desc("steer_accepted_total", "Accepted connections.")
	descTooMany  = desc("steer_too_many_total", "Connections refused by max_connections.")
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
		for _, h := range d.Hosts() {
			up := 0.0
			if h.Up {
				up = 1
			}
			gauge(descHostUp, up, h.Addr.String(), h.Tag)
			gauge(descWeight, float64(h.Weight), h.Addr.String(), h.Tag)
			gauge(descHostUser, float64(h.Users), h.Addr.String(), h.Tag)
		}
	})
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
