package demo

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"usher/cmd/internal/cli"
)

// The words for the acts.
const (
	actLogin     = "log in"
	actHandOver  = "hand over"
	actUserSpace = "carry"
	actMove      = "move"
	actKick      = "kick"
	actKill      = "kill -9"
	actRestart   = "restart"
	actWeight    = "weight 0"
	actDown      = "host down"
	actStop      = "stop"
	actUnpin     = "unpin"
	actCleanUp   = "clean up"

	nameWidth = 9
)

// kernelSteps is the show when the kernel carries the sessions.
func (d *demo) kernelSteps() []step {
	return []step{
		d.loginStep(),
		{actHandOver, "the kernel takes the sessions over", 0.8, d.handOver},
		d.moveStep(), d.kickStep(),
		{actKill, "the daemon, without a warning; the kernel goes on alone", 3, d.killKernel},
		{actRestart, "the daemon adopts the sessions that it finds in the kernel", 1.6, d.restartKernel},
		d.weightStep(), d.downStep(),
		{actStop, "SIGTERM; the kernel keeps its sessions", 1.6, d.stopKernel},
		{actUnpin, "remove programs and maps from the kernel; the sessions end", 1.5, d.unpin},
		d.cleanUpStep(),
	}
}

// userSpaceSteps is the show when the daemon's process carries them: they live and die with it.
func (d *demo) userSpaceSteps() []step {
	return []step{
		d.loginStep(),
		{actUserSpace, "the daemon's process carries the sessions", 0.8, d.carry},
		d.moveStep(), d.kickStep(),
		{actKill, "the daemon, without a warning; its sessions end with it", 1.6, d.killUserSpace},
		{actRestart, "the clients log in again", 2.5, d.restartUserSpace},
		d.weightStep(), d.downStep(),
		{actStop, "SIGTERM; the sessions end with the daemon", 1, d.stopUserSpace},
		d.cleanUpStep(),
	}
}

func (d *demo) loginStep() step {
	return step{actLogin, fmt.Sprintf("%s, %s each", some(d.o.Users, "user"), some(d.o.Sessions, "session")), 2, d.login}
}

func (d *demo) moveStep() step {
	return step{actMove, fmt.Sprintf("usher user move %s: its sessions stop, it comes back elsewhere", d.moved()), 1.8, d.move}
}

func (d *demo) kickStep() step {
	return step{actKick, fmt.Sprintf("usher user kick %s: its sessions stop, it may come back at once", d.kicked()), 1.4, d.kick}
}

func (d *demo) weightStep() step {
	return step{actWeight, fmt.Sprintf("usher host update %v 0: new users go elsewhere", d.site.Hosts[1]), 1.6, d.weight}
}

func (d *demo) downStep() step {
	return step{actDown, fmt.Sprintf("usher host down %v: one host is left for new users", d.site.Hosts[2]), 1.6, d.down}
}

func (d *demo) cleanUpStep() step {
	return step{actCleanUp, "everything is removed", 0, func(context.Context, time.Time) (string, error) {
		return "no namespace, process, mount, pin or file is left", d.cleanUp()
	}}
}

// Who is moved and who is kicked: two of the guests; the same one when there is only one.
func (d *demo) moved() string  { return userName(min(7, d.o.Users)) }
func (d *demo) kicked() string { return userName(min(8, d.o.Users)) }

// newcomers is how many users come while a host takes none, each time.
func newcomers(o cli.DemoOptions) int { return min(max(o.Users/10, 6), 40) }

// login fills the site.
func (d *demo) login(ctx context.Context, until time.Time) (string, error) {
	names := make([]string, d.o.Users)
	for i := range names {
		names[i] = userName(i + 1)
	}
	guests := d.fleet.add(ctx, names, d.o.Sessions, time.Until(until)*6/10)
	err := await(ctx, "all clients are logged in", func() bool {
		return d.fleet.failures() > 0 || count(guests, inside) == len(guests)
	})
	if err == nil && d.fleet.failures() > 0 {
		err = fmt.Errorf("%w: %w", errAbort, d.fleet.err(0))
	}
	if err != nil {
		return "", err
	}
	seats, err := d.seats(ctx, names)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if err := sits(seats, name, netip.Addr{}, d.o.Sessions); err != nil {
			return "", err
		}
	}
	st, err := d.site.Admin.Status(ctx)
	if err == nil && (st.Director.Users != d.o.Users || st.Sessions.Total != len(guests)) {
		err = fmt.Errorf("the daemon knows %d users and %d sessions, the clients are %d and %d",
			st.Director.Users, st.Sessions.Total, d.o.Users, len(guests))
	}
	return fmt.Sprintf("%s, %s; all sessions of a user are on one backend",
		some(len(names), "user"), some(len(guests), "session")), err
}

func (d *demo) handOver(ctx context.Context, _ time.Time) (string, error) {
	err := d.allCarried(ctx)
	return fmt.Sprintf("the kernel forwards all %s; the daemon sees no byte", some(len(d.fleet.present()), "session")), err
}

func (d *demo) carry(ctx context.Context, _ time.Time) (string, error) {
	err := d.allCarried(ctx)
	return fmt.Sprintf("all %s in mode %s: every byte passes the daemon",
		some(len(d.fleet.present()), "session"), d.board.snapshot().kernel.Mode), err
}

// allCarried waits until every session is carried by whom it is meant to be: no one is logging in or being handed over.
func (d *demo) allCarried(ctx context.Context) error {
	n := len(d.fleet.present())
	inKernel := d.inKernel()
	return await(ctx, fmt.Sprintf("all %d sessions are carried as they should", n), func() bool {
		st, err := d.site.Admin.Status(ctx)
		if inKernel {
			return err == nil && st.Sessions.TC+st.Sessions.XDP == n
		}
		return err == nil && st.Sessions.Splice+st.Sessions.Copy == n
	})
}

// forwarded is how many sessions the kernel carries by the daemon's word.
func (d *demo) forwarded(ctx context.Context) int {
	st, err := d.site.Admin.Status(ctx)
	if err != nil {
		return -1
	}
	return st.Sessions.TC + st.Sessions.XDP
}

// move moves a user and watches both sides of it.
func (d *demo) move(ctx context.Context, _ time.Time) (string, error) {
	name := d.moved()
	from, err := d.site.Admin.User(ctx, name)
	if err != nil {
		return "", err
	}
	to := d.site.Hosts[(slices.Index(d.site.Hosts, from.Host)+1)%len(d.site.Hosts)]
	stopped, back, err := d.endAndReturn(ctx, name, to, func() error {
		_, err := d.site.Admin.UserMove(ctx, name, to.String(), true)
		return err
	})
	return fmt.Sprintf("%s: %s stopped (%s), back on %v (%s)", name, some(d.o.Sessions, "session"), brief(stopped), to, brief(back)), err
}

func (d *demo) kick(ctx context.Context, _ time.Time) (string, error) {
	name := d.kicked()
	before, err := d.site.Admin.User(ctx, name)
	if err != nil {
		return "", err
	}
	stopped, back, err := d.endAndReturn(ctx, name, before.Host, func() error {
		_, err := d.site.Admin.UserKick(ctx, name)
		return err
	})
	return fmt.Sprintf("%s: %s stopped (%s), back on %v (%s)", name, some(d.o.Sessions, "session"), brief(stopped), before.Host, brief(back)), err
}

// endAndReturn does something that ends the sessions of a user, and waits until its clients are back and all sit at one
// host. It returns when the last session had ended and when the last client was back, counted from the order.
func (d *demo) endAndReturn(ctx context.Context, name string, at netip.Addr, order func() error) (stopped, back time.Duration, err error) {
	guests := d.fleet.of(name)
	over := expectEnd(guests, true)
	defer over()
	begin := time.Now()
	if err := order(); err != nil {
		return 0, 0, err
	}
	err = await(ctx, fmt.Sprintf("all sessions of %s have ended and are back", name), func() bool {
		return count(guests, func(g *guest) bool { return g.ended.Load() > 0 && g.inside.Load() }) == len(guests)
	})
	if err != nil {
		return 0, 0, err
	}
	for _, g := range guests {
		if n := g.ended.Load(); n != 1 {
			return 0, 0, fmt.Errorf("a session of %s ended %d times", name, n)
		}
		stopped = max(stopped, time.Duration(g.endedAt.Load()-begin.UnixNano()))
		back = max(back, time.Duration(g.backAt.Load()-begin.UnixNano()))
	}
	var wrong error
	err = await(ctx, fmt.Sprintf("%s sits on %v", name, at), func() bool {
		// The old host may learn of the end of its sessions a little later than the clients.
		seats, err := d.seats(ctx, []string{name})
		if wrong = err; err == nil {
			wrong = sits(seats, name, at, len(guests))
		}
		return wrong == nil
	})
	if wrong != nil {
		err = fmt.Errorf("%w: %w", err, wrong)
	}
	if err == nil {
		err = d.allCarried(ctx)
	}
	return stopped, back, err
}

// weight takes a host out of the choice for new users.
func (d *demo) weight(ctx context.Context, until time.Time) (string, error) {
	if _, err := d.site.Admin.HostUpdate(ctx, d.site.Hosts[1].String(), 0, false); err != nil {
		return "", err
	}
	n, err := d.comeNew(ctx, "late", until, d.site.Hosts[1])
	return fmt.Sprintf("%d new users: %d, %d and %d; the users of %v stay", n[0]+n[1]+n[2], n[0], n[1], n[2], d.site.Hosts[1]), err
}

// down takes a second one out, and puts both back.
func (d *demo) down(ctx context.Context, until time.Time) (string, error) {
	if _, err := d.site.Admin.HostUp(ctx, d.site.Hosts[2].String(), false, false); err != nil {
		return "", err
	}
	n, err := d.comeNew(ctx, "last", until, d.site.Hosts[1], d.site.Hosts[2])
	if err != nil {
		return "", err
	}
	if _, err := d.site.Admin.HostUpdate(ctx, d.site.Hosts[1].String(), 100, false); err != nil {
		return "", err
	}
	if _, err := d.site.Admin.HostUp(ctx, d.site.Hosts[2].String(), true, false); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d new users, all on %v; then both are put back", n[0], d.site.Hosts[0]), nil
}

// comeNew lets new users come; none of them may go to the closed hosts, and nobody may leave those. It
// returns how many each host got.
func (d *demo) comeNew(ctx context.Context, prefix string, until time.Time, closed ...netip.Addr) (got []int, err error) {
	got = make([]int, len(d.site.Hosts))
	before, err := d.hostUsers(ctx)
	if err != nil {
		return got, err
	}
	names := make([]string, newcomers(d.o))
	for i := range names {
		names[i] = fmt.Sprintf("%s%02d", prefix, i+1)
	}
	guests := d.fleet.add(ctx, names, 1, time.Until(until)*5/10)
	failed := d.fleet.failures()
	err = await(ctx, "the new users are logged in", func() bool {
		return d.fleet.failures() > failed || count(guests, inside) == len(guests)
	})
	if err != nil {
		return got, err
	}
	if err := d.allCarried(ctx); err != nil {
		return got, err
	}
	seats, err := d.seats(ctx, names)
	if err != nil {
		return got, err
	}
	for _, name := range names {
		if err := sits(seats, name, netip.Addr{}, 1); err != nil {
			return got, err
		}
		for i, h := range d.site.Hosts {
			got[i] += seats[name][h]
			if seats[name][h] > 0 && slices.Contains(closed, h) {
				return got, fmt.Errorf("%s went to %v", name, h)
			}
		}
	}
	after, err := d.hostUsers(ctx)
	if err != nil {
		return got, err
	}
	for _, h := range closed {
		if before[h] != after[h] {
			return got, fmt.Errorf("%v had %d users, and has %d now", h, before[h], after[h])
		}
	}
	return got, nil
}

func (d *demo) hostUsers(ctx context.Context) (map[netip.Addr]int, error) {
	st, err := d.site.Admin.Status(ctx)
	if err != nil {
		return nil, err
	}
	users := map[netip.Addr]int{}
	for _, h := range st.Hosts {
		users[h.Address] = h.Users
	}
	return users, nil
}
