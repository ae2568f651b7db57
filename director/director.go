package director

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"usher/director/hosts"
	"usher/director/move"
	"usher/director/placement"
	"usher/director/users"
)

// Key is the identity of an entry: user hash and tag. String gives "704933450" or "704933450@tag".
type Key = users.Key

// Host is a backend: address, name, tag and weight.
type Host = hosts.Host

// The values of Config that are not set.
const (
	DefaultUserExpire       = 15 * time.Minute
	DefaultMoveTimeout      = 30 * time.Second
	DefaultMaxParallelMoves = 100
)

// maxExpiries bounds the work of one Step, so that a login does not wait behind a million entries
// that expire in the same second. The rest follows with the next Steps; Next is in the past until then.
const maxExpiries = 4096

// Config says how a Director behaves. The zero value is usable.
type Config struct {
	UserExpire    time.Duration     // an entry's life after its last use; 0: DefaultUserExpire
	KickDelay     time.Duration     // between the end of a user's old sessions and the first new one
	MoveTimeout   time.Duration     // how long a move waits for old sessions; 0: DefaultMoveTimeout
	UsernameHash  *placement.Format // nil: placement.DefaultFormat
	UserSeparator string            // auth_master_user_separator: names end before any of these characters

	Ring             bool // it belongs to a ring: see RingState
	MaxParallelMoves int  // how many moves a HostFlush lets run, those of others counted; 0: DefaultMaxParallelMoves
	MaxParallelKicks int  // never reached: a kick is over in the Step that begins it
	FlushCommand     bool // moves that begin here end with Flush
}

// A Director is the state of the decision. See the package documentation.
type Director struct {
	config Config
	users  *users.Directory
	hosts  hosts.Table
	moves  *move.Table

	// Inside, time is a duration since the first Step. It uses the monotonic clock if the caller's
	// times have it, and never runs backwards.
	start time.Time
	now   time.Duration
	clock clock

	ring      RingState
	waiting   waiting       // lookups
	ordered   map[Key]int64 // when an operator put the user on its present host, unix seconds
	gone      map[netip.Addr]removal
	untold    []uint32      // numbers of entries that the ring may not know of
	untoldAt  time.Duration // when some of them may be told
	pending   []MoveOrder   // of Restore, until what the kernel has is known
	flushes   []*flush
	finished  map[netip.Addr]Progress
	batch     uint64
	conflicts int

	hearing bool     // the present Step handles a message of another director
	out     []Effect // of the present Step
}

// New returns a Director without hosts and users.
func New(config Config) *Director {
	if config.UserExpire == 0 {
		config.UserExpire = DefaultUserExpire
	}
	if config.MoveTimeout == 0 {
		config.MoveTimeout = DefaultMoveTimeout
	}
	if config.UsernameHash == nil {
		config.UsernameHash, _ = placement.ParseFormat(placement.DefaultFormat)
	}
	if config.MaxParallelMoves == 0 {
		config.MaxParallelMoves = DefaultMaxParallelMoves
	}
	return &Director{
		config:   config,
		users:    users.New(config.UserExpire),
		moves:    move.New(config.MoveTimeout, config.KickDelay),
		waiting:  newWaiting(),
		ordered:  make(map[Key]int64),
		gone:     make(map[netip.Addr]removal),
		finished: make(map[netip.Addr]Progress),
	}
}

// Step tells the director that ev happens now and returns what is to be done about it, in this order.
// What became due since the last Step is done first.
func (d *Director) Step(now time.Time, ev Event) []Effect {
	if d.start.IsZero() {
		d.start = now
	}
	d.now = max(d.now, now.Sub(d.start))
	d.clock.set(now, d.now)

	d.finishMoves()
	d.refuseLate()
	d.refreshActive()
	d.expire()
	d.tellUntold()
	if !d.startsUp(ev) {
		d.restoreMoves()
	}
	d.handle(ev)
	d.finishMoves() // a move with nothing to wait for ends in the Step that begins it
	d.flush()

	out := d.out
	d.out = nil
	return out
}

func (d *Director) handle(ev Event) {
	switch ev := ev.(type) {
	case Lookup:
		d.lookup(lookup{id: ev.Request, key: d.KeyOf(ev.User, ev.Tag), since: d.now, peek: ev.Peek})
	case Forget:
		d.waiting.forget(ev.Request)
	case SessionStart:
		d.sessionStart(ev)
	case SessionEnd:
		d.sessionEnd(ev)
	case Active:
		if e := d.users.Get(ev.Key); e != nil {
			d.used(e)
		}
	case HostPut:
		d.answer(ev.ID, d.hostPut(ev))
	case HostRemove:
		d.answer(ev.ID, d.hostRemove(ev.Addr.Unmap()))
	case HostUp:
		d.answer(ev.ID, d.hostUp(ev))
	case Move:
		if err := d.move(ev); err != nil {
			d.emit(Done{ID: ev.ID, Err: err})
		}
	case Kick:
		d.emit(Done{ID: ev.ID, Err: d.kick(ev)})
	case KickAlt:
		d.kickAlt(ev)
	case HostFlushStop:
		d.emit(Done{ID: ev.ID, Err: d.hostFlushStop(ev.Addr.Unmap())})
	case HostFlush:
		d.hostFlush(ev)
	case HostForgetUsers:
		d.emit(Done{ID: ev.ID, Err: d.hostForget(ev.Addr.Unmap())})
	case Flushed:
		if m := d.moves.Get(ev.Key); m != nil {
			d.moves.Flushed(m, d.now, ev.OK)
		}
	case Adopt:
		d.adopt(ev)
	case Restore:
		d.restore(ev.Orders)
	case RingState:
		d.ringState(ev)
	case RingSynced:
		d.ringSynced()
	case HostsReplace:
		d.hostsReplace(ev.Hosts)
	case Heard:
		d.hearing = true
		d.hear(ev)
		d.hearing = false
	}
}

// answer ends an order about a host, for whoever gave it a number.
func (d *Director) answer(id uint64, err error) {
	if id != 0 {
		d.emit(Done{ID: id, Err: err})
	}
}

// Next returns when the next Tick has something to do, given that nothing else happens until then;
// the zero time if never. It may be in the past, when one Tick was not enough.
func (d *Director) Next() time.Time {
	next, ok := d.moves.Next()
	sooner := func(at time.Duration) {
		if !ok || at < next {
			next, ok = at, true
		}
	}
	if e := d.users.Oldest(); e != nil {
		at, _ := d.users.ExpiresAt(e)
		sooner(at)
	}
	if e := d.users.OldestActive(); e != nil && d.config.Ring {
		sooner(e.LastRefresh() + d.config.UserExpire/2)
	}
	if at, ok := d.waiting.next(); ok && d.config.Ring {
		sooner(at)
	}
	if len(d.untold) > 0 && d.ring.Handshaked {
		sooner(d.untoldAt)
	}
	if at, ok := d.flushNext(); ok {
		sooner(at)
	}
	if !ok {
		return time.Time{}
	}
	return d.start.Add(next)
}

// KeyOf returns the key under which a user is looked up.
func (d *Director) KeyOf(user, tag string) Key {
	if d.config.UserSeparator != "" {
		if i := strings.IndexAny(user, d.config.UserSeparator); i >= 0 {
			user = user[:i]
		}
	}
	return Key{Hash: d.config.UsernameHash.Hash(user), Tag: tag}
}

func (d *Director) emit(e Effect) { d.out = append(d.out, e) }

func (d *Director) create(key Key, addr netip.Addr) *users.Entry {
	e := d.users.Add(key, addr, d.now)
	if !d.config.Ring {
		d.store(e) // nobody else could tell us of it after a restart
	}
	return e
}

// store keeps an entry beyond the life of the process from now on. Those that are only heard of are not kept: a
// ring may have many times the users of one director, and tells them again.
func (d *Director) store(e *users.Entry) {
	if !e.Stored() {
		e.SetStored()
		d.put(e)
	}
}

// put stores an entry as it is now, if it is one that is kept.
func (d *Director) put(e *users.Entry) {
	if !e.Stored() {
		return
	}
	d.emit(EntryPut{
		Key:         d.users.Key(e),
		Host:        d.users.Host(e),
		Epoch:       e.Epoch(),
		Active:      e.Sessions() > 0,
		LastRefresh: d.start.Add(e.LastRefresh()),
	})
}

func (d *Director) drop(e *users.Entry) {
	key := d.users.Key(e)
	if e.Stored() {
		d.emit(EntryDrop{Key: key})
	}
	d.users.Remove(e)
	delete(d.ordered, key)
}

// expire drops entries that were not used for long.
func (d *Director) expire() {
	for range maxExpiries {
		e := d.users.Oldest()
		if e == nil {
			return
		}
		if at, _ := d.users.ExpiresAt(e); at > d.now {
			return
		}
		key, weak := d.users.Key(e), e.Weak()
		d.drop(e)
		if weak {
			d.warn("user %s: nobody said whether it is used elsewhere; its entry is dropped", key)
			d.retryUser(key)
		}
	}
}

// tell tells the ring. What has nothing to do with a message just heard is told to its source as well.
func (d *Director) tell(m Message, source bool) {
	d.emit(Tell{Message: m, Source: source || !d.hearing})
}

func (d *Director) warn(format string, args ...any) { d.emit(Warn{Text: fmt.Sprintf(format, args...)}) }
