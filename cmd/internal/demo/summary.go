package demo

import (
	"fmt"
	"net/netip"
	"time"
)

// summary is what --json prints.
type summary struct {
	OK       bool      `json:"ok"` // every act came to its right end
	Site     string    `json:"site"`
	Backends string    `json:"backends"`
	Why      string    `json:"why"`    // not in namespaces; empty: it is
	Mode     string    `json:"mode"`   // that sessions aimed at
	Reason   string    `json:"reason"` // of the mode, as in usher status
	ElapsedS float64   `json:"elapsed_s"`
	Users    int       `json:"users"`
	Sessions int       `json:"sessions"` // at most, at the same time
	Hosts    []hostSum `json:"hosts"`    // at that time
	Kernel   struct {
		Program string `json:"program"`
		Packets uint64 `json:"packets"` // forwarded
		Bytes   uint64 `json:"bytes"`
	} `json:"kernel"`
	Clients struct {
		Commands uint64 `json:"commands"` // that were answered, and the answer was right
		Errors   int    `json:"errors"`   // that no act expected
	} `json:"clients"`
	Usher struct {
		CPUS    float64 `json:"cpu_s"`    // of all daemons together
		CPUMost float64 `json:"cpu_most"` // percent of one CPU, over two seconds
		RSSMost uint64  `json:"rss_most"` // bytes
	} `json:"usher"`
	Acts  []actSum `json:"acts"`
	Error string   `json:"error"` // that belongs to no act
}

type hostSum struct {
	Address  netip.Addr `json:"address"`
	Users    int        `json:"users"`
	Sessions int        `json:"sessions"`
}

type actSum struct {
	Name    string  `json:"name"`
	OK      bool    `json:"ok"`
	Text    string  `json:"text"`  // what happened
	Error   string  `json:"error"` // in full
	Seconds float64 `json:"seconds"`
}

func (s *scene) summary() summary {
	c := &s.sample
	r := summary{
		OK: s.err == nil && !s.built.IsZero(), Site: s.site, Backends: s.backends, Why: s.why, Mode: s.kernel.Mode, Reason: s.kernel.Reason,
		ElapsedS: time.Since(s.begin).Seconds(), Users: s.o.Users, Sessions: s.peak.sessions, Hosts: []hostSum{}, Acts: []actSum{},
	}
	for _, h := range s.peak.hosts {
		r.Hosts = append(r.Hosts, hostSum{h.addr, h.users, h.sessions})
	}
	r.Kernel.Program, r.Kernel.Packets, r.Kernel.Bytes = s.kernel.Program, c.packets, c.bytes
	r.Clients.Commands, r.Clients.Errors = c.commands, c.failed
	r.Usher.CPUS, r.Usher.CPUMost, r.Usher.RSSMost = s.peak.cpuTime.Seconds(), s.peak.cpu, s.peak.rss
	for _, a := range s.acts {
		sum := actSum{Name: a.name, OK: a.state == passed, Text: a.text, Seconds: a.took.Seconds()}
		if a.err != nil {
			sum.Error = a.err.Error()
		}
		r.OK = r.OK && sum.OK
		r.Acts = append(r.Acts, sum)
	}
	if s.err != nil {
		r.Error = s.err.Error()
	}
	return r
}

// result is the last line of the view.
func (s *scene) result() string {
	sum := s.summary()
	if !sum.OK {
		good := 0
		for _, a := range sum.Acts {
			if a.OK {
				good++
			}
		}
		if s.interrupted && s.err == nil {
			return fmt.Sprintf("Stopped after %d of %d acts; nothing is left behind.", good, len(sum.Acts))
		}
		return fmt.Sprintf("%d of %d acts came to their right end", good, len(sum.Acts))
	}
	return "Everything that was shown was right."
}
