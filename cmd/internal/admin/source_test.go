package admin

import (
	"context"
	"fmt"
	"net/netip"
)

// fakeSource answers with its fields and writes down the commands it got.
type fakeSource struct {
	status  Status
	entries []MapEntry
	users   map[string]User
	flows   []FlowInfo
	err     error // of flows and commands
	block   chan struct{}
	calls   []string
	rings   []Ring // one after the other, the last one for ever; none: synced
	flushes []Flush
	orders  Orders
}

func (f *fakeSource) Status() Status  { return f.status }
func (f *fakeSource) Map() []MapEntry { return f.entries }

func (f *fakeSource) User(name string) (User, error) {
	u, ok := f.users[name]
	if !ok {
		return User{}, fmt.Errorf("%w %q", ErrUnknownUser, name)
	}
	return u, nil
}

func (f *fakeSource) Flows() ([]FlowInfo, error) { return f.flows, f.err }

func (f *fakeSource) Ring() Ring {
	if len(f.rings) > 1 {
		f.rings = f.rings[1:]
	}
	if len(f.rings) == 0 {
		return Ring{Handshaked: true, Synced: true}
	}
	return f.rings[0]
}

func (f *fakeSource) Flushes() []Flush { return f.flushes }
func (f *fakeSource) Orders() Orders   { return f.orders }

// call writes a command down.
func (f *fakeSource) call(format string, args ...any) error {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fakeSource) UserMove(ctx context.Context, user string, to netip.Addr, wait bool) (bool, error) {
	if f.block != nil {
		close(f.block)
		<-ctx.Done()
		return false, ctx.Err()
	}
	return wait, f.call("move %s %v %v", user, to, wait)
}

func (f *fakeSource) UserKick(_ context.Context, user string) error { return f.call("kick %s", user) }

func (f *fakeSource) FieldKick(_ context.Context, field, value string) error {
	return f.call("kick %s=%s", field, value)
}

func (f *fakeSource) HostAdd(_ context.Context, h HostOrder) error { return f.call("add %+v", h) }

func (f *fakeSource) HostUpdate(_ context.Context, host netip.Addr, weight int) error {
	return f.call("update %v %d", host, weight)
}

func (f *fakeSource) HostUp(_ context.Context, host netip.Addr, up bool) error {
	return f.call("up %v %v", host, up)
}

func (f *fakeSource) HostRemove(_ context.Context, host netip.Addr) error {
	return f.call("remove %v", host)
}

func (f *fakeSource) Flush(_ context.Context, o FlushOrder) error { return f.call("flush %+v", o) }

func (f *fakeSource) FlushStop(_ context.Context, host netip.Addr) error {
	return f.call("flush stop %v", host)
}

func (f *fakeSource) RingAdd(_ context.Context, d netip.AddrPort) error {
	return f.call("ring add %v", d)
}

func (f *fakeSource) RingRemove(_ context.Context, d netip.AddrPort) error {
	return f.call("ring remove %v", d)
}

func (f *fakeSource) WaitSynced(context.Context) error { return f.call("wait") }
