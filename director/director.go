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
	DefaultUserExpire  = 15 * time.Minute
	DefaultMoveTimeout = 30 * time.Second
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

	out []Effect // of the present Step
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
	return &Director{
		config: config,
		users:  users.New(config.UserExpire),
		moves:  move.New(config.MoveTimeout, config.KickDelay),
	}
}

// Step tells the director that ev happens now and returns what is to be done about it, in this order.
// What became due since the last Step is done first.
func (d *Director) Step(now time.Time, ev Event) []Effect {
	if d.start.IsZero() {
		d.start = now
	}
	d.now = max(d.now, now.Sub(d.start))

	d.finishMoves()
	d.expire()
	switch ev := ev.(type) {
	case Lookup:
		d.lookup(ev.Request, d.KeyOf(ev.User, ev.Tag))
	case Forget:
		d.moves.Forget(ev.Request)
	case SessionStart:
		d.sessionStart(ev)
	case SessionEnd:
		d.sessionEnd(ev)
	case Active:
		if e := d.users.Get(ev.Key); e != nil {
			d.users.Refresh(e, d.now)
		}
	case HostPut:
		d.hostPut(ev.Host)
	case HostRemove:
		if d.hosts.Remove(ev.Addr.Unmap()) {
			d.evict(ev.Addr.Unmap())
		}
	case HostUp:
		d.hosts.SetUp(ev.Addr.Unmap(), ev.Up)
	case Move:
		if err := d.move(ev); err != nil {
			d.emit(Done{ID: ev.ID, Err: err})
		}
	case Kick:
		d.emit(Done{ID: ev.ID, Err: d.kick(ev)})
	case Adopt:
		d.adopt(ev)
	case Tick:
	}
	d.finishMoves() // a move with nothing to wait for ends in the Step that begins it

	out := d.out
	d.out = nil
	return out
}

// Next returns when the next Tick has something to do, given that nothing else happens until then;
// the zero time if never. It may be in the past, when one Tick was not enough.
func (d *Director) Next() time.Time {
	next, ok := d.moves.Next()
	if e := d.users.Oldest(); e != nil {
		if at, _ := d.users.ExpiresAt(e); !ok || at < next {
			next, ok = at, true
		}
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

// lookup answers a request: from the entry, by a new entry, or not before the end of the user's move.
func (d *Director) lookup(request uint64, key Key) {
	if m := d.moves.Get(key); m != nil {
		d.moves.Wait(m, request)
		return
	}
	e := d.users.Get(key)
	if e == nil {
		addr, ok := d.hosts.Place(key.Tag, key.Hash)
		if !ok {
			d.emit(Refused{Request: request, Reason: noHosts(key.Tag)})
			return
		}
		e = d.create(key, addr)
	}
	d.users.Refresh(e, d.now)
	host, _ := d.hosts.Get(d.users.Host(e)) // there is one: evict leaves no entry behind
	d.emit(Assigned{Request: request, Key: key, Host: host.Host, Epoch: e.Epoch()})
}

func noHosts(tag string) error {
	if tag == "" {
		return ErrNoHosts
	}
	return fmt.Errorf("tag %q: %w", tag, ErrNoHosts)
}

func (d *Director) create(key Key, addr netip.Addr) *users.Entry {
	e := d.users.Add(key, addr, d.now)
	d.put(e)
	return e
}

// put stores an entry as it is now.
func (d *Director) put(e *users.Entry) {
	d.emit(EntryPut{
		Key:         d.users.Key(e),
		Host:        d.users.Host(e),
		Epoch:       e.Epoch(),
		Active:      e.Sessions() > 0,
		LastRefresh: d.start.Add(e.LastRefresh()),
	})
}

func (d *Director) drop(e *users.Entry) {
	d.emit(EntryDrop{Key: d.users.Key(e)})
	d.users.Remove(e)
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
		d.drop(e)
	}
}
