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

// unlinked marks an entry that is not in the idle list.
const unlinked = ^uint32(0)

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
	prev     uint32 // idle list, ordered by refresh; entry 0 is its head
	next     uint32
	names    uint32 // first name, 0: none
	tag      uint16 // index into Directory.tags
	used     bool   // a live entry, not a free slot
	held     bool   // not to expire, though without sessions
}

// Epoch returns the current epoch.
func (e *Entry) Epoch() uint32 { return e.epoch }

// Born returns the epoch the entry started with.
func (e *Entry) Born() uint32 { return e.born }

// Sessions returns the number of sessions.
func (e *Entry) Sessions() uint32 { return e.sessions }

// LastRefresh returns when the entry was last used.
func (e *Entry) LastRefresh() time.Duration { return e.refresh }

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

	// Hosts and tags are only ever added to; there are as many as the operator has ever named.
	hosts   []host
	hostNum map[netip.Addr]uint32
	tags    []tag
	tagNum  map[string]uint16
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
	d.entries.add() // 0: the head of the idle list
	d.names.add()   // 0: no name
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
		prev: unlinked, next: unlinked, tag: d.tagOf(key.Tag), used: true,
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
	h := &d.hosts[e.host]
	h.users--
	h.sessions -= int(e.sessions)
	delete(d.tags[e.tag].index, e.hash)
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
	old := &d.hosts[e.host]
	old.users--
	old.sessions -= int(e.sessions)
	e.host = d.hostOf(addr)
	h := &d.hosts[e.host]
	h.users++
	h.sessions += int(e.sessions)
}

// Load returns how many users and sessions are on a host.
func (d *Directory) Load(addr netip.Addr) (users, sessions int) {
	if i, ok := d.hostNum[addr]; ok {
		return d.hosts[i].users, d.hosts[i].sessions
	}
	return 0, 0
}

// Refresh notes that an entry was used. A moment before the last use changes nothing.
func (d *Directory) Refresh(e *Entry, at time.Duration) {
	if at > e.refresh {
		d.unlink(e)
		e.refresh = at
		d.settle(e)
	}
}

// Hold keeps an entry from expiring until Release, sessions or not.
func (d *Directory) Hold(e *Entry) {
	e.held = true
	d.unlink(e)
}

// Release ends Hold.
func (d *Directory) Release(e *Entry) {
	e.held = false
	d.settle(e)
}

// ExpiresAt returns when an entry expires, and false while it cannot.
func (d *Directory) ExpiresAt(e *Entry) (time.Duration, bool) {
	return e.refresh + d.expire, e.next != unlinked
}

// Oldest returns the entry that expires first, nil if none can.
func (d *Directory) Oldest() *Entry {
	if first := d.entries.at(0).next; first != 0 {
		return d.entries.at(first)
	}
	return nil
}

// All yields every entry, in an order that depends only on what was added and removed before. The
// entry that was just yielded may be removed.
func (d *Directory) All() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		for i := range d.entries.len() {
			if e := d.entries.at(i); e.used && !yield(e) {
				return
			}
		}
	}
}

// settle links an entry that may expire into the idle list, at its place. That is the end of the list
// unless the entry was restored, or learnt, with a use in the past.
func (d *Directory) settle(e *Entry) {
	if e.sessions > 0 || e.held || e.next != unlinked {
		return
	}
	after := d.entries.at(d.entries.at(0).prev)
	for after.self != 0 && after.refresh > e.refresh {
		after = d.entries.at(after.prev)
	}
	e.prev, e.next = after.self, after.next
	d.entries.at(e.next).prev = e.self
	after.next = e.self
}

func (d *Directory) unlink(e *Entry) {
	if e.next != unlinked {
		d.entries.at(e.prev).next = e.next
		d.entries.at(e.next).prev = e.prev
		e.prev, e.next = unlinked, unlinked
	}
}

func (d *Directory) hostOf(addr netip.Addr) uint32 {
	i, ok := d.hostNum[addr]
	if !ok {
		i = uint32(len(d.hosts))
		d.hosts = append(d.hosts, host{addr: addr})
		d.hostNum[addr] = i
	}
	return i
}

func (d *Directory) tagOf(name string) uint16 {
	i, ok := d.tagNum[name]
	if !ok {
		if len(d.tags) > 0xffff {
			panic("users: more than 65536 tags")
		}
		i = uint16(len(d.tags))
		d.tags = append(d.tags, tag{name: name, index: make(map[uint32]uint32)})
		d.tagNum[name] = i
	}
	return i
}
