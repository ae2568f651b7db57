package director

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"usher/director/move"
	"usher/director/users"
)

// flushScan bounds how many entries a Step looks at for a HostFlush.
const flushScan = 4096

// Progress says how far a HostFlush is.
type Progress struct {
	Addr    netip.Addr // invalid: all hosts
	Total   int        // users that were on the host when it began
	Done    int        // moved, or on their host already
	Failed  int        // moved, but a director had sessions left when the time was over
	Moving  int
	Rate    float64 // moves per second, 0: no limit
	Started time.Time
	Ended   time.Time // zero: it goes on
}

// flush is a HostFlush that goes on.
type flush struct {
	order    HostFlush
	ids      []uint64 // who waits for its end
	batch    uint64   // number in move.Move.Batch
	progress Progress
	cursor   uint32              // number of the next entry to look at
	later    []Key               // being moved by others when it was their turn
	retry    bool                // a move has ended since
	next     time.Duration       // when the rate allows another
	forget   map[netip.Addr]bool // hosts whose users have nowhere to go
	stopped  bool                // no more moves begin
}

// hostFlush begins to move the users of a host away.
func (d *Director) hostFlush(ev HostFlush) {
	ev.Addr = ev.Addr.Unmap()
	total := d.users.Len()
	if ev.Addr.IsValid() {
		if _, ok := d.hosts.Get(ev.Addr); !ok {
			d.emit(Done{ID: ev.ID, Err: fmt.Errorf("%s: %w", ev.Addr, ErrUnknownHost)})
			return
		}
		total, _ = d.users.Load(ev.Addr)
	}
	if ev.Max <= 0 {
		ev.Max = d.config.MaxParallelMoves
	}
	for _, f := range d.flushes {
		if f.order.Addr == ev.Addr {
			f.order, f.ids, f.stopped = ev, append(f.ids, ev.ID), false
			f.progress.Rate, f.next = ev.Rate, d.now
			return
		}
	}
	d.batch++
	d.flushes = append(d.flushes, &flush{
		order: ev, ids: []uint64{ev.ID}, batch: d.batch, next: d.now, forget: make(map[netip.Addr]bool),
		progress: Progress{Addr: ev.Addr, Total: total, Rate: ev.Rate, Started: d.start.Add(d.now)},
	})
}

// hostFlushStop lets no more users begin to move.
func (d *Director) hostFlushStop(addr netip.Addr) error {
	for _, f := range d.flushes {
		if f.order.Addr == addr {
			f.stopped = true
			return nil
		}
	}
	return ErrNoFlush
}

// flush lets all orders go on as far as their limits allow.
func (d *Director) flush() {
	for _, f := range slices.Clone(d.flushes) {
		d.flushSome(f)
		if (f.stopped || f.cursor == d.users.Numbers() && len(f.later) == 0) && f.progress.Moving == 0 {
			d.flushEnd(f)
		}
	}
}

func (d *Director) flushSome(f *flush) {
	for scanned := 0; scanned < flushScan && !f.stopped && d.flushFree(f); scanned++ {
		if f.cursor < d.users.Numbers() {
			e := d.users.At(f.cursor)
			f.cursor++
			d.flushUser(f, e)
			continue
		}
		if !f.retry {
			return
		}
		f.retry = false
		later := f.later
		f.later = nil
		for i, key := range later {
			if !d.flushFree(f) {
				f.later = append(f.later, later[i:]...)
				f.retry = true
				return
			}
			d.flushUser(f, d.users.Get(key))
		}
	}
}

// flushFree reports whether the limits of an order allow another move.
func (d *Director) flushFree(f *flush) bool { return d.moves.Len() < f.order.Max && d.now >= f.next }

// flushUser moves a user to the host that its hash points to.
func (d *Director) flushUser(f *flush, e *users.Entry) {
	if e == nil {
		return
	}
	key, from := d.users.Key(e), d.users.Host(e)
	if f.order.Addr.IsValid() && from != f.order.Addr {
		return
	}
	if d.moves.Get(key) != nil {
		f.later = append(f.later, key)
		return
	}
	to, ok := d.hosts.Place(key.Tag, key.Hash)
	if ok && to == from {
		f.progress.Done++
		return
	}
	if f.order.Rate > 0 {
		f.next = max(f.next, d.now-time.Second) + time.Duration(float64(time.Second)/f.order.Rate)
	}
	m := &move.Move{Key: key, Batch: f.batch}
	f.progress.Moving++
	if ok {
		d.order(to, m)
		return
	}
	// Nobody is left to take the user: its sessions end, then it is forgotten everywhere.
	f.forget[from] = true
	m.Evict = true
	if d.config.Ring {
		d.tellKickHash(key.Hash, netip.IPv4Unspecified())
	}
	d.stopAll(e, StopFlushed, m)
}

// flushMoved counts a move that has ended for the order it belongs to.
func (d *Director) flushMoved(m *move.Move, err error) {
	for _, f := range d.flushes {
		f.retry = true
		if m.Batch != f.batch || m.Batch == 0 {
			continue
		}
		f.progress.Moving--
		if errors.Is(err, ErrMoveTimeout) { // overtaken or evicted: the user is off the host all the same
			f.progress.Failed++
		} else {
			f.progress.Done++
		}
	}
}

func (d *Director) flushEnd(f *flush) {
	d.flushes = slices.DeleteFunc(d.flushes, func(other *flush) bool { return other == f })
	for _, s := range d.hosts.All() {
		if d.config.Ring && f.forget[s.Addr] {
			d.tell(HostForget{Addr: s.Addr}, true)
			d.emit(SyncNeeded{})
			d.evictHost(s.Addr, StopFlushed) // who has come meanwhile
		}
	}
	var err error
	switch {
	case f.stopped:
		err = ErrStopped
	case f.progress.Failed > 0:
		err = fmt.Errorf("%d of %d users: %w", f.progress.Failed, f.progress.Done+f.progress.Failed, ErrMoveTimeout)
	}
	f.progress.Ended = d.start.Add(d.now)
	d.finished[f.order.Addr] = f.progress
	for _, id := range f.ids {
		d.emit(Done{ID: id, Err: err})
	}
}

// flushNext returns when an order can go on by itself. Otherwise the end of a move lets it.
func (d *Director) flushNext() (next time.Duration, ok bool) {
	for _, f := range d.flushes {
		waits := f.stopped || f.cursor == d.users.Numbers() && !(f.retry && len(f.later) > 0)
		if waits || d.moves.Len() >= f.order.Max {
			continue
		}
		if at := max(f.next, d.now); !ok || at < next {
			next, ok = at, true
		}
	}
	return next, ok
}

// Progress returns how far the HostFlush of a host is, or was when it ended; an invalid address is the one
// of all hosts. False: there was none.
func (d *Director) Progress(addr netip.Addr) (Progress, bool) {
	addr = addr.Unmap()
	for _, f := range d.flushes {
		if f.order.Addr == addr {
			p := f.progress
			p.Total = max(p.Total, p.Done+p.Failed+p.Moving)
			return p, true
		}
	}
	p, ok := d.finished[addr]
	return p, ok
}

// Progresses returns the HostFlushes that go on, in the order they began.
func (d *Director) Progresses() []Progress {
	var all []Progress
	for _, f := range d.flushes {
		p, _ := d.Progress(f.order.Addr)
		all = append(all, p)
	}
	return all
}
