package admin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"usher/director/ring"
)

func TestCommands(t *testing.T) {
	src := site()
	c, _, _ := start(t, src, nil)
	ctx := t.Context()
	order := func(r Reply, err error) error {
		if err == nil && (r.State != Finished && r.State != Started || r.Warnings == nil) {
			err = fmt.Errorf("reply %+v", r)
		}
		return err
	}
	err := errors.Join(
		order(c.UserMove(ctx, "u", "10.2.0.12", false)), order(c.UserMove(ctx, "u", "BE2.example", true)),
		order(c.UserKick(ctx, "u")), order(c.FieldKick(ctx, "user_x", "y")),
		order(c.HostAdd(ctx, HostOrder{Address: netip.MustParseAddr("::ffff:10.2.0.19"), Tag: "t", Weight: 7}, true)),
		order(c.HostUpdate(ctx, "be2.example", 0, false)), order(c.HostUp(ctx, "10.2.0.11", true, false)), order(c.HostUp(ctx, "10.2.0.11", false, true)),
		order(c.HostRemove(ctx, "10.2.0.11", false)), order(c.HostDrain(ctx, "10.2.0.11", 2.5, 3)),
		order(c.Flush(ctx, "all", true, 0, 0)), order(c.Flush(ctx, "10.2.0.11", false, 1, 0)), order(c.FlushStop(ctx, "all")),
		order(c.RingAdd(ctx, "10.1.0.3", false)), order(c.RingAdd(ctx, "[fd00::3]", false)), order(c.RingRemove(ctx, "[fd00::3]:9091", true)))
	want := []string{
		"move u 10.2.0.12 false", "move u fd00::12 true", "kick u", "kick user_x=y",
		"add {Address:10.2.0.19 Name: Tag:t Weight:7}", "wait",
		"update fd00::12 0", "up 10.2.0.11 true", "up 10.2.0.11 false", "wait",
		"remove 10.2.0.11", "flush {Host:10.2.0.11 Drain:true Force:false Rate:2.5 Parallel:3}",
		"flush {Host:invalid IP Drain:false Force:true Rate:0 Parallel:0}", "flush {Host:10.2.0.11 Drain:false Force:false Rate:1 Parallel:0}", "flush stop invalid IP",
		"ring add 10.1.0.3:0", "ring add [fd00::3]:0", "ring remove [fd00::3]:9091", "wait",
	}
	if diff := cmp.Diff(want, src.calls); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
}

// TestStartedAndFinished: an order is finished when it is done here and the ring agrees.
func TestStartedAndFinished(t *testing.T) {
	src := site()
	c, _, _ := start(t, src, nil)
	ctx := t.Context()
	peer := []RingDirector{{Address: netip.MustParseAddrPort("10.1.0.1:9090"), Self: true}, {Address: netip.MustParseAddrPort("10.1.0.2:9090")}}
	synced, unsynced := Ring{Synced: true, Directors: peer}, Ring{Directors: peer}
	for _, row := range []struct {
		what  string
		order func() (Reply, error)
		ring  Ring
		want  string
	}{
		{"move", func() (Reply, error) { return c.UserMove(ctx, "u", "10.2.0.11", false) }, synced, Started},
		{"move and wait", func() (Reply, error) { return c.UserMove(ctx, "u", "10.2.0.11", true) }, unsynced, Finished},
		{"kick in a ring", func() (Reply, error) { return c.UserKick(ctx, "u") }, synced, Started},
		{"kick alone", func() (Reply, error) { return c.UserKick(ctx, "u") }, Ring{Synced: true}, Finished},
		{"host, ring agrees", func() (Reply, error) { return c.HostRemove(ctx, "10.2.0.11", false) }, synced, Finished},
		{"host, ring does not agree yet", func() (Reply, error) { return c.HostRemove(ctx, "10.2.0.11", false) }, unsynced, Started},
		{"flush", func() (Reply, error) { return c.Flush(ctx, "10.2.0.11", false, 0, 0) }, synced, Started},
		{"forced flush", func() (Reply, error) { return c.Flush(ctx, "10.2.0.11", true, 0, 0) }, synced, Finished},
	} {
		src.rings = []Ring{row.ring}
		if r, err := row.order(); err != nil || r.State != row.want {
			t.Errorf("%s: %+v, error %v, want %s", row.what, r, err, row.want)
		}
	}
}

// TestSilentDirectorsAreWarnedOf, those of before the command and those of after it.
func TestSilentDirectorsAreWarnedOf(t *testing.T) {
	src := site()
	c, _, _ := start(t, src, nil)
	silent := func(addrs ...string) (r Ring) {
		r.Synced = true
		for _, a := range addrs {
			r.Directors = append(r.Directors, RingDirector{Address: netip.MustParseAddrPort(a), Silent: true})
		}
		return r
	}
	src.rings = []Ring{{}, silent("10.1.0.2:9090"), silent("10.1.0.2:9090", "10.1.0.3:9090")}
	r, err := c.HostUp(t.Context(), "10.2.0.11", true, false)
	if err != nil || len(r.Warnings) != 2 || !strings.HasPrefix(r.Warnings[0], "director 10.1.0.2:9090 ") || !strings.HasPrefix(r.Warnings[1], "director 10.1.0.3:9090 ") {
		t.Errorf("%+v, error %v", r, err)
	}
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	src := site()
	c, _, _ := start(t, src, nil)
	ctx := t.Context()
	other := errors.New("the map is on fire")
	for _, row := range []struct {
		err    error
		status int
	}{
		{ErrUnknownUser, 404}, {ErrUnknownHost, 404}, {ErrUnknownDirector, 404}, {ErrConflict, 409}, {ErrInvalid, 400}, {context.DeadlineExceeded, 504}, {other, 500},
	} {
		src.err = fmt.Errorf("move: %w", row.err)
		_, err := c.UserMove(ctx, "u", "10.2.0.11", false)
		var se *ServerError
		if !errors.As(err, &se) || se.Status != row.status || err.Error() != src.err.Error() || row.err != other && !errors.Is(err, row.err) {
			t.Errorf("%v arrives as %#v", row.err, err)
		}
	}
	if _, err := c.Flows(ctx); err == nil {
		t.Error("flows: no error")
	}
	if _, err := c.User(ctx, "nobody"); !errors.Is(err, ErrUnknownUser) || err.Error() != `unknown user "nobody"` {
		t.Errorf("user: %v", err)
	}
	src.err = nil
	seen := len(src.calls)
	weight, bad := 0, 1001
	for _, row := range []struct {
		what string
		body any
		want error
	}{
		{"user/move", moveRequest{User: "u"}, ErrInvalid},
		{"user/move", moveRequest{User: "u", Host: "nowhere.example"}, ErrUnknownHost},
		{"user/move", moveRequest{User: "u", Host: "two.example"}, ErrInvalid},
		{"user/move", map[string]string{"usr": "u"}, ErrInvalid},
		{"user/kick", kickRequest{}, ErrInvalid},
		{"user/kick", kickRequest{User: "u", Field: "f", Value: "v"}, ErrInvalid},
		{"user/kick", kickRequest{User: strings.Repeat("x", maxBody)}, ErrInvalid},
		{"host/add", addRequest{HostOrder: HostOrder{Weight: 1}}, ErrInvalid},
		{"host/add", addRequest{HostOrder: HostOrder{Address: netip.MustParseAddr("10.2.0.19"), Weight: bad}}, ErrInvalid},
		{"host/add", addRequest{HostOrder: HostOrder{Address: netip.MustParseAddr("10.2.0.19"), Tag: "a b"}}, ErrInvalid},
		{"host/update", hostRequest{Host: "10.2.0.11"}, ErrInvalid},
		{"host/update", hostRequest{Host: "10.2.0.11", Weight: &bad}, ErrInvalid},
		{"host/update", hostRequest{Weight: &weight}, ErrUnknownHost},
		{"host/drain", flushRequest{Host: "all"}, ErrInvalid},
		{"host/drain", flushRequest{Host: "10.2.0.11", Force: true}, ErrInvalid},
		{"flush", flushRequest{}, ErrUnknownHost},
		{"flush", flushRequest{Host: "all", Rate: -1}, ErrInvalid},
		{"flush", flushRequest{Host: "all", Parallel: -1}, ErrInvalid},
		{"ring/add", ringRequest{Director: "dir.example"}, ErrInvalid},
		{"ring/add", ringRequest{Director: "10.1.0.3:0"}, ErrInvalid},
	} {
		if _, err := c.post(ctx, row.what, row.body); !errors.Is(err, row.want) {
			t.Errorf("%s %+v: %v, want %v", row.what, row.body, err, row.want)
		}
	}
	if len(src.calls) > seen {
		t.Errorf("bad orders came through: %q", src.calls[seen:])
	}
}

// TestNewRing: each connection is with its director, silence is marked.
func TestNewRing(t *testing.T) {
	ap := netip.MustParseAddrPort
	at := time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC)
	got := NewRing(ring.Status{
		Self: ap("10.1.0.1:9090"), Handshaked: true, LastSync: at, SyncTime: 3 * time.Millisecond, Minor: 8,
		Directors: []ring.Member{{Addr: ap("10.1.0.1:9090")}, {Addr: ap("10.1.0.2:9090"), ClockDiff: -2 * time.Second, LastFailed: at, LastError: "x"}, {Addr: ap("10.1.0.3:9090"), Removed: true}},
		Conns: []ring.ConnStatus{
			{Remote: ap("10.1.0.2:9090"), Role: "left", Ping: 1500 * time.Microsecond, Lag: 500 * time.Millisecond, LastRead: at},
			{Remote: ap("10.1.0.2:9090"), Role: "right"}, {Incoming: true, Role: "in"}},
		Silent: []netip.AddrPort{ap("10.1.0.2:9090")},
	})
	want := Ring{
		Self: ap("10.1.0.1:9090"), Handshaked: true, LastSync: &at, SyncS: 0.003, Minor: 8,
		Directors: []RingDirector{
			{Address: ap("10.1.0.1:9090"), Self: true, Usher: true},
			{Address: ap("10.1.0.2:9090"), Silent: true, LastFailed: &at, LastError: "x", ClockDiffS: -2, Conns: []RingConn{
				{Remote: ap("10.1.0.2:9090"), Role: "left", PingMS: 1.5, LagS: 0.5, LastRead: &at},
				{Remote: ap("10.1.0.2:9090"), Role: "right"}}},
			{Address: ap("10.1.0.3:9090"), Removed: true},
		},
		Unknown: []RingConn{{Role: "in"}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s := got.Summary(); s != (RingSummary{Directors: 2, Handshaked: true, Silent: 1}) {
		t.Errorf("summary %+v", s)
	}
}
