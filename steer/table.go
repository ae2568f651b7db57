package steer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	"usher/director"
	"usher/steer/handover"
)

// Session is one client's connection and login. What is not constant is guarded by
// mu of its table. There may be a million of them, idle in the kernel: it is small
// then, and what only user space needs hangs on live.
type Session struct {
	id       uint64
	since    int64 // ns since 1970
	protocol string
	client   handover.Key

	state   State
	over    bool // not in the table any more
	epoch   uint32
	backend handover.Key
	key     director.Key    // of its entry; zero before the route is known and when the director was bypassed
	user    string          // as it was routed
	origin  *netip.AddrPort // the client itself, where a proxy has named it; nil: client
	next    *Session        // under the same key
	live    *live           // nil once the kernel carries it
}

// live is what a session has while user space does its work.
type live struct {
	pair   *handover.Pair // once it is Relayed
	cancel context.CancelCauseFunc
	stop   error // why it must end, once somebody wants that
}

// copied reports whether the session is one that is always copied.
func (l *live) copied() bool { return l.pair != nil && l.pair.Reason() == handover.TLS }

// name identifies the session in the logs of other servers: no two have the same one.
func (s *Session) name() string { return fmt.Sprintf("%x-%d", s.since, s.id) }

// who is the client.
func (s *Session) who() netip.AddrPort {
	if s.origin != nil {
		return *s.origin
	}
	return s.client.Tuple().Remote
}

// behind notes the client that a proxy has named.
func (t *Table) behind(s *Session, origin netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.origin = &origin
}

// SessionInfo describes a session to people.
type SessionInfo struct {
	ID              uint64
	Protocol        string
	Client, Backend handover.Tuple
	Origin          netip.AddrPort // the client itself: Client.Remote, unless a trusted proxy has named it
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
	byClient map[handover.Key]*Session
	byKey    map[director.Key]*Session // the first of those whose route is known
	counts   [Forwarded + 1]int        // by state
	copied   int                       // of those that are Relayed: by copying, whatever userMode is
}

func newTable(kernelMode, userMode Mode) *Table {
	return &Table{
		kernelMode: kernelMode, userMode: userMode,
		byClient: map[handover.Key]*Session{}, byKey: map[director.Key]*Session{},
	}
}

// add makes a session for a client's connection.
func (t *Table) add(protocol string, client handover.Tuple, cancel context.CancelCauseFunc) *Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	s := &Session{
		id: t.next, protocol: protocol, client: client.Key(), since: time.Now().UnixNano(), live: &live{cancel: cancel},
	}
	t.byClient[s.client] = s
	t.counts[Accepted]++
	return s
}

// adopt makes the session of flows that an earlier process left.
func (t *Table) adopt(f handover.Flow) *Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	s := &Session{
		id: t.next, protocol: f.Owner.Protocol, client: f.Tuple.Key(), backend: f.Other.Key(),
		since: f.Owner.Since.UnixNano(), state: Forwarded,
	}
	t.byClient[s.client] = s
	t.routeLocked(s, f.Owner.User, director.Key{Hash: f.Owner.Hash, Tag: f.Owner.Tag}, f.Owner.Epoch)
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
	t.routeLocked(s, user, key, epoch)
}

func (t *Table) routeLocked(s *Session, user string, key director.Key, epoch uint32) {
	s.user, s.key, s.epoch = user, key, epoch
	s.next = t.byKey[key]
	t.byKey[key] = s
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
	// A user has few sessions.
	if first := t.byKey[s.key]; first == s {
		if s.next == nil {
			delete(t.byKey, s.key)
		} else {
			t.byKey[s.key] = s.next
		}
	} else {
		for ; first != nil; first = first.next {
			if first.next == s {
				first.next = s.next
				break
			}
		}
	}
	s.key, s.next = director.Key{}, nil
}

// relayed: the login succeeded.
func (t *Table) relayed(s *Session, user string, pair *handover.Pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.user, s.live.pair, s.backend = user, pair, pair.BackendTuple.Key()
	if s.live.copied() {
		t.copied++
	}
	t.setLocked(s, Relayed)
}

// forwarded: the kernel carries it. It returns why the session must end, if
// somebody wanted that meanwhile. It may have ended already.
func (t *Table) forwarded(s *Session) (stop error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.over {
		return nil
	}
	stop = s.live.stop
	s.live = nil
	t.setLocked(s, Forwarded)
	return stop
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
	if s.state == Relayed && s.live.copied() {
		t.copied--
	}
	ev = director.SessionEnd{Key: s.key, User: s.user, Epoch: s.epoch}
	tell = s.state >= Relayed && s.key != director.Key{}
	t.unrouteLocked(s)
	return ev, tell, true
}

// find returns the session with this client connection.
func (t *Table) find(client handover.Tuple) *Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byClient[client.Key()]
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
	for s := t.byKey[stop.Key]; s != nil; s = s.next {
		if s.epoch > stop.Epoch || stop.User != "" && s.user != stop.User {
			continue
		}
		if s.live == nil {
			inKernel = append(inKernel, s.client.Tuple())
			continue
		}
		s.live.stop = why
		s.live.cancel(why)
	}
	return inKernel
}

func (t *Table) info(s *Session) SessionInfo {
	i := SessionInfo{
		ID: s.id, Protocol: s.protocol, Client: s.client.Tuple(), Origin: s.who(), Backend: s.backend.Tuple(), User: s.user, Key: s.key,
		State: s.state, Mode: t.mode(s), Since: time.Unix(0, s.since),
	}
	if s.live != nil && s.live.pair != nil {
		i.Reason = s.live.pair.Reason()
		i.ToBackend, i.ToClient = s.live.pair.ToBackend.Load(), s.live.pair.ToClient.Load()
	}
	return i
}

func (t *Table) mode(s *Session) Mode {
	switch s.state {
	case Forwarded:
		return t.kernelMode
	case Relayed:
		if s.live.copied() {
			return ModeCopy
		}
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
	var found []SessionInfo
	for s := t.byKey[key]; s != nil; s = s.next {
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
	c.ByMode[t.userMode] += t.counts[Relayed] - t.copied
	if t.copied > 0 {
		c.ByMode[ModeCopy] += t.copied
	}
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
		if s.live != nil && s.live.pair != nil {
			reasons[s.live.pair.Reason()]++
		}
	}
	return reasons
}

// errShutdown is the cause when the server stops.
var errShutdown = errors.New("server stops")
