package steer

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"usher/director"
	"usher/steer/handover"
)

// Session is one client's connection and login. Everything behind mu of its table
// is guarded by it.
type Session struct {
	id       uint64
	protocol string
	client   handover.Tuple
	since    time.Time

	state   State
	user    string       // as it was routed
	key     director.Key // of its entry; zero before the route is known and when the director was bypassed
	epoch   uint32
	backend handover.Tuple
	pair    *handover.Pair          // while Relayed
	cancel  context.CancelCauseFunc // while in user space
	stop    error                   // set once it must end; the reason
	started bool                    // the director counts it
	over    bool                    // not in the table any more
}

// SessionInfo describes a session to people.
type SessionInfo struct {
	ID              uint64
	Protocol        string
	Client, Backend handover.Tuple
	User            string
	Key             director.Key
	State           State
	Mode            Mode            // "" before the login
	Reason          handover.Reason // why it is not in the kernel
	Since           time.Time
	// Payload bytes that user space has moved; those of a session in the kernel are in its flows.
	ToBackend, ToClient uint64
}

// Counts are numbers of sessions.
type Counts struct {
	Total    int // all, before the login too
	Prelogin int // before the login
	ByMode   map[Mode]int
}

// Table has all sessions.
type Table struct {
	kernelMode, userMode Mode

	mu       sync.Mutex
	next     uint64
	byClient map[handover.Tuple]*Session
	byKey    map[director.Key][]*Session // those whose route is known
	counts   [Forwarded + 1]int          // by state
}

func newTable(kernelMode, userMode Mode) *Table {
	return &Table{
		kernelMode: kernelMode, userMode: userMode,
		byClient: map[handover.Tuple]*Session{}, byKey: map[director.Key][]*Session{},
	}
}

// add makes a session for a client's connection.
func (t *Table) add(protocol string, client handover.Tuple, cancel context.CancelCauseFunc) *Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	s := &Session{id: t.next, protocol: protocol, client: client, since: time.Now(), cancel: cancel}
	t.byClient[client] = s
	t.counts[Accepted]++
	return s
}

// adopt makes the session of flows that an earlier process left.
func (t *Table) adopt(f handover.Flow) *Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	s := &Session{
		id: t.next, protocol: f.Owner.Protocol, client: f.Tuple, backend: f.Other, since: f.Owner.Since,
		state: Forwarded, user: f.Owner.User, epoch: f.Owner.Epoch,
		key: director.Key{Hash: f.Owner.Hash, Tag: f.Owner.Tag}, started: true,
	}
	t.byClient[s.client] = s
	t.byKey[s.key] = append(t.byKey[s.key], s)
	t.counts[Forwarded]++
	return s
}

// set changes the state.
func (t *Table) set(s *Session, state State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setLocked(s, state)
}

func (t *Table) setLocked(s *Session, state State) {
	t.counts[s.state]--
	s.state = state
	t.counts[state]++
}

// route notes where the session goes, so that a Stop finds it.
func (t *Table) route(s *Session, user string, key director.Key, epoch uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unrouteLocked(s)
	s.user, s.key, s.epoch = user, key, epoch
	t.byKey[key] = append(t.byKey[key], s)
}

// unroute takes that back: the login failed.
func (t *Table) unroute(s *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unrouteLocked(s)
}

func (t *Table) unrouteLocked(s *Session) {
	if s.key == (director.Key{}) {
		return
	}
	list := t.byKey[s.key]
	for i, other := range list {
		if other == s {
			list[i] = list[len(list)-1]
			list[len(list)-1] = nil
			list = list[:len(list)-1]
			break
		}
	}
	if len(list) == 0 {
		delete(t.byKey, s.key)
	} else {
		t.byKey[s.key] = list
	}
	s.key = director.Key{}
}

// relayed: the login succeeded.
func (t *Table) relayed(s *Session, user string, pair *handover.Pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.user, s.pair, s.backend = user, pair, pair.BackendTuple
	s.started = s.key != director.Key{}
	t.setLocked(s, Relayed)
}

// forwarded: the kernel carries it. It returns why the session must end, if
// somebody wanted that meanwhile.
func (t *Table) forwarded(s *Session) (stop error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.pair, s.cancel = nil, nil
	t.setLocked(s, Forwarded)
	return s.stop
}

// end removes a session; ok is false when that has been done before. It returns the
// event for the director, and whether it is to have one.
func (t *Table) end(s *Session) (ev director.SessionEnd, tell, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.over {
		return ev, false, false
	}
	s.over = true
	// A new connection with the same tuple may have taken its place.
	if t.byClient[s.client] == s {
		delete(t.byClient, s.client)
	}
	t.counts[s.state]--
	ev = director.SessionEnd{Key: s.key, User: s.user, Epoch: s.epoch}
	t.unrouteLocked(s)
	return ev, s.started, true
}

// find returns the session with this client connection.
func (t *Table) find(client handover.Tuple) *Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byClient[client]
}

func (t *Table) stateOf(s *Session) State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.state
}

// stopped is why a session was ended by us; it is the cause of its context.
type stopped struct{ how string }

func (e stopped) Error() string { return "stopped: " + e.how }

// stop marks the sessions that a Stop means. It cancels those in user space and
// returns those in the kernel.
func (t *Table) stop(stop director.Stop) (inKernel []handover.Tuple) {
	t.mu.Lock()
	defer t.mu.Unlock()
	why := stopped{stop.Reason.String()}
	for _, s := range t.byKey[stop.Key] {
		if s.epoch > stop.Epoch || stop.User != "" && s.user != stop.User {
			continue
		}
		s.stop = why
		if s.state == Forwarded {
			inKernel = append(inKernel, s.client)
		} else if s.cancel != nil {
			s.cancel(why)
		}
	}
	return inKernel
}

func (t *Table) info(s *Session) SessionInfo {
	i := SessionInfo{
		ID: s.id, Protocol: s.protocol, Client: s.client, Backend: s.backend, User: s.user, Key: s.key,
		State: s.state, Mode: t.mode(s), Since: s.since,
	}
	if s.pair != nil {
		i.Reason = s.pair.Reason()
		i.ToBackend, i.ToClient = s.pair.ToBackend.Load(), s.pair.ToClient.Load()
	}
	return i
}

func (t *Table) mode(s *Session) Mode {
	switch s.state {
	case Forwarded:
		return t.kernelMode
	case Relayed:
		return t.userMode
	}
	return ""
}

// Sessions returns all sessions that keep returns true for; nil means all.
func (t *Table) Sessions(keep func(SessionInfo) bool) []SessionInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found []SessionInfo
	for s := range maps.Values(t.byClient) {
		if i := t.info(s); keep == nil || keep(i) {
			found = append(found, i)
		}
	}
	return found
}

// Of returns the sessions under a director's key.
func (t *Table) Of(key director.Key) []SessionInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := make([]SessionInfo, 0, len(t.byKey[key]))
	for _, s := range t.byKey[key] {
		found = append(found, t.info(s))
	}
	return found
}

// Counts counts.
func (t *Table) Counts() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := Counts{ByMode: map[Mode]int{}, Total: len(t.byClient)}
	c.ByMode[t.kernelMode] += t.counts[Forwarded]
	c.ByMode[t.userMode] += t.counts[Relayed]
	delete(c.ByMode, "")
	c.Prelogin = c.Total - t.counts[Forwarded] - t.counts[Relayed]
	return c
}

// StayReasons counts the sessions in user space by reason. It looks at each of them.
func (t *Table) StayReasons() map[handover.Reason]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	reasons := map[handover.Reason]int{}
	for _, s := range t.byClient {
		if s.pair != nil {
			reasons[s.pair.Reason()]++
		}
	}
	return reasons
}

// cancelAll ends everything in user space.
func (t *Table) cancelAll(why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.byClient {
		if s.cancel != nil {
			s.cancel(why)
		}
	}
}

// errShutdown is the cause when the server stops.
var errShutdown = errors.New("server stops")
