package penalty

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"usher/steer/prelogin"
)

// The values of Config that are not set.
const (
	DefaultFailureDelay = 2 * time.Second
	DefaultMaxDelay     = 15 * time.Second
	DefaultExpire       = time.Hour
	DefaultAddresses    = 65536
	DefaultParallel     = 16
	DefaultMaxWait      = 5 * time.Second
)

// The limits of names that nobody knows, when Config has none. After a restart without entries everybody is unknown: a
// large office, and all users of a large site, have to fit at once.
var (
	DefaultPerAddress = Rate{PerSecond: 2, Burst: 200}
	DefaultTotal      = Rate{PerSecond: 200, Burst: 5000}
)

// Rate is how many may fail in the long run, and how many may be on their way or fail at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

// Config bounds and delays. A zero field means its default.
type Config struct {
	FailureDelay time.Duration  // from the attempt to its refusal; negative: no delays and no penalty
	MaxDelay     time.Duration  // the longest penalty
	Expire       time.Duration  // when an address is forgotten after its last failure; after a success, at twice that
	Addresses    int            // in the table; the one that was quiet for longest makes room
	Parallel     int            // attempts of a punished address at a time
	Exempt       []netip.Prefix // networks that are not punished, and share the total of the familiar ones only

	PerAddress Rate          // of logins with unknown names
	Total      Rate          // the same, of all strange addresses together, and of all familiar ones
	MaxWait    time.Duration // for a token; who would have to wait for longer is refused at once
}

// Errors of attempts that are not made. To a client they are temporary.
var (
	ErrBusy = errors.New("too many attempts of this address at once, after failed ones")
	ErrRate = errors.New("too many logins with unknown names")
)

// Table knows the addresses. Its methods may be called at the same time.
type Table struct {
	config Config
	start  time.Time
	seed   maphash.Seed

	mu                 sync.Mutex
	cache              cache
	familiar           familiar
	strangers, friends bucket // both of Config.Total: of addresses from which nobody, and somebody, has logged in
	stats              Stats
}

// Stats is a snapshot of a Table.
type Stats struct {
	Addresses int // in the table now

	// Since the start:
	Delayed, Busy     uint64 // attempts that waited for the penalty, and that were refused with ErrBusy
	Failed            uint64 // wrong passwords
	Provisional, Rate uint64 // logins with unknown names, and those refused with ErrRate
	Accepted          uint64 // of the provisional ones
}

// New returns an empty Table.
func New(c Config) *Table {
	c.FailureDelay = cmp.Or(c.FailureDelay, DefaultFailureDelay)
	c.MaxDelay = cmp.Or(c.MaxDelay, DefaultMaxDelay)
	c.Expire = cmp.Or(c.Expire, DefaultExpire)
	c.Addresses = cmp.Or(c.Addresses, DefaultAddresses)
	c.Parallel = cmp.Or(c.Parallel, DefaultParallel)
	c.MaxWait = cmp.Or(c.MaxWait, DefaultMaxWait)
	c.PerAddress = cmp.Or(c.PerAddress, DefaultPerAddress)
	c.Total = cmp.Or(c.Total, DefaultTotal)
	seed := maphash.MakeSeed()
	return &Table{
		config: c, start: time.Now(), seed: seed, cache: newCache(c.Addresses),
		familiar: newFamiliar(seed), strangers: newBucket(c.Total, 0), friends: newBucket(c.Total, 0),
	}
}

// Stats returns a snapshot.
func (t *Table) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Addresses = t.cache.len()
	return s
}

// now is the time since the start: half as large as a time.Time, and monotonic.
func (t *Table) now() time.Duration { return time.Since(t.start) }

func (t *Table) exempt(client netip.Addr) bool {
	for _, p := range t.config.Exempt {
		if p.Contains(client) {
			return true
		}
	}
	return false
}

// Attempt is one login. It is used by one goroutine and must be ended.
type Attempt struct {
	table   *Table
	address key
	exempt  bool
	begun   time.Time
	inside  bool    // counts among the attempts of a punished address
	total   *bucket // where its token is from; nil: it has none
}

// Begin waits for as long as the address has to. ErrBusy at once when too many of its attempts do already; the cause of
// ctx when that ends.
func (t *Table) Begin(ctx context.Context, client netip.Addr) (*Attempt, error) {
	client = client.Unmap()
	a := &Attempt{table: t, address: keyOf(client), exempt: t.exempt(client)}
	wait, err := a.enter()
	if err == nil {
		if err = sleep(ctx, wait); err != nil {
			a.End()
		}
	}
	if err != nil {
		return nil, err
	}
	a.begun = time.Now()
	return a, nil
}

// enter says how long the attempt has to wait.
func (a *Attempt) enter() (time.Duration, error) {
	t := a.table
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.cache.get(a.address)
	if e == nil || e.level == 0 || a.exempt {
		return 0, nil // the level stays 0 where there are no delays
	}
	if t.now()-e.failed > t.config.Expire {
		t.cache.forgive(e)
		return 0, nil
	}
	if int(e.inside) >= t.config.Parallel {
		t.stats.Busy++
		return 0, ErrBusy
	}
	e.inside++
	a.inside = true
	t.stats.Delayed++
	return t.config.delay(e.level), nil
}

// delay is twice the failure delay after the first failure, and doubles up to MaxDelay.
func (c Config) delay(level uint8) time.Duration {
	d := c.FailureDelay
	for range level {
		if d = 2 * d; d >= c.MaxDelay {
			return c.MaxDelay
		}
	}
	return d
}

// Provisional takes the tokens of a login whose name has no entry and whose password the backend will verify, waiting for
// them up to MaxWait. ErrRate, or the cause of ctx.
func (a *Attempt) Provisional(ctx context.Context) error {
	if a.total != nil {
		return nil
	}
	wait, err := a.take()
	if err != nil {
		return err
	}
	if err := sleep(ctx, wait); err != nil {
		a.giveBack() // it has cost the backends nothing
		return err
	}
	return nil
}

// take takes tokens, in advance if there are none, and says when they will be there.
func (a *Attempt) take() (time.Duration, error) {
	t := a.table
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	t.familiar.turn(now, t.config.Expire)
	total := &t.strangers
	if a.exempt || t.familiar.has(a.address) {
		total = &t.friends
	}
	wait := total.wait(t.config.Total, now)
	var e *entry
	if !a.exempt {
		e = t.cache.get(a.address)
		if e == nil && wait <= t.config.MaxWait { // nobody gets an entry by being refused
			e = t.cache.add(a.address, now, t.config)
		}
		if e != nil {
			wait = max(wait, e.bucket.wait(t.config.PerAddress, now))
		}
	}
	if wait > t.config.MaxWait {
		t.stats.Rate++
		return 0, ErrRate
	}
	total.tokens--
	if e != nil {
		e.bucket.tokens--
		t.cache.touch(e, now)
	}
	a.total = total
	t.stats.Provisional++
	return wait, nil
}

// giveBack returns the tokens.
func (a *Attempt) giveBack() {
	t := a.table
	t.mu.Lock()
	defer t.mu.Unlock()
	a.returnTokens()
}

// returnTokens must be called with the table's mu held.
func (a *Attempt) returnTokens() {
	if a.total == nil {
		return
	}
	t := a.table
	a.total.put(t.config.Total)
	a.total = nil
	if e := t.cache.get(a.address); e != nil && !a.exempt {
		e.bucket.put(t.config.PerAddress)
		t.cache.tidy(e, t.config, t.now())
	}
}

// Accepted says that the user is logged in: the address is forgiven, and the tokens are given back. The name may have its
// entry now.
func (a *Attempt) Accepted() {
	t := a.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.total != nil {
		t.stats.Accepted++
	}
	now := t.now()
	t.familiar.turn(now, t.config.Expire)
	t.familiar.add(a.address)
	e := t.cache.get(a.address)
	if e != nil && !a.exempt {
		t.cache.forgive(e)
	}
	if a.total != nil {
		a.returnTokens()
	} else if e != nil {
		t.cache.tidy(e, t.config, now)
	}
}

// Failed says how the attempt failed and returns when the client may be told: at once, unless the password was wrong or
// the refusal has to wait for a time of its own (atLeast since the attempt began; auth.Refused has one). Only a wrong
// password counts. The tokens come back when nobody could say whether the user may log in. The cause of ctx.
func (a *Attempt) Failed(ctx context.Context, login prelogin.Login, kind prelogin.Kind, atLeast time.Duration) error {
	switch kind {
	case prelogin.AuthFailed:
		a.count(login)
		atLeast = max(atLeast, a.table.config.FailureDelay)
	case prelogin.PermFail: // the backend knows the name, but that is no login
	default:
		a.giveBack()
	}
	return sleep(ctx, atLeast-time.Since(a.begun))
}

// count adds a failure to the address.
func (a *Attempt) count(login prelogin.Login) {
	t := a.table
	sum := t.checksum(login)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.Failed++
	a.total = nil
	if a.exempt || t.config.FailureDelay < 0 {
		return
	}
	now := t.now()
	e := t.cache.get(a.address)
	if e == nil {
		e = t.cache.add(a.address, now, t.config)
	} else if e.level > 0 && now-e.failed > t.config.Expire {
		t.cache.forgive(e)
	}
	t.cache.touch(e, now)
	e.failed = now
	if !e.knows(sum) && t.config.delay(e.level) < t.config.MaxDelay {
		e.level++
	}
}

// checksum stands for a user and a password; nobody can find out which, not even with the memory of the process later.
func (t *Table) checksum(login prelogin.Login) uint32 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	for _, s := range []string{login.Authzid, login.User, login.Password, login.Message} {
		h.WriteString(s)
		h.WriteByte(0) // no name or password has it
	}
	return uint32(h.Sum64()) | 1 // 0 is an empty place
}

// End gives the attempt's place to others. Tokens that nobody gave back stay spent.
func (a *Attempt) End() {
	if !a.inside {
		return
	}
	a.inside = false
	t := a.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.cache.get(a.address); e != nil && e.inside > 0 {
		e.inside--
		t.cache.tidy(e, t.config, t.now())
	}
}

// sleep returns after d, or with the cause of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
