package loader

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"usher/bpf"
	"usher/director"
	"usher/steer/route"
)

var _ route.Store = (*Kernel)(nil)

// tagNumber is how a tag is written in map keys; 0 is no tag.
func tagNumber(tag string) uint32 {
	if tag == "" {
		return 0
	}
	h := fnv.New32a()
	h.Write([]byte(tag))
	return max(h.Sum32(), 1)
}

func userKey(k director.Key) bpf.SpliceUserKey {
	return bpf.SpliceUserKey{Hash: k.Hash, Tag: tagNumber(k.Tag)}
}

// PutEntry writes a user's entry. With another epoch than before, this one write
// stops every flow of the user at its next packet.
func (k *Kernel) PutEntry(key director.Key, host netip.Addr, epoch uint32, active bool) error {
	if err := k.putTag(key.Tag); err != nil {
		return err
	}
	v := bpf.SpliceUser{Host: host.As16(), Epoch: epoch, LastSeen: monotonic()}
	if active {
		v.Flags = uint32(bpf.SpliceUserFlagUSER_ACTIVE)
	}
	if err := k.objs.Users.Put(userKey(key), &v); err != nil {
		return fmt.Errorf("write entry of user hash %v: %w", key, err)
	}
	return nil
}

// DropEntry removes a user's entry and names. Flows that it still has are stopped.
func (k *Kernel) DropEntry(dk director.Key) error {
	key := userKey(dk)
	if err := k.objs.Users.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove entry of user hash %v: %w", dk, err)
	}
	for i, name := range k.names.drop(key) {
		for piece := 0; piece*pieceSize < len(name); piece++ {
			_ = k.objs.Names.Delete(bpf.SpliceNameKey{Hash: key.Hash, Tag: key.Tag, Name: uint16(i), Piece: uint16(piece)})
		}
	}
	return nil
}

// PutName remembers the name of a user of this hash.
func (k *Kernel) PutName(dk director.Key, user string) error {
	key := userKey(dk)
	number, isNew := k.names.add(key, user)
	if !isNew {
		return nil
	}
	return k.writeName(bpf.SpliceNameKey{Hash: key.Hash, Tag: key.Tag, Name: number}, user)
}

var pieceSize = len(bpf.SpliceNamePiece{}.Text)

func (k *Kernel) writeName(key bpf.SpliceNameKey, name string) error {
	for piece := 0; piece*pieceSize < len(name); piece++ {
		key.Piece = uint16(piece)
		var p bpf.SpliceNamePiece
		copy(p.Text[:], name[piece*pieceSize:])
		if err := k.objs.Names.Put(key, &p); err != nil {
			return fmt.Errorf("write name %q: %w", name, err)
		}
	}
	return nil
}

// putTag remembers a tag's text, under the user hash 0, which no user has.
func (k *Kernel) putTag(tag string) error {
	number := tagNumber(tag)
	if !k.tags.add(number, tag) {
		return nil
	}
	return k.writeName(bpf.SpliceNameKey{Tag: number}, tag)
}

// Entries returns the entries of all users, with their names.
func (k *Kernel) Entries() ([]route.Entry, error) {
	var found []route.Entry
	now, wall := monotonic(), time.Now()
	var key bpf.SpliceUserKey
	var v bpf.SpliceUser
	it := k.objs.Users.Iterate()
	for it.Next(&key, &v) {
		e := route.Entry{
			Key:  director.Key{Hash: key.Hash, Tag: k.tags.text(key.Tag)},
			Host: netip.AddrFrom16(v.Host).Unmap(), Epoch: v.Epoch,
			Active:   v.Flags&uint32(bpf.SpliceUserFlagUSER_ACTIVE) != 0,
			LastSeen: wall.Add(-time.Duration(now - min(now, v.LastSeen))),
			Users:    k.names.all(key),
		}
		found = append(found, e)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read users map: %w", err)
	}
	return found, nil
}

// loadNames reads the names that an earlier daemon wrote.
func (k *Kernel) loadNames() error {
	k.names.byKey = map[bpf.SpliceUserKey][]string{}
	k.tags.byNumber = map[uint32]string{0: ""}
	pieces := map[bpf.SpliceNameKey][]byte{}
	var key bpf.SpliceNameKey
	var p bpf.SpliceNamePiece
	it := k.objs.Names.Iterate()
	for it.Next(&key, &p) {
		pieces[key] = bytes.Clone(bytes.TrimRight(p.Text[:], "\x00"))
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read names map: %w", err)
	}
	for key, text := range pieces {
		if key.Piece != 0 {
			continue
		}
		name := append([]byte(nil), text...)
		for next := key; len(text) == pieceSize; {
			next.Piece++
			text = pieces[next]
			name = append(name, text...)
		}
		if key.Hash == 0 {
			k.tags.byNumber[key.Tag] = string(name)
			continue
		}
		k.names.set(bpf.SpliceUserKey{Hash: key.Hash, Tag: key.Tag}, key.Name, string(name))
	}
	return nil
}

// names numbers the names of users that share a hash.
type names struct {
	mu    sync.Mutex
	byKey map[bpf.SpliceUserKey][]string
}

func (n *names) add(key bpf.SpliceUserKey, name string) (number uint16, isNew bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, have := range n.byKey[key] {
		if have == name {
			return uint16(i), false
		}
	}
	n.byKey[key] = append(n.byKey[key], name)
	return uint16(len(n.byKey[key]) - 1), true
}

func (n *names) number(key bpf.SpliceUserKey, name string) uint16 {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, have := range n.byKey[key] {
		if have == name {
			return uint16(i)
		}
	}
	return 0
}

func (n *names) set(key bpf.SpliceUserKey, number uint16, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(n.byKey[key]) <= int(number) {
		n.byKey[key] = append(n.byKey[key], "")
	}
	n.byKey[key][number] = name
}

func (n *names) text(key bpf.SpliceUserKey, number uint16) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if have := n.byKey[key]; int(number) < len(have) {
		return have[number]
	}
	return ""
}

func (n *names) all(key bpf.SpliceUserKey) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.byKey[key]...)
}

func (n *names) drop(key bpf.SpliceUserKey) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	have := n.byKey[key]
	delete(n.byKey, key)
	return have
}

// tags remembers which tag a number stands for.
type tags struct {
	mu       sync.Mutex
	byNumber map[uint32]string
}

func (t *tags) add(number uint32, tag string) (isNew bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, have := t.byNumber[number]; have {
		return false
	}
	t.byNumber[number] = tag
	return true
}

func (t *tags) text(number uint32) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byNumber[number]
}
