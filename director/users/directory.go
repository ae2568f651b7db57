package users

import (
	"iter"
	"net/netip"
	"strconv"
	"time"
)

// A Key is the identity of an entry: the user hash (user-hash.md section 1; never 0) and the tag under
// which it was looked up. Users whose names collide share an entry, and so a host.
type Key struct {
	Hash uint32
	Tag  string
}

// String returns "704933450", or "704933450@tag" for a key with a tag.
func (k Key) String() string {
	hash := strconv.FormatUint(uint64(k.Hash), 10)
	if k.Tag == "" {
		return hash
	}
	return hash + "@" + k.Tag
}

// An Entry says which host a user is on. It belongs to its Directory; a pointer is good until the entry
// is removed.
type Entry struct {
	refresh  time.Duration // last use
	hash     uint32
	self     uint32 // number of this entry
	host     uint32 // index into Directory.hosts
	epoch    uint32
	born     uint32
	sessions uint32
	prev     uint32 // in one of the lists
	next     uint32
	names    uint32 // first name, 0: none
	tag      uint16 // index into Directory.tags
	flags    flag
}

// flag is a set of properties of an entry; a byte of them fits where five bools would not.
type flag uint8

const (
	used   flag = 1 << iota // a live entry, not a free slot
	held                    // not to expire, though without sessions
	weak                    // see SetWeak
	untold                  // see SetUntold
	active                  // linked into the active list, not the idle one
	stored                  // see SetStored
)

func (e *Entry) is(f flag) bool { return e.flags&f != 0 }

func (e *Entry) set(f flag, on bool) {
	if e.flags &^= f; on {
		e.flags |= f
	}
}

// Epoch returns the current epoch.
func (e *Entry) Epoch() uint32 { return e.epoch }

// Born returns the epoch the entry started with.
func (e *Entry) Born() uint32 { return e.born }

// Hash returns the user hash.
func (e *Entry) Hash() uint32 { return e.hash }

// Sessions returns the number of sessions.
func (e *Entry) Sessions() uint32 { return e.sessions }

// LastRefresh returns when the entry was last used.
func (e *Entry) LastRefresh() time.Duration { return e.refresh }

// Weak reports whether the entry is about to expire and others are being asked about it.
func (e *Entry) Weak() bool { return e.is(weak) }

// Untold reports whether the ring may not know of the entry.
func (e *Entry) Untold() bool { return e.is(untold) }

// SetUntold notes whether the ring may not know of the entry.
func (e *Entry) SetUntold(on bool) { e.set(untold, on) }

// Stored reports whether the entry is kept beyond the life of the process.
func (e *Entry) Stored() bool { return e.is(stored) }

// SetStored notes that the entry is kept beyond the life of the process.
func (e *Entry) SetStored() { e.set(stored, true) }

// Number returns the place of the entry, for At. After its removal the place may get another entry.
func (e *Entry) Number() uint32 { return e.self }

// Bump raises the epoch: no session that has begun is valid any more.
func (e *Entry) Bump() { e.epoch++ }

// host is an address that entries refer to, and how many do.
type host struct {
	addr            netip.Addr
	users, sessions int
}

// tag is a tag that entries refer to, and the index of its entries by hash.
type tag struct {
	name  string
	index map[uint32]uint32
}

// A Directory holds all entries.
type Directory struct {
	expire  time.Duration
	floor   uint32 // epoch of the next new entry
	count   int
	entries slab[Entry]
	names   slab[name]
	many    map[uint32]map[string]uint32 // names by text, for entries with many

	idle, held, active list
	cursors            []*Cursor

	// Hosts and tags that no entry refers to give their numbers back.
	hosts     []host
	hostNum   map[netip.Addr]uint32
	hostsFree []uint32
	tags      []tag
	tagNum    map[string]uint16
	tagsFree  []uint16
}

// New returns an empty directory whose entries expire so long after their last use.
func New(expire time.Duration) *Directory {
	d := &Directory{
		expire:  expire,
		floor:   1, // 0 is left to mean "no epoch"
		many:    make(map[uint32]map[string]uint32),
		hostNum: make(map[netip.Addr]uint32),
		tagNum:  make(map[string]uint16),
	}
	d.idle = list{head: d.entries.add(), tails: make(map[int64]uint32)} // entry 0
	d.held = list{head: d.entries.add(), tails: make(map[int64]uint32)}
	d.active = list{head: d.entries.add(), tails: make(map[int64]uint32)}
	for _, l := range []list{d.idle, d.held, d.active} {
		*d.entries.at(l.head) = Entry{self: l.head, prev: l.head, next: l.head}
	}
	d.names.add() // 0: no name
	return d
}

// Len returns the number of entries.
func (d *Directory) Len() int { return d.count }

// Get returns the entry of key, nil if there is none.
func (d *Directory) Get(key Key) *Entry {
	if t, ok := d.tagNum[key.Tag]; ok {
		if i, ok := d.tags[t].index[key.Hash]; ok {
			return d.entries.at(i)
		}
	}
	return nil
}

// Add makes the entry of key, which must not have one, with a fresh epoch.
func (d *Directory) Add(key Key, addr netip.Addr, at time.Duration) *Entry {
	return d.add(key, addr, d.floor, at)
}

// Restore makes the entry of key, which must not have one, with an epoch that it had before. New
// entries get higher epochs from now on.
func (d *Directory) Restore(key Key, addr netip.Addr, epoch uint32, at time.Duration) *Entry {
	d.floor = max(d.floor, epoch+1)
	return d.add(key, addr, epoch, at)
}

func (d *Directory) add(key Key, addr netip.Addr, epoch uint32, at time.Duration) *Entry {
	i := d.entries.add()
	e := d.entries.at(i)
	*e = Entry{
		refresh: at, hash: key.Hash, self: i, host: d.hostOf(addr), epoch: epoch, born: epoch,
		prev: unlinked, next: unlinked, tag: d.tagOf(key.Tag), flags: used,
	}
	d.count++
	d.tags[e.tag].index[e.hash] = i
	d.hosts[e.host].users++
	d.settle(e)
	return e
}

// Remove drops an entry with its names, whether it has sessions or not.
func (d *Directory) Remove(e *Entry) {
	d.floor = max(d.floor, e.epoch+1)
	d.unlink(e)
	d.forgetNames(e)
	d.count--
	d.leave(e)
	delete(d.tags[e.tag].index, e.hash)
	if t := &d.tags[e.tag]; len(t.index) == 0 && t.name != "" {
		delete(d.tagNum, t.name)
		*t = tag{}
		d.tagsFree = append(d.tagsFree, e.tag)
	}
	i := e.self
	*e = Entry{}
	d.entries.drop(i)
}

// Key returns the key of an entry.
func (d *Directory) Key(e *Entry) Key { return Key{Hash: e.hash, Tag: d.tags[e.tag].name} }

// Host returns the address of the host an entry is on.
func (d *Directory) Host(e *Entry) netip.Addr { return d.hosts[e.host].addr }

// SetHost puts an entry, with the sessions it is charged with, on another host.
func (d *Directory) SetHost(e *Entry, addr netip.Addr) {
	d.leave(e)
	e.host = d.hostOf(addr)
	h := &d.hosts[e.host]
	h.users++
	h.sessions += int(e.sessions)
}

// leave takes an entry off its host's account.
func (d *Directory) leave(e *Entry) {
	h := &d.hosts[e.host]
	h.users--
	h.sessions -= int(e.sessions)
	if h.users == 0 {
		delete(d.hostNum, h.addr)
		*h = host{}
		d.hostsFree = append(d.hostsFree, e.host)
	}
}

// Load returns how many users and sessions are on a host.
func (d *Directory) Load(addr netip.Addr) (users, sessions int) {
	if i, ok := d.hostNum[addr]; ok {
		return d.hosts[i].users, d.hosts[i].sessions
	}
	return 0, 0
}

// All yields every entry, in an order that depends only on what was added and removed before. The
// entry that was just yielded may be removed.
func (d *Directory) All() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		for i := range d.entries.len() {
			if e := d.entries.at(i); e.is(used) && !yield(e) {
				return
			}
		}
	}
}

// At returns the entry with this number, nil if there is none.
func (d *Directory) At(number uint32) *Entry {
	if number < d.entries.len() {
		if e := d.entries.at(number); e.is(used) {
			return e
		}
	}
	return nil
}

// Numbers is above the numbers of all entries.
func (d *Directory) Numbers() uint32 { return d.entries.len() }

// Tags yields the tags that have entries, in the order they came.
func (d *Directory) Tags() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, t := range d.tags {
			if t.index != nil && !yield(t.name) {
				return
			}
		}
	}
}

func (d *Directory) hostOf(addr netip.Addr) uint32 {
	i, ok := d.hostNum[addr]
	if !ok {
		if n := len(d.hostsFree); n > 0 {
			i, d.hostsFree = d.hostsFree[n-1], d.hostsFree[:n-1]
		} else {
			i = uint32(len(d.hosts))
			d.hosts = append(d.hosts, host{})
		}
		d.hosts[i] = host{addr: addr}
		d.hostNum[addr] = i
	}
	return i
}

func (d *Directory) tagOf(name string) uint16 {
	i, ok := d.tagNum[name]
	if !ok {
		if n := len(d.tagsFree); n > 0 {
			i, d.tagsFree = d.tagsFree[n-1], d.tagsFree[:n-1]
		} else {
			if len(d.tags) > 0xffff {
				panic("users: more than 65536 tags at a time")
			}
			i = uint16(len(d.tags))
			d.tags = append(d.tags, tag{})
		}
		d.tags[i] = tag{name: name, index: make(map[uint32]uint32)}
		d.tagNum[name] = i
	}
	return i
}
