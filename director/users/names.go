package users

import (
	"slices"
	"strings"
)

// manyNames is the number of names from which an entry gets a map of them. With the default format an
// entry has one name, and walking a short list is faster and smaller than a map; with a format such as
// "%Ld" it has all users of a domain.
const manyNames = 8

// name is a user name seen under a hash, and its sessions.
type name struct {
	user     string
	sessions uint32
	next     uint32 // 0: the last
}

// Start counts a new session of user and reports whether the name is new to the entry.
func (d *Directory) Start(e *Entry, user string) (first bool) {
	n := d.find(e, user)
	if first = n == nil; first {
		n = d.addName(e, user)
	}
	n.sessions++
	d.hosts[e.host].sessions++
	if e.sessions++; e.sessions == 1 {
		d.unlink(e)
		d.settle(e)
	}
	return first
}

// End counts a session of user as over. It reports false if user has none.
func (d *Directory) End(e *Entry, user string) bool {
	n := d.find(e, user)
	if n == nil || n.sessions == 0 {
		return false
	}
	n.sessions--
	d.hosts[e.host].sessions--
	if e.sessions--; e.sessions == 0 {
		d.unlink(e)
		d.settle(e)
	}
	return true
}

// Note remembers a name without a session.
func (d *Directory) Note(e *Entry, user string) {
	if d.find(e, user) == nil {
		d.addName(e, user)
	}
}

// SessionsOf returns the number of sessions of one user.
func (d *Directory) SessionsOf(e *Entry, user string) uint32 {
	if n := d.find(e, user); n != nil {
		return n.sessions
	}
	return 0
}

// Names returns the names seen under an entry, sorted.
func (d *Directory) Names(e *Entry) []string {
	var all []string
	for i := e.names; i != 0; i = d.names.at(i).next {
		all = append(all, d.names.at(i).user)
	}
	slices.Sort(all)
	return all
}

func (d *Directory) find(e *Entry, user string) *name {
	if index, ok := d.many[e.self]; ok {
		if i, ok := index[user]; ok {
			return d.names.at(i)
		}
		return nil
	}
	for i := e.names; i != 0; i = d.names.at(i).next {
		if n := d.names.at(i); n.user == user {
			return n
		}
	}
	return nil
}

func (d *Directory) addName(e *Entry, user string) *name {
	user = strings.Clone(user) // it may be a piece of something large
	i := d.names.add()
	n := d.names.at(i)
	*n = name{user: user, next: e.names}
	e.names = i

	index, ok := d.many[e.self]
	if !ok {
		count, j := 0, i
		for ; j != 0 && count < manyNames; count++ {
			j = d.names.at(j).next
		}
		if count < manyNames {
			return n
		}
		index = make(map[string]uint32)
		d.many[e.self] = index
		for j := n.next; j != 0; j = d.names.at(j).next {
			index[d.names.at(j).user] = j
		}
	}
	index[user] = i
	return n
}

func (d *Directory) forgetNames(e *Entry) {
	delete(d.many, e.self)
	for i := e.names; i != 0; {
		n := d.names.at(i)
		next := n.next
		*n = name{}
		d.names.drop(i)
		i = next
	}
}
