package site

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"usher/loader/netns"
	"usher/testenv/backend"
	"usher/testenv/client"
	"usher/testenv/cluster"
	"usher/testenv/dovecot"
)

// Kind is which program a member of a ring is.
type Kind string

// The kinds.
const (
	Usher   Kind = "usher"
	Dovecot Kind = "dovecot" // the directors of Dovecot 2.3, which must be installed
)

// ringPort is where members listen.
const ringPort = dovecot.DirectorPort

// RingOptions describe a site with a ring of directors. Members says how many there are, and of which kind.
type RingOptions struct {
	Members    []Kind
	Backends   int           // default 3
	UserExpire time.Duration // of all members, whole seconds; default 15m
	KickDelay  time.Duration // of all members, whole seconds; default 1s
	// Site has what the Usher members' configurations have besides: Command, Env, Mode, MaxFlows, and further lines
	// for the tables.
	Site Options
}

// Ring is a site with several directors, each in a namespace of its own, in front of scripted backends. The
// members are started by Start, one by one.
type Ring struct {
	Cluster  *cluster.Cluster
	Backends []*backend.Server
	Hosts    []netip.Addr // addresses of the backends
	Members  []*Member

	options RingOptions
}

// Member is the place of one director. What it runs may be replaced.
type Member struct {
	Node cluster.Node
	Addr netip.AddrPort // in the ring
	Kind Kind
	// Daemon is the Usher, nil for a Dovecot.
	Daemon *Daemon
	// Admin is the director-admin socket of the member that runs, whatever it is.
	Admin dovecot.Admin

	ring    *Ring
	index   int
	dovecot *dovecot.Director // that runs
	dirs    []string          // of Dovecots, to be removed
}

// NewRing builds everything but the members' processes.
func NewRing(o RingOptions) (_ *Ring, err error) {
	if o.UserExpire == 0 {
		o.UserExpire = 15 * time.Minute
	}
	if o.KickDelay == 0 {
		o.KickDelay = time.Second
	}
	r := &Ring{options: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.Cluster, err = cluster.New(cluster.Options{Nodes: len(o.Members), Backends: o.Backends}); err != nil {
		return nil, err
	}
	r.Hosts = r.Cluster.Backends
	for _, a := range r.Hosts {
		b, err := backend.Start(r.Cluster.Backend, a, backend.Options{})
		if err != nil {
			return nil, err
		}
		r.Backends = append(r.Backends, b)
	}
	for i, kind := range o.Members {
		n := r.Cluster.Nodes[i]
		m := &Member{Node: n, Addr: netip.AddrPortFrom(n.Ring, ringPort), ring: r, index: i}
		r.Members = append(r.Members, m)
		if err := m.Become(kind); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Become makes a member, which must not run, one of this kind. An Usher that it was leaves nothing.
func (m *Member) Become(kind Kind) (err error) {
	if m.Daemon != nil {
		if err := m.Daemon.remove(); err != nil {
			return err
		}
		m.Daemon = nil
	}
	m.Kind = kind
	if kind == Dovecot {
		return nil
	}
	o := m.ring.options.Site
	if m.Daemon, err = newDaemon(m.Node.NS, o.Command, o.Env); err != nil {
		return err
	}
	base := filepath.Join(m.Daemon.Dir, "dovecot")
	if err := os.Mkdir(base, 0o755); err != nil {
		return err
	}
	if m.Admin, err = dovecot.NewAdmin(m.Daemon.Dir, filepath.Join(base, "director-admin")); err != nil {
		return err
	}
	servers := make([]string, len(m.ring.Cluster.Nodes))
	for i, n := range m.ring.Cluster.Nodes {
		servers[i] = netip.AddrPortFrom(n.Ring, ringPort).String()
	}
	o.UserExpire, o.KickDelay = m.ring.options.UserExpire, m.ring.options.KickDelay
	o.Director += fmt.Sprintf("\nservers = [%s]\nring_listen = %q\n", quoted(servers), m.Addr)
	o.Tables += fmt.Sprintf("\n[dovecot]\nbase_dir = %q\n", base)
	listeners := []listener{{"imap", m.Service(client.IMAP)}, {"pop3", m.Service(client.POP3)}}
	return m.Daemon.configure(o, m.ring.Hosts, listeners)
}

// Service returns where clients of a protocol connect.
func (m *Member) Service(p client.Protocol) netip.AddrPort {
	if p == client.POP3 {
		return netip.AddrPortFrom(m.Node.Service, 110)
	}
	return netip.AddrPortFrom(m.Node.Service, 143)
}

// Client is the configuration of a client's session at this member.
func (m *Member) Client(user string) client.Config {
	return client.Config{NS: m.ring.Cluster.Client, Server: m.Service(client.IMAP), User: user}
}

// Start starts the member's process and waits until it serves clients; the ring is another matter (AwaitSync).
func (m *Member) Start(ctx context.Context) error {
	if m.Kind == Usher {
		return m.Daemon.Start(ctx)
	}
	// Its login processes are other users, and must be able to pass.
	dir, err := os.MkdirTemp("", "usher-dovecot-")
	if err != nil {
		return err
	}
	m.dirs = append(m.dirs, dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	var members []netip.Addr
	for _, n := range m.ring.Cluster.Nodes {
		members = append(members, n.Ring)
	}
	hosts := make([]string, len(m.ring.Hosts))
	for i, h := range m.ring.Hosts {
		hosts[i] = h.String()
	}
	m.dovecot, err = dovecot.StartDirector(m.Node.NS, dir, dovecot.DirectorOptions{
		Name: fmt.Sprint("d", m.index), Service: m.Node.Service, Ring: m.Node.Ring, Members: members, Hosts: hosts,
		UserExpire: m.ring.options.UserExpire, KickDelay: m.ring.options.KickDelay,
	})
	if err == nil {
		m.Admin = m.dovecot.Admin
	}
	return err
}

// Running reports whether the member's process runs.
func (m *Member) Running() bool {
	return m.dovecot != nil || m.Daemon != nil && m.Daemon.Pid() != 0
}

// Stop ends the member's process in good order.
func (m *Member) Stop() error {
	if m.dovecot != nil {
		defer func() { m.dovecot = nil }()
		return m.dovecot.Stop()
	}
	return m.Daemon.Stop()
}

// Kill ends it without a warning.
func (m *Member) Kill() error {
	if m.dovecot != nil {
		m.dovecot.Kill()
		m.dovecot = nil
		return nil
	}
	return m.Daemon.Kill()
}

// Log returns the end of what the member has logged.
func (m *Member) Log(lines int) string {
	if m.Kind == Usher {
		return m.Daemon.LogTail(lines)
	}
	if m.dovecot == nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(m.dovecot.Log(), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Twice returns the users who have live sessions at more than one backend, sorted: there should be none.
func (r *Ring) Twice() []string {
	at := map[string]int{}
	for _, b := range r.Backends {
		for user := range b.Live() {
			at[user]++
		}
	}
	maps.DeleteFunc(at, func(_ string, n int) bool { return n < 2 })
	return slices.Sorted(maps.Keys(at))
}

// Live returns how many live sessions a user has at a backend.
func (r *Ring) Live(host netip.Addr, user string) int {
	i := slices.Index(r.Hosts, host)
	if i < 0 {
		return 0
	}
	return r.Backends[i].Live()[user]
}

// Close ends everything and removes it.
func (r *Ring) Close() error {
	var errs []error
	for _, m := range r.Members {
		if m.dovecot != nil {
			errs = append(errs, m.Stop())
		}
		if m.Daemon != nil {
			errs = append(errs, m.Daemon.remove())
		}
		for _, dir := range m.dirs {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	for _, b := range r.Backends {
		errs = append(errs, b.Close())
	}
	if r.Cluster != nil {
		errs = append(errs, r.Cluster.Close())
	}
	return errors.Join(errs...)
}

// AvailableRing says why a site with members of these kinds cannot be built here, or nil.
func AvailableRing(members ...Kind) error {
	if err := netns.Available(); err != nil {
		return err
	}
	if slices.Contains(members, Dovecot) {
		return dovecot.Available()
	}
	return nil
}
