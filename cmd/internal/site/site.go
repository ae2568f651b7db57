// Package site runs a whole site on one machine: clients, a director node with a
// real `usher serve` process, and backends. `usher demo`, the end-to-end tests and
// the benchmark use it.
//
// As root the three live in network namespaces (package testenv/lab) and the
// daemon has a bpffs of its own; otherwise everything is on loopback addresses, and
// the daemon stays in user space.
package site

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"usher/loader/netns"
	"usher/testenv/backend"
	"usher/testenv/client"
	"usher/testenv/lab"
)

// Options describe a site. The zero value is a usable one.
type Options struct {
	Lab      lab.Options
	Loopback bool     // no namespaces
	Command  []string // runs the usher command; default: this executable
	// NoBackends leaves the backends' addresses to others, such as real mail servers.
	NoBackends bool

	Mode       string        // [steer] mode; default "auto"
	UserExpire time.Duration // default 15m
	KickDelay  time.Duration // default 100ms
	MaxFlows   int           // [steer] max_flows; default 200000
	Director   string        // further lines for the tables
	Backend    string
	Steer      string
	Auth       string
	Tables     string   // further tables
	Env        []string // for the daemon
}

// Site is a running site. Its daemon is started by Start.
type Site struct {
	*Daemon
	Lab      *lab.Lab // nil on loopback
	Backends []*backend.Server
	Hosts    []netip.Addr // addresses of the backends

	options Options
	net     lab.Net
	imap    uint16
	pop3    uint16
}

// New builds everything but the daemon.
func New(o Options) (_ *Site, err error) {
	s := &Site{options: o, imap: 143, pop3: 110}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if o.Loopback {
		err = s.loopback()
	} else {
		err = s.namespaces()
	}
	if err != nil {
		return nil, err
	}
	var ns *netns.NS
	if s.Lab != nil {
		ns = s.Lab.Director
	}
	if s.Daemon, err = newDaemon(ns, o.Command, o.Env); err != nil {
		return nil, err
	}
	listeners := []listener{{"imap", s.Service(client.IMAP)}, {"pop3", s.Service(client.POP3)}}
	return s, s.configure(o, s.Hosts, listeners)
}

func (s *Site) namespaces() (err error) {
	// One family: a user of IPv4 on an IPv6 backend could not be spliced.
	if s.options.Lab.Family == 0 {
		s.options.Lab.Family = 4
	}
	if s.Lab, err = lab.New(s.options.Lab); err != nil {
		return err
	}
	s.net = s.Lab.Net(s.options.Lab.Family)
	return s.backends(s.Lab.Backend)
}

// loopback uses the addresses of 127/8 as hosts.
func (s *Site) loopback() error {
	n := max(s.options.Lab.Backends, 3)
	s.net = lab.Net{Service: netip.MustParseAddr("127.0.0.1")}
	for i := range n {
		s.net.Backends = append(s.net.Backends, netip.AddrFrom4([4]byte{127, 0, 0, byte(2 + i)}))
	}
	var err error
	if s.imap, err = freePort(s.net); err != nil {
		return err
	}
	if s.pop3, err = freePort(s.net); err != nil {
		return err
	}
	return s.backends(nil)
}

// freePort finds a port that is free on all addresses.
func freePort(n lab.Net) (uint16, error) {
	for range 100 {
		first, err := net.Listen("tcp", netip.AddrPortFrom(n.Service, 0).String())
		if err != nil {
			return 0, err
		}
		port := first.Addr().(*net.TCPAddr).AddrPort().Port()
		open := []net.Listener{first}
		for _, a := range n.Backends {
			l, err := net.Listen("tcp", netip.AddrPortFrom(a, port).String())
			if err == nil {
				open = append(open, l)
			}
		}
		for _, l := range open {
			l.Close()
		}
		if len(open) == 1+len(n.Backends) {
			return port, nil
		}
	}
	return 0, errors.New("no port is free on all loopback addresses")
}

func (s *Site) backends(ns *netns.NS) error {
	s.Hosts = s.net.Backends
	if s.options.NoBackends {
		return nil
	}
	for _, a := range s.Hosts {
		b, err := backend.Start(ns, a, backend.Options{IMAPPort: int(s.imap), POP3Port: int(s.pop3)})
		if err != nil {
			return err
		}
		s.Backends = append(s.Backends, b)
	}
	return nil
}

// Service returns where clients of a protocol connect.
func (s *Site) Service(p client.Protocol) netip.AddrPort {
	if p == client.POP3 {
		return netip.AddrPortFrom(s.net.Service, s.pop3)
	}
	return netip.AddrPortFrom(s.net.Service, s.imap)
}

// Client is the configuration of a client's session.
func (s *Site) Client(user string) client.Config {
	c := client.Config{Server: s.Service(client.IMAP), User: user}
	if s.Lab != nil {
		c.NS = s.Lab.Client
	}
	return c
}

// Close ends everything and removes it.
func (s *Site) Close() error {
	var errs []error
	if s.Daemon != nil {
		errs = append(errs, s.remove())
	}
	for _, b := range s.Backends {
		errs = append(errs, b.Close())
	}
	if s.Lab != nil {
		errs = append(errs, s.Lab.Close())
	}
	return errors.Join(errs...)
}
