package penalty

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// key is an IPv4 address or the first half of an IPv6 address. It has no pointers, so that the collector of garbage never
// looks at the table.
type key struct {
	bits uint64
	v6   bool
}

func keyOf(a netip.Addr) key {
	if a.Is4() {
		b := a.As4()
		return key{bits: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return key{bits: binary.BigEndian.Uint64(b[:8]), v6: true}
}

// remembered is how many failed pairs of user and password an address is known by, as in Dovecot's anvil.
const remembered = 10

// entry is an address: 128 bytes.
type entry struct {
	key    key
	self   int32 // place in cache.entries
	newer  int32 // places in the list, by last use
	older  int32
	inside uint16 // attempts between Begin and End, while it is punished
	level  uint8  // 0: not punished
	next   uint8  // of recent
	recent [remembered]uint32
	used   time.Duration // since the table's start
	failed time.Duration
	bucket bucket
}

// knows reports whether a pair failed lately, and remembers it.
func (e *entry) knows(sum uint32) bool {
	if slices.Contains(e.recent[:], sum) {
		return true
	}
	e.recent[e.next] = sum
	e.next = (e.next + 1) % remembered
	return false
}

// cache is a fixed number of entries in a list by last use; place 0 is the list's head and no entry.
type cache struct {
	index   map[key]int32
	entries []entry // grows up to its limit and never beyond
	free    []int32
	limit   int
}

func newCache(limit int) cache {
	return cache{index: make(map[key]int32), entries: make([]entry, 1), limit: limit}
}

func (c *cache) len() int { return len(c.index) }

// get returns an address's entry or nil. The pointer is valid until the next add.
func (c *cache) get(k key) *entry {
	if i, ok := c.index[k]; ok {
		return &c.entries[i]
	}
	return nil
}

// add makes an entry for an address that has none. When the table is full, the one that was not used for longest goes:
// whoever has more addresses than the table has places is not stopped by penalties anyway.
func (c *cache) add(k key, now time.Duration, config Config) *entry {
	for oldest := c.entries[0].newer; oldest != 0; oldest = c.entries[0].newer {
		if len(c.index) < c.limit && now-c.entries[oldest].used <= config.Expire {
			break
		}
		c.remove(&c.entries[oldest])
	}
	var i int32
	if n := len(c.free); n > 0 {
		i, c.free = c.free[n-1], c.free[:n-1]
	} else {
		i = int32(len(c.entries))
		c.entries = append(c.entries, entry{})
	}
	c.entries[i] = entry{key: k, self: i, bucket: newBucket(config.PerAddress, now)}
	c.index[k] = i
	e := &c.entries[i]
	c.link(e, now)
	return e
}

// link makes e the newest of the list, which begins with the oldest.
func (c *cache) link(e *entry, now time.Duration) {
	head := &c.entries[0]
	e.used, e.older, e.newer = now, head.older, 0
	c.entries[head.older].newer = e.self // with an empty list, that is head itself
	head.older = e.self
}

func (c *cache) unlink(e *entry) {
	c.entries[e.older].newer = e.newer
	c.entries[e.newer].older = e.older
}

func (c *cache) touch(e *entry, now time.Duration) {
	c.unlink(e)
	c.link(e, now)
}

func (c *cache) remove(e *entry) {
	c.unlink(e)
	delete(c.index, e.key)
	c.free = append(c.free, e.self)
}

// forgive ends the penalty.
func (c *cache) forgive(e *entry) {
	e.level, e.next, e.recent = 0, 0, [remembered]uint32{}
}

// tidy removes an entry that says nothing more than none would.
func (c *cache) tidy(e *entry, config Config, now time.Duration) {
	e.bucket.fill(config.PerAddress, now)
	if e.level == 0 && e.inside == 0 && e.bucket.tokens >= float64(config.PerAddress.Burst) {
		c.remove(e)
	}
}

// bucket holds tokens, and fewer than none when they were taken in advance.
type bucket struct {
	tokens float64
	filled time.Duration
}

func newBucket(r Rate, now time.Duration) bucket {
	return bucket{tokens: float64(r.Burst), filled: now}
}

func (b *bucket) fill(r Rate, now time.Duration) {
	b.tokens = min(b.tokens+(now-b.filled).Seconds()*r.PerSecond, float64(r.Burst))
	b.filled = now
}

// wait is how long one more token would have to be waited for.
func (b *bucket) wait(r Rate, now time.Duration) time.Duration {
	b.fill(r, now)
	if b.tokens >= 1 {
		return 0
	}
	if r.PerSecond <= 0 {
		return time.Hour
	}
	return time.Duration((1 - b.tokens) / r.PerSecond * float64(time.Second))
}

// put gives a token back.
func (b *bucket) put(r Rate) { b.tokens = min(b.tokens+1, float64(r.Burst)) }
