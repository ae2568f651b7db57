package director

import (
	"fmt"
	"net/netip"

	"usher/director/hosts"
)

// MaxWeight is the highest weight of a host, as in Dovecot: each unit is a point on the hash ring.
const MaxWeight = 1000

// maxHosts bounds what a director that has gone mad can make of the others.
const maxHosts = 4096

// removal is a host that was removed at run time.
type removal struct {
	at    int64 // unix time of the order
	apart bool  // the whole ring has not agreed since
}

// hostPut is an operator's order, or the configuration's.
func (d *Director) hostPut(ev HostPut) error {
	h := ev.Host
	h.Addr = h.Addr.Unmap()
	before, existed := d.hosts.Get(h.Addr)
	switch {
	case h.Weight > MaxWeight:
		return fmt.Errorf("weight %d of %s: %w", h.Weight, h.Addr, ErrWeight)
	case existed && before.Tag != h.Tag:
		return fmt.Errorf("%s has tag %q, not %q: %w", h.Addr, before.Tag, h.Tag, ErrTagChange)
	case !existed && d.hosts.Len() == maxHosts:
		return ErrTooManyHosts
	case !ev.Configured && d.busy(before):
		return fmt.Errorf("%s: %w", h.Addr, ErrHostBusy)
	}
	if h.Name == "" {
		h.Name = before.Name // doveadm has no names
	}
	d.hosts.Put(h)
	if ev.Configured {
		d.hosts.Set(h.Addr, func(s *hosts.State) { s.Configured = true })
		return nil
	}
	ordered := max(d.clock.unix(d.now), before.Ordered+1, d.gone[h.Addr].at+1)
	delete(d.gone, h.Addr)
	d.hosts.Set(h.Addr, func(s *hosts.State) { s.Ordered, s.Apart = ordered, d.config.Ring })
	d.announce(h.Addr, false)
	return nil
}

// hostUp is an operator's order, or what the health check found.
func (d *Director) hostUp(ev HostUp) error {
	addr := ev.Addr.Unmap()
	before, ok := d.hosts.Get(addr)
	switch {
	case !ok:
		return fmt.Errorf("%s: %w", addr, ErrUnknownHost)
	case ev.Health:
		d.hosts.Set(addr, func(s *hosts.State) { healthSays(s, ev.Up) })
	case before.Up == ev.Up && before.OperatorDown != ev.Up:
		return nil // so it is, and by order
	case d.busy(before):
		return fmt.Errorf("%s: %w", addr, ErrHostBusy)
	default:
		d.hosts.Set(addr, func(s *hosts.State) { operatorSays(s, ev.Up) })
	}
	// An order that changes nothing at the moment, because the check says so already, is told as well: it
	// holds when the check finds the host good again.
	if after, _ := d.hosts.Get(addr); after.Up != before.Up || after.OperatorDown != before.OperatorDown {
		changed := max(d.clock.unix(d.now), before.Changed)
		if after.Up == before.Up {
			changed = max(changed, before.Changed+1)
		}
		d.hosts.Set(addr, func(s *hosts.State) { s.Changed = changed })
		d.announce(addr, ev.Health)
	}
	return nil
}

func operatorSays(s *hosts.State, up bool) {
	s.OperatorDown = !up
	s.Overridden = up && s.HealthDown
}

func healthSays(s *hosts.State, up bool) {
	s.HealthDown = !up
	s.Overridden = s.Overridden && !up
}

func (d *Director) hostRemove(addr netip.Addr) error {
	s, ok := d.hosts.Get(addr)
	if !ok {
		return fmt.Errorf("%s: %w", addr, ErrUnknownHost)
	}
	d.noteRemoval(addr, max(d.clock.unix(d.now), s.Ordered+1))
	if d.config.Ring {
		d.tell(HostGone{Addr: addr}, false)
		d.emit(SyncNeeded{})
	}
	d.removeHost(addr)
	return nil
}

func (d *Director) removeHost(addr netip.Addr) {
	if d.hosts.Remove(addr) {
		d.evictHost(addr, StopHostRemoved)
	}
}

func (d *Director) noteRemoval(addr netip.Addr, at int64) {
	if len(d.gone) < maxHosts {
		d.gone[addr] = removal{at: at, apart: d.config.Ring}
	}
}

// hostForget drops the entries of a host, of all hosts if the address is invalid.
func (d *Director) hostForget(addr netip.Addr) error {
	if addr.IsValid() {
		if _, ok := d.hosts.Get(addr); !ok {
			return fmt.Errorf("%s: %w", addr, ErrUnknownHost)
		}
	}
	for _, s := range d.hosts.All() {
		if d.config.Ring && (!addr.IsValid() || s.Addr == addr) {
			d.tell(HostForget{Addr: s.Addr}, false)
		}
	}
	if d.config.Ring {
		d.emit(SyncNeeded{})
	}
	d.evict(StopFlushed, func(host netip.Addr) bool { return !addr.IsValid() || host == addr })
	return nil
}

// busy reports whether the ring has not yet agreed on the last change of a host.
func (d *Director) busy(s hosts.State) bool { return d.config.Ring && s.Desynced && !d.ring.Synced }

// announce tells the ring of a host that has changed here, by the health check or by an operator.
func (d *Director) announce(addr netip.Addr, health bool) {
	if !d.config.Ring {
		return
	}
	d.desync(addr)
	s, _ := d.hosts.Get(addr)
	msg := hostUpdate(s)
	msg.Health = msg.Health || health
	d.tell(msg, false)
	d.emit(SyncNeeded{})
}

// desync notes that the others do not all have the present state of a host yet.
func (d *Director) desync(addr netip.Addr) {
	if !d.alone() {
		d.hosts.Set(addr, func(s *hosts.State) { s.Desynced = true })
	}
}

func (d *Director) tellHost(addr netip.Addr, source bool) {
	s, _ := d.hosts.Get(addr)
	d.tell(hostUpdate(s), source)
}

func hostUpdate(s hosts.State) HostUpdate {
	return HostUpdate{
		Host: s.Host, Up: s.Up, Changed: s.Changed, Ordered: s.Ordered, Health: !s.Up && !s.OperatorDown,
	}
}

// HostStates returns all hosts as the ring is told of them in a handshake, IPv4 before IPv6, by address.
func (d *Director) HostStates() []HostUpdate {
	var all []HostUpdate
	for _, s := range d.hosts.All() {
		all = append(all, hostUpdate(s))
	}
	return all
}

// HostsHash returns the hosts_hash of SYNC (ring.md section 7).
func (d *Director) HostsHash() uint32 { return d.hosts.Hash() }

// heardHost: a director says how a host is there (ring.md section 6, HOST). When two directors have
// changed it at the same time, or on two sides of a split, the newer order wins; what was ordered by one that
// does not say when (Dovecot's) is compared as Dovecot's directors do.
func (d *Director) heardHost(msg HostUpdate, h Heard) {
	addr := msg.Host.Addr.Unmap()
	msg.Host.Addr = addr
	msg.Changed, msg.Ordered = bounded(msg.Changed), bounded(msg.Ordered)
	if !addr.IsValid() || msg.Host.Weight < 0 || msg.Host.Weight > MaxWeight {
		d.invalid("host %s with weight %d: %w", addr, msg.Host.Weight, ErrWeight)
		return
	}
	before, known := d.hosts.Get(addr)
	if !known {
		d.heardNewHost(msg, h)
		return
	}

	after := before
	after.Tag = msg.Host.Tag
	after.Weight, after.Ordered = d.weigh(before, msg, h)
	up := d.upOrDown(before, msg, h.Handshake)
	d.hosts.Set(addr, func(s *hosts.State) {
		s.Host, s.Ordered = after.Host, after.Ordered
		s.Changed = max(s.Changed, msg.Changed)
		if up != s.Up {
			ringSays(s, up, msg.Health)
		} else if !up && s.HealthDown && !msg.Health && msg.Changed > before.Changed && !h.Handshake {
			operatorSays(s, false) // see hostUp
		}
	})
	after, _ = d.hosts.Get(addr)
	if after.Tag != before.Tag {
		d.warn("another director has changed the tag of host %s from %q to %q: its users are forgotten", addr, before.Tag, after.Tag)
		d.evictHost(addr, StopHostRemoved)
	}

	changed := after.Tag != before.Tag || after.Weight != before.Weight || after.Up != before.Up
	news := after.Ordered > before.Ordered || after.OperatorDown != before.OperatorDown
	if changed {
		d.desync(addr)
	}
	switch {
	case after.Weight != msg.Host.Weight || after.Up != msg.Up:
		d.tellHost(addr, true) // it has to be told what holds
	case changed && before.Desynced:
		d.tellHost(addr, true)
	case (changed || news) && (h.Handshake || after.Ordered != msg.Ordered):
		d.tellHost(addr, false) // with the time of the order, if we have noted one
	case changed || news:
		d.emit(Pass{})
	}
	if changed {
		d.emit(SyncNeeded{})
	}
}

// ringSays notes that a host is up or down because another director says so.
func ringSays(s *hosts.State, up, health bool) {
	if !health {
		operatorSays(s, up)
		return
	}
	healthSays(s, up)
	if !up {
		s.Overridden = false
	}
}

// weigh decides about the weight of a host, and returns with it when that was ordered.
func (d *Director) weigh(ours hosts.State, msg HostUpdate, h Heard) (weight int, ordered int64) {
	theirs := msg.Host.Weight
	switch {
	case msg.Ordered > ours.Ordered:
		return theirs, msg.Ordered
	case theirs == ours.Weight:
		return theirs, ours.Ordered
	case msg.Ordered == ours.Ordered && (msg.Ordered != 0 || ours.Desynced):
		return min(theirs, ours.Weight), ours.Ordered
	case ours.Ordered == 0:
		return theirs, 0
	case msg.Ordered != 0 || h.Usher: // older than ours, or never ordered
		return ours.Weight, ours.Ordered
	case h.Handshake && ours.Apart:
		return ours.Weight, ours.Ordered // ordered while they were away
	case ours.Desynced:
		return min(theirs, ours.Weight), ours.Ordered
	case h.Handshake:
		return theirs, 0
	}
	return theirs, max(d.clock.unix(d.now), ours.Ordered+1)
}

// upOrDown decides whether a host is up.
func (d *Director) upOrDown(ours hosts.State, msg HostUpdate, handshake bool) bool {
	switch {
	case msg.Up == ours.Up:
		return ours.Up
	case msg.Changed < ours.Changed:
		return ours.Up // the stale side of a split does not undo an order
	case msg.Up && msg.Health && ours.OperatorDown:
		return ours.Up // a check does not either
	case msg.Changed == ours.Changed && (handshake || ours.Desynced):
		return false // both sides must come to the same end
	}
	return msg.Up
}

func (d *Director) heardNewHost(msg HostUpdate, h Heard) {
	addr := msg.Host.Addr
	if r, ok := d.gone[addr]; ok && h.Handshake && d.ring.Handshaked && d.removedSince(r, msg, h.Usher) {
		// It was removed while they were away.
		d.tell(HostGone{Addr: addr}, true)
		return
	}
	if d.hosts.Len() == maxHosts {
		d.invalid("host %s: %w", addr, ErrTooManyHosts)
		return
	}
	d.learnHost(msg)
	d.desync(addr)
	if h.Handshake {
		d.tellHost(addr, false)
	} else {
		d.emit(Pass{})
	}
	d.emit(SyncNeeded{})
}

// removedSince reports whether a host that somebody has was removed after that was ordered.
func (d *Director) removedSince(r removal, msg HostUpdate, usher bool) bool {
	if msg.Ordered == 0 && !usher {
		return r.apart
	}
	return msg.Ordered < r.at
}

// learnHost takes a host from another director as it is there.
func (d *Director) learnHost(msg HostUpdate) {
	delete(d.gone, msg.Host.Addr)
	if before, ok := d.hosts.Get(msg.Host.Addr); ok {
		msg.Host.Name = before.Name
	}
	d.hosts.Put(msg.Host)
	d.hosts.Set(msg.Host.Addr, func(s *hosts.State) {
		s.Changed, s.Ordered = bounded(msg.Changed), bounded(msg.Ordered)
		if s.Up = !s.OperatorDown && (!s.HealthDown || s.Overridden); s.Up != msg.Up {
			ringSays(s, msg.Up, msg.Health)
		}
	})
}

// hostsReplace takes the hosts of the ring that we have joined.
func (d *Director) hostsReplace(list []HostUpdate) {
	keep := make(map[netip.Addr]HostUpdate, len(list))
	for i := range list {
		list[i].Host.Addr = list[i].Host.Addr.Unmap()
		keep[list[i].Host.Addr] = list[i]
	}
	lost := make(map[netip.Addr]bool)
	for _, s := range d.hosts.All() {
		if msg, ok := keep[s.Addr]; !ok {
			d.hosts.Remove(s.Addr)
			lost[s.Addr] = true
		} else if msg.Host.Tag != s.Tag {
			lost[s.Addr] = true
		}
	}
	for _, msg := range list {
		if msg.Host.Addr.IsValid() && msg.Host.Weight >= 0 && msg.Host.Weight <= MaxWeight && d.hosts.Len() < maxHosts {
			d.learnHost(msg)
			d.desync(msg.Host.Addr)
			d.tellHost(msg.Host.Addr, false)
		}
	}
	if len(lost) > 0 {
		d.evict(StopHostRemoved, func(addr netip.Addr) bool { return lost[addr] })
	}
	d.emit(SyncNeeded{})
}

func (d *Director) heardHostGone(addr netip.Addr) {
	if s, ok := d.hosts.Get(addr); ok {
		d.emit(Pass{})
		d.emit(SyncNeeded{})
		d.noteRemoval(addr, max(d.clock.unix(d.now), s.Ordered))
		d.removeHost(addr)
	}
}

func (d *Director) heardHostForget(addr netip.Addr) {
	if _, ok := d.hosts.Get(addr); ok {
		d.emit(Pass{})
		d.emit(SyncNeeded{})
		d.evictHost(addr, StopFlushed)
	}
}
