package dovecot

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"usher/director"
	"usher/director/ring"
)

// replies are the texts that Dovecot's director has for errors of hosts.
var replies = []struct {
	err  error
	text string
}{
	{director.ErrWeight, "vhost count too large"},
	{director.ErrTagChange, "host tag can't be changed"},
	{director.ErrHostBusy, "host is already being updated - try again later"},
}

// nobody is what a director without a ring calls itself (config.md section 1).
var nobody = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)

// directorList has a line for each connection, and one for each director without any.
func (r *request) directorList() error {
	now := time.Now()
	s := r.director.Ring()
	if !s.Self.IsValid() {
		s.Self = nobody
		s.Directors = []ring.Member{{Addr: nobody}}
	}
	for _, c := range s.Conns {
		if !c.Remote.IsValid() {
			r.line("%s", connection(c)) // who it is has not been said yet
		}
	}
	directors := slices.Clone(s.Directors)
	slices.SortFunc(directors, func(a, b ring.Member) int { return a.Addr.Compare(b.Addr) })
	for _, d := range directors {
		if d.Addr == s.Self {
			r.line("%v\t%d\tself\t%d\t%s\t%d", d.Addr.Addr(), d.Addr.Port(), unix(d.LastFailed), selfState(s, now), s.SyncTime.Milliseconds())
			continue
		}
		conns := slices.DeleteFunc(slices.Clone(s.Conns), func(c ring.ConnStatus) bool { return c.Remote != d.Addr })
		slices.SortStableFunc(conns, func(a, b ring.ConnStatus) int { return cmp.Compare(a.Conn, b.Conn) })
		for _, c := range conns {
			r.line("%v\t%d\t%s\t%d\t%s", d.Addr.Addr(), d.Addr.Port(), c.Role, unix(d.LastFailed), connection(c))
		}
		if len(conns) == 0 {
			role := ""
			if d.Removed {
				role = "removed"
			}
			r.line("%v\t%d\t%s\t%d\t", d.Addr.Addr(), d.Addr.Port(), role, unix(d.LastFailed))
		}
	}
	return r.line("")
}

func selfState(s ring.Status, now time.Time) string {
	switch {
	case !s.Handshaked:
		return "ring handshaking"
	case s.Synced:
		return "ring synced"
	}
	return fmt.Sprintf("ring syncing - last sync %d secs ago", int64(now.Sub(s.LastSync).Seconds()))
}

func connection(c ring.ConnStatus) string {
	state := c.State
	if state == "handshaking" {
		what := "sent"
		if c.Incoming {
			what = "received"
		}
		state = fmt.Sprintf("handshaking - %d USERs %s", c.Users, what)
	}
	return fmt.Sprintf("%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d", state, c.Ping.Milliseconds(), c.Received, c.Sent, c.Queued, c.QueuedPeak, unix(c.LastRead), unix(c.LastWrite))
}

// member is the director that arguments 0 and 1 name; port 0 if there is none.
func (r *request) member() (netip.AddrPort, error) {
	ip, err := r.ip(0)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port uint32
	if len(r.args) > 1 {
		if port, err = r.number(1); err != nil || port == 0 || port > 65535 {
			return netip.AddrPort{}, fmt.Errorf("%q is no port", r.arg(1))
		}
	}
	return netip.AddrPortFrom(ip, uint16(port)), nil
}

// directorAdd waits for the ring before, but not after.
func (r *request) directorAdd() error {
	m, err := r.member()
	if err != nil {
		return err
	}
	if err := r.waitSynced(); err != nil {
		return r.line(timedOut)
	}
	return r.reply(r.director.RingAdd(m))
}

func (r *request) directorRemove() error {
	m, err := r.member()
	if err != nil {
		return err
	}
	return r.synced(func() error { return r.director.RingRemove(m) })
}
