package director

import (
	"cmp"
	"maps"
	"slices"

	"usher/director/users"
)

// counted returns the entry that a session of this epoch counts for, nil if there is none: because
// the entry is gone, or because it is a later one under the same key.
func (d *Director) counted(key Key, epoch uint32) *users.Entry {
	e := d.users.Get(key)
	if e == nil || epoch < e.Born() || epoch > e.Epoch() {
		return nil
	}
	return e
}

func (d *Director) sessionStart(ev SessionStart) {
	stale := Stop{Key: ev.Key, User: ev.User, Epoch: ev.Epoch, Reason: StopStale}
	e := d.counted(ev.Key, ev.Epoch)
	if e == nil {
		d.emit(stale)
		return
	}
	d.usedBy(e, ev.Epoch)
	d.store(e)
	if d.users.Start(e, ev.User) {
		d.emit(NamePut{Key: ev.Key, User: ev.User})
	}
	if e.Sessions() == 1 {
		d.put(e)
	}
	// A stale session is counted all the same: it does run on the old host until it ends, and a move
	// that is still going on has to wait for that.
	if ev.Epoch != e.Epoch() {
		d.emit(stale)
	}
	d.tellMove(e)
}

// usedBy notes that an entry was used by a session. One from before the last change of the entry does not say
// that the user is where the entry says.
func (d *Director) usedBy(e *users.Entry, epoch uint32) {
	if e.Weak() && epoch != e.Epoch() {
		d.users.Refresh(e, d.now)
		return
	}
	d.used(e)
}

func (d *Director) sessionEnd(ev SessionEnd) {
	e := d.counted(ev.Key, ev.Epoch)
	if e == nil || !d.users.End(e, ev.User) {
		return
	}
	d.usedBy(e, ev.Epoch)
	if e.Sessions() == 0 {
		d.put(e)
	}
	d.tellMove(e)
}

func (d *Director) tellMove(e *users.Entry) {
	if m := d.moves.Get(d.users.Key(e)); m != nil {
		d.say(m, d.moves.Sessions(m, d.now, e.Sessions()))
	}
}

func (d *Director) adopt(ev Adopt) {
	// In order of last use each entry goes to the end of the idle list. In the kernel's order, which
	// is random, finding its place would be a walk.
	entries := slices.SortedFunc(slices.Values(ev.Entries), func(a, b Adopted) int {
		return cmp.Or(a.LastRefresh.Compare(b.LastRefresh), cmp.Compare(a.Key.Hash, b.Key.Hash),
			cmp.Compare(a.Key.Tag, b.Key.Tag))
	})
	for _, a := range entries {
		if d.users.Get(a.Key) != nil {
			// Adopted too late, a lookup has decided anew.
			d.emit(Stop{Key: a.Key, Epoch: a.Epoch, Reason: StopStale})
			continue
		}
		// A time in the future (the clock was set back) would keep the entry for longer than its life.
		at := min(d.now, a.LastRefresh.Sub(d.start))
		e := d.users.Restore(a.Key, a.Host.Unmap(), a.Epoch, at)
		e.SetStored()
		for _, user := range a.Users {
			d.users.Note(e, user)
		}
		for _, user := range slices.Sorted(maps.Keys(a.Sessions)) {
			for range a.Sessions[user] {
				d.users.Start(e, user)
			}
		}
		if h, ok := d.hosts.Get(a.Host.Unmap()); !ok || h.Tag != a.Key.Tag {
			d.evictEntry(e, StopHostRemoved)
			continue
		}
		d.tellLater(e)
	}
	d.restoreMoves()
}
