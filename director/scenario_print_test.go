package director

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/cockroachdb/datadriven"
)

func (s *scenario) key(k Key) string {
	if k.Tag != "" {
		return s.seen[k] + "@" + k.Tag
	}
	return s.seen[k]
}

func (s *scenario) effect(e Effect) string {
	switch e := e.(type) {
	case Assigned:
		return fmt.Sprintf("assigned %d %s to %s epoch=%d", e.Request, s.key(e.Key), e.Host.Addr, e.Epoch)
	case Refused:
		return fmt.Sprintf("refused %d: %v", e.Request, e.Reason)
	case EntryPut:
		state := "idle"
		if e.Active {
			state = "active"
		}
		return fmt.Sprintf("entry-put %s on %s epoch=%d %s", s.key(e.Key), e.Host, e.Epoch, state)
	case NamePut:
		return fmt.Sprintf("name-put %s %s", s.key(e.Key), e.User)
	case EntryDrop:
		return fmt.Sprintf("entry-drop %s", s.key(e.Key))
	case Stop:
		who := "everybody"
		if e.User != "" {
			who = e.User
		}
		return fmt.Sprintf("stop %s: %s up to epoch=%d (%s)", s.key(e.Key), who, e.Epoch, e.Reason)
	case Done:
		if e.Err != nil {
			return fmt.Sprintf("done %d: %v", e.ID, e.Err)
		}
		return fmt.Sprintf("done %d", e.ID)
	case Tell:
		source := ""
		if e.Source {
			source = " (to everybody)"
		}
		return "tell " + s.message(e.Message) + source
	case Pass:
		return "pass"
	case SyncNeeded:
		return "sync-needed"
	case Invalid:
		return fmt.Sprintf("invalid: %v", e.Err)
	case Flush:
		return fmt.Sprintf("flush %s from %s up=%v weight=%d to %s", s.key(e.Key), e.Old.Addr, e.OldUp, e.Old.Weight, e.New.Addr)
	case StopAlt:
		return fmt.Sprintf("stop-alt %s=%s", e.Field, e.Value)
	case Conflict:
		return fmt.Sprintf("conflict %s: ours %s, theirs %s, winner %s, users %v", s.key(e.Key), e.Ours, e.Theirs, e.Winner, e.Users)
	case Warn:
		return "warn: " + e.Text
	}
	return fmt.Sprintf("%T", e)
}

// user names a hash by the first name it was used with.
func (s *scenario) user(hash uint32) string {
	for key, name := range s.seen {
		if key.Hash == hash {
			return name
		}
	}
	return fmt.Sprint(hash)
}

func (s *scenario) message(m Message) string {
	switch m := m.(type) {
	case UserUpdate:
		text := fmt.Sprintf("user %s on %s used=%s", s.user(m.Hash), m.Host, s.second(m.Refreshed))
		if m.Ordered != 0 {
			text += " ordered=" + s.second(m.Ordered)
		}
		if m.Weak {
			text += " weak"
		}
		return text
	case UserWeak:
		return fmt.Sprintf("weak %s on %s", s.user(m.Hash), m.Host)
	case UserMove:
		return fmt.Sprintf("move %s to %s ordered=%s", s.user(m.Hash), m.Host, s.second(m.Ordered))
	case UserKilled:
		return "killed " + s.user(m.Hash)
	case UserKilledEverywhere:
		return "killed-everywhere " + s.user(m.Hash)
	case UserKick:
		return "kick " + m.User
	case UserKickAlt:
		return fmt.Sprintf("kick-alt %s=%s", m.Field, m.Value)
	case UserKickHash:
		return fmt.Sprintf("kick-hash %s except on %s", s.user(m.Hash), m.Except)
	case HostUpdate:
		text := fmt.Sprintf("host %s weight=%d", m.Host.Addr, m.Host.Weight)
		if m.Host.Tag != "" {
			text += " tag=" + m.Host.Tag
		}
		state := " up"
		if !m.Up {
			state = " down"
		}
		text += fmt.Sprintf("%s changed=%s ordered=%s", state, s.second(m.Changed), s.second(m.Ordered))
		if m.Health {
			text += " health"
		}
		return text
	case HostGone:
		return fmt.Sprintf("host-gone %s", m.Addr)
	case HostForget:
		return fmt.Sprintf("host-forget %s", m.Addr)
	}
	return fmt.Sprintf("%T", m)
}

func (s *scenario) dump() string {
	var out strings.Builder
	var c Cursor
	for more := true; more; {
		more = s.d.Dump(&c, 2, func(u UserUpdate) { fmt.Fprintln(&out, s.message(u)) })
	}
	return out.String()
}

func (s *scenario) progress(td *datadriven.TestData) string {
	var addr netip.Addr
	if name := td.CmdArgs[0].Key; name != "all" {
		addr = netip.MustParseAddr(name)
	}
	p, ok := s.d.Progress(addr)
	if !ok {
		return "none\n"
	}
	state := "goes on"
	if !p.Ended.IsZero() {
		state = fmt.Sprintf("ended after %s", p.Ended.Sub(p.Started))
	}
	return fmt.Sprintf("total=%d done=%d failed=%d moving=%d, %s\n", p.Total, p.Done, p.Failed, p.Moving, state)
}

func (s *scenario) orders() string {
	var out strings.Builder
	o := s.d.Orders()
	for _, h := range o.Hosts {
		fmt.Fprintf(&out, "host %s weight=%d tag=%q removed=%v down=%v changed=%s ordered=%s\n", h.Host.Addr, h.Host.Weight,
			h.Host.Tag, h.Removed, h.Down, s.second(h.Changed), s.second(h.Ordered))
	}
	for _, m := range o.Moved {
		fmt.Fprintf(&out, "moved %s to %s ordered=%s expires=%s\n", s.key(m.Key), m.Host, s.second(m.Ordered), s.second(m.Expires))
	}
	return out.String()
}

func (s *scenario) show(td *datadriven.TestData) string {
	var out strings.Builder
	for _, arg := range td.CmdArgs {
		out.WriteString(s.entry(arg.Key))
	}
	return out.String()
}

// entry describes the entry of a user without a tag.
func (s *scenario) entry(user string) string {
	key := s.d.KeyOf(user, "")
	e, ok := s.d.Entry(key)
	if !ok {
		return fmt.Sprintf("%s: no entry\n", user)
	}
	expires := "never"
	if !e.ExpiresAt.IsZero() {
		expires = e.ExpiresAt.Sub(s.now).String()
	}
	text := fmt.Sprintf("%s: hash %s on %s epoch=%d sessions=%d names=%v expires-in=%s moving=%v",
		user, key, e.Host, e.Epoch, e.Sessions, e.Users, expires, e.Moving)
	if e.Moving && s.ring {
		text += " phase=" + e.Phase
	}
	if e.Weak {
		text += " weak"
	}
	if e.Untold {
		text += " untold"
	}
	if !e.Ordered.IsZero() && s.ring {
		text += " ordered=" + s.second(e.Ordered.Unix())
	}
	return text + "\n"
}

func (s *scenario) showHosts() string {
	var out strings.Builder
	for _, h := range s.d.Hosts() {
		fmt.Fprintf(&out, "%s weight=%d up=%v tag=%q users=%d sessions=%d", h.Addr, h.Weight, h.Up, h.Tag, h.Users, h.Sessions)
		if s.ring {
			fmt.Fprintf(&out, " operator-down=%v health-down=%v overridden=%v changed=%s ordered=%s desynced=%v",
				h.OperatorDown, h.HealthDown, h.Overridden, s.second(h.Changed), s.second(h.Ordered), h.Desynced)
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}
