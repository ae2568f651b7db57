package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/loader/netns"
	"usher/testenv/client"
	"usher/testenv/dovecot"
)

// proxyPlace is where a Dovecot runs whose login processes ask an Usher. It may be started, stopped and started again.
type proxyPlace struct {
	*dovecot.Proxy
	dir     string
	ns      *netns.NS
	options dovecot.ProxyOptions
}

// newProxyPlace makes the directory of a proxy and puts a link to its base_dir at base.
func newProxyPlace(t testing.TB, ns *netns.NS, base string, o dovecot.ProxyOptions) *proxyPlace {
	t.Helper()
	if err := dovecot.Available(); err != nil {
		t.Skip(err)
	}
	parent := ""
	if o.Root != "" {
		parent = filepath.Join(o.Root, "var")
	}
	// Not t.TempDir: the login processes are other users.
	dir, err := os.MkdirTemp(parent, "usher-proxy-")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxyPlace{dir: dir, ns: ns, options: o}
	t.Cleanup(func() {
		if p.Proxy != nil {
			log := p.Log()
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
			for line := range strings.Lines(log) {
				fatal := strings.Contains(line, "Fatal:") || strings.Contains(line, "Panic:")
				if o.Root != "" && strings.Contains(line, "killed with signal 9") {
					fatal = false // how login processes of 2.4 with one client each are kicked
				}
				if fatal {
					t.Errorf("Dovecot %s: %s", o.Name, strings.TrimSpace(line))
				} else if t.Failed() {
					t.Logf("Dovecot %s: %s", o.Name, strings.TrimSpace(line))
				}
			}
		}
		os.RemoveAll(dir)
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(base); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(run, base); err != nil {
		t.Fatal(err)
	}
	return p
}

// start starts the Dovecot, while Usher runs or not.
func (p *proxyPlace) start(t testing.TB) {
	t.Helper()
	var err error
	if p.Proxy, err = dovecot.StartProxy(p.ns, p.dir, p.options); err != nil {
		t.Fatal(err)
	}
}

// stop ends it with its sessions.
func (p *proxyPlace) stop(t testing.TB) {
	t.Helper()
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	p.Proxy = nil
}

// served waits until Usher's sockets are there.
func (p *proxyPlace) served(t testing.TB) {
	t.Helper()
	for _, name := range []string{"login/director", "login/proxy-notify", "director-userdb"} {
		within(t, 10*time.Second, name+" is there", func() bool {
			_, err := os.Lstat(filepath.Join(p.dir, "run", name))
			return err == nil
		})
	}
}

// dropIns is a ring of Ushers, each beside a Dovecot whose login processes clients connect to.
type dropIns struct {
	*site.Ring
	proxies []*proxyPlace
}

// newDropIns builds it. The Dovecots with even numbers are started before their Ushers, the others after.
func newDropIns(t testing.TB, members string, o site.RingOptions, p dovecot.ProxyOptions) *dropIns {
	t.Helper()
	o.Members = kinds(members)
	d := &dropIns{Ring: newRing(t, o)}
	for i, m := range d.Members {
		p.Name, p.Address, p.IMAPPort, p.POP3Port = fmt.Sprint("p", i), m.Node.Service, 1143, 1110
		d.proxies = append(d.proxies, newProxyPlace(t, m.Node.NS, filepath.Join(m.Daemon.Dir, "dovecot"), p))
	}
	var all []int
	for i := range d.Members {
		all = append(all, i)
		if i%2 == 0 {
			d.proxies[i].start(t)
		}
	}
	startRing(t, d.Ring, all...)
	for i, p := range d.proxies {
		if i%2 == 1 {
			p.start(t)
		}
		p.served(t)
	}
	return d
}

// client is the configuration of a session through the Dovecot of a member.
func (d *dropIns) client(member int, p client.Protocol, user string) client.Config {
	c := d.Members[member].Client(user)
	c.Protocol, c.Server, c.Timeout = p, d.proxies[member].Port(string(p)), 70*time.Second
	return c
}

// login logs users in, each through all members by both protocols.
func (d *dropIns) login(t testing.TB, users ...string) map[string][]*client.Session {
	t.Helper()
	protocols := []client.Protocol{client.IMAP, client.POP3}
	each := len(d.Members) * len(protocols)
	sessions, report := client.DialAll(t.Context(), len(users)*each, 8, func(i int) client.Config {
		user, member, protocol := users[i/each], i%len(d.Members), protocols[i/len(d.Members)%2]
		c := d.client(member, protocol, user)
		c.Method = client.Methods[i%len(client.Methods)]
		return c
	})
	t.Cleanup(func() { client.CloseAll(sessions) })
	if err := report.Err(); err != nil {
		t.Fatalf("log in through Dovecot: %v", err)
	}
	of := map[string][]*client.Session{}
	for i, s := range sessions {
		of[users[i/each]] = append(of[users[i/each]], s)
	}
	return of
}

// at checks that sessions of a user live at a host and nowhere else.
func (d *dropIns) at(t testing.TB, user string, host netip.Addr, sessions int) {
	t.Helper()
	for _, h := range d.Hosts {
		want := 0
		if h == host {
			want = sessions
		}
		if n := d.Live(h, user); n != want {
			t.Errorf("%s has %d sessions at %v, want %d", user, n, h, want)
		}
	}
}
