package dovecot

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/template"
	"time"

	"usher/loader/netns"
)

// DirectorPort is where the ring's members listen.
const DirectorPort = 9090

// DirectorOptions describe a director.
type DirectorOptions struct {
	Name       string        // instance name; default "director"
	Service    netip.Addr    // clients connect to its ports 143 and 110; backends are reached at the same ports
	Ring       netip.Addr    // its own address in the ring
	Members    []netip.Addr  // director_servers; Ring is added if it is not among them
	Hosts      []string      // director_mail_servers
	UserExpire time.Duration // whole seconds; default 15m
	KickDelay  time.Duration // whole seconds; default 1s
	Extra      string        // lines added at the end of the configuration
}

// Director is a running director: Dovecot's master with its director, login and auth processes.
type Director struct {
	Server
	Admin
	Ring netip.AddrPort
}

//go:embed director.conf.tmpl
var directorText string

var directorConf = template.Must(template.New("director.conf").Parse(directorText))

// StartDirector runs one director inside a namespace; what Start says about dir, and about the end of the process, is
// true here too. When it returns, the director process itself has been started (Dovecot does that at the
// first connection), and is about to find its neighbours: AwaitSync waits for that.
func StartDirector(ns *netns.NS, dir string, o DirectorOptions) (*Director, error) {
	if o.Name == "" {
		o.Name = "director"
	}
	if o.UserExpire == 0 {
		o.UserExpire = 15 * time.Minute
	}
	if o.KickDelay == 0 {
		o.KickDelay = time.Second
	}
	members := slices.Clone(o.Members)
	if !slices.Contains(members, o.Ring) {
		members = append(members, o.Ring)
	}
	d := &Director{Server: Server{Dir: dir, Addrs: []netip.Addr{o.Service}}, Ring: netip.AddrPortFrom(o.Ring, DirectorPort)}
	d.Admin = Admin{config: d.configFile()}
	err := d.start(ns, o.Name, directorConf, struct {
		DirectorOptions
		Dir, Addrs, Servers, Hosts string
		Expire, Delay              int
	}{o, dir, join(d.Addrs), join(members), strings.Join(o.Hosts, " "), seconds(o.UserExpire), seconds(o.KickDelay)})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if _, err := d.Doveadm(ctx, "status"); err != nil {
		d.Stop()
		return nil, fmt.Errorf("start director %s: %w\n%s", o.Name, err, d.Log())
	}
	return d, nil
}

func seconds(d time.Duration) int { return int(d / time.Second) }
