package director

import (
	"iter"
	"net/netip"
	"time"

	"usher/director/hosts"
	"usher/director/users"
)

// EntryInfo describes an entry to people.
type EntryInfo struct {
	Key         Key
	Host        netip.Addr
	Epoch       uint32
	LastRefresh time.Time
	ExpiresAt   time.Time // zero while it cannot expire: it has sessions or is being moved
	Sessions    int
	Users       []string  // names that had a session, sorted; usually one
	Moving      bool      // lookups wait
	Phase       string    // of the move: killing, waiting-for-everyone, ...
	Weak        bool      // about to expire; the other directors are being asked, and lookups wait
	Ordered     time.Time // when an operator put it on its host, zero: none did
	Untold      bool      // the ring may not know of it
}

// HostInfo describes a host to people. Users are entries; sessions that are being stopped after a move
// count for the new host.
type HostInfo struct {
	hosts.State
	Users, Sessions int
}

// Entry returns the entry of a key.
func (d *Director) Entry(key Key) (EntryInfo, bool) {
	e := d.users.Get(key)
	if e == nil {
		return EntryInfo{}, false
	}
	return d.info(e), true
}

// Entries yields all entries, in no useful order. The director must not Step meanwhile.
func (d *Director) Entries() iter.Seq[EntryInfo] {
	return func(yield func(EntryInfo) bool) {
		for e := range d.users.All() {
			if !yield(d.info(e)) {
				return
			}
		}
	}
}

func (d *Director) info(e *users.Entry) EntryInfo {
	info := EntryInfo{
		Key:         d.users.Key(e),
		Host:        d.users.Host(e),
		Epoch:       e.Epoch(),
		LastRefresh: d.start.Add(e.LastRefresh()),
		Sessions:    int(e.Sessions()),
		Users:       d.users.Names(e),
	}
	if at, ok := d.users.ExpiresAt(e); ok {
		info.ExpiresAt = d.start.Add(at)
	}
	if m := d.moves.Get(info.Key); m != nil {
		info.Moving, info.Phase = true, m.Phase().String()
	}
	info.Weak, info.Untold, info.Ordered = e.Weak(), e.Untold(), unixTime(d.ordered[info.Key])
	return info
}

// Hosts returns all hosts ordered by address.
func (d *Director) Hosts() []HostInfo {
	all := d.hosts.All()
	infos := make([]HostInfo, len(all))
	for i, state := range all {
		infos[i].State = state
		infos[i].Users, infos[i].Sessions = d.users.Load(state.Addr)
	}
	return infos
}

// HashedHost returns the host on which a user of this key would be put if it had no entry, and false
// if there is none.
func (d *Director) HashedHost(key Key) (netip.Addr, bool) {
	return d.hosts.Place(key.Tag, key.Hash)
}

// Users returns the number of entries.
func (d *Director) Users() int { return d.users.Len() }

// Moving returns the number of entries that are being moved or whose host was removed.
func (d *Director) Moving() int { return d.moves.Len() }
