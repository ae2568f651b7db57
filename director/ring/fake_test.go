package ring

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"slices"
	"time"

	"usher/director"
)

// fakeDirector keeps just enough to be in a ring: hosts, and users whose newest news wins. So what the
// ring does can be seen without what the real director thinks about it.
type fakeDirector struct {
	hosts  map[netip.Addr]director.HostUpdate
	users  map[uint32]director.UserUpdate
	order  []uint32 // of users, as they came
	state  director.RingState
	synced int              // RingSynced events
	heard  []director.Event // what is neither a user nor a host
}

func newFake(hosts ...string) *fakeDirector {
	f := &fakeDirector{hosts: map[netip.Addr]director.HostUpdate{}, users: map[uint32]director.UserUpdate{}}
	for _, h := range hosts {
		f.put(update(h, 100))
	}
	return f
}

func update(addr string, weight int) director.HostUpdate {
	return director.HostUpdate{Host: director.Host{Addr: netip.MustParseAddr(addr), Weight: weight}, Up: true}
}

func (f *fakeDirector) put(h director.HostUpdate) bool {
	before, ok := f.hosts[h.Host.Addr]
	f.hosts[h.Host.Addr] = h
	return !ok || before != h
}

func (f *fakeDirector) Step(now time.Time, ev director.Event) []director.Effect {
	switch ev := ev.(type) {
	case director.RingState:
		f.state = ev
	case director.RingSynced:
		f.synced++
	case director.HostsReplace:
		clear(f.hosts)
		var out []director.Effect
		for _, h := range ev.Hosts {
			f.put(h)
			out = append(out, director.Tell{Message: h})
		}
		return append(out, director.SyncNeeded{})
	case director.HostPut:
		f.put(director.HostUpdate{Host: ev.Host, Up: true})
		return []director.Effect{director.Tell{Message: f.hosts[ev.Host.Addr]}, director.SyncNeeded{}}
	case director.Active: // this node has used a user
		u := director.UserUpdate{Hash: ev.Key.Hash, Host: f.HostStates()[0].Host.Addr, Refreshed: now.Unix()}
		f.user(u)
		return []director.Effect{director.Tell{Message: u}}
	case director.Heard:
		switch m := ev.Message.(type) {
		case director.HostGone:
			if _, ok := f.hosts[m.Addr]; ok {
				delete(f.hosts, m.Addr)
				return []director.Effect{director.Pass{}, director.SyncNeeded{}}
			}
		case director.UserUpdate:
			if _, ok := f.hosts[m.Host]; !ok && ev.Handshake {
				return []director.Effect{director.Invalid{Err: errors.New("no such host")}}
			}
			if f.user(m) {
				return []director.Effect{director.Pass{}}
			}
		case director.HostUpdate:
			if f.put(m) {
				return []director.Effect{director.Pass{}, director.SyncNeeded{}}
			}
		default:
			f.heard = append(f.heard, ev)
			return []director.Effect{director.Pass{}}
		}
	case director.Tick:
	default:
		f.heard = append(f.heard, ev)
	}
	return nil
}

func (f *fakeDirector) user(u director.UserUpdate) bool {
	before, ok := f.users[u.Hash]
	if ok && before.Refreshed >= u.Refreshed {
		return false
	}
	if !ok {
		f.order = append(f.order, u.Hash)
	}
	f.users[u.Hash] = u
	return true
}

func (f *fakeDirector) Next() time.Time { return time.Time{} }

func (f *fakeDirector) HostStates() []director.HostUpdate {
	var all []director.HostUpdate
	for _, h := range f.hosts {
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b director.HostUpdate) int { return a.Host.Addr.Compare(b.Host.Addr) })
	return all
}

// HostsHash is right for IPv4 (ring.md section 7), so that a fake can be in a ring with real ones.
func (f *fakeDirector) HostsHash() uint32 {
	sum := crc32.NewIEEE()
	for _, h := range f.HostStates() {
		weight := uint32(h.Host.Weight)
		if !h.Up {
			weight ^= 1
		}
		sum.Write(binary.LittleEndian.AppendUint32(nil, weight))
		sum.Write(h.Host.Addr.AsSlice())
		sum.Write([]byte(h.Host.Tag))
	}
	return max(1, sum.Sum32())
}

// Dump tells users in the order in which they came. (The cursor of the real director is its own business;
// here all are told at once.)
func (f *fakeDirector) Dump(_ *director.Cursor, _ int, yield func(director.UserUpdate)) bool {
	for _, hash := range f.order {
		yield(f.users[hash])
	}
	return false
}

func (f *fakeDirector) DumpStop(*director.Cursor) {}
