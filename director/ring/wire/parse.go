package wire

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"usher/director"
	"usher/director/hosts"
)

// ErrUnknown is the error of Parse for a command that is not in the protocol.
var ErrUnknown = errors.New("unknown command")

// Bounds of numbers that the protocol leaves open and that are calculated with later.
const (
	maxTime   = 1 << 33 // unix seconds: beyond the year 2200
	maxWeight = 1 << 20
	maxMinor  = 1 << 16
)

// A Parser parses the lines of one direction of one connection. The zero value is ready: at the beginning.
type Parser struct {
	inHosts bool // between HOST-HAND-START and HOST-HAND-END

	// There are thousands of users in a second, and few of everything else: these two lines are not
	// allocated each time.
	user     User
	handUser HandUser
}

// Command returns the first field of a line.
func Command(line []byte) []byte {
	a := args{rest: line, more: true}
	command, _ := a.field()
	return command
}

// Parse parses a line without its LF. The result is valid until the next Parse. An error names
// the command and the argument that is wrong; it wraps ErrUnknown if it is the command.
func (p *Parser) Parse(line []byte) (Line, error) {
	a := args{rest: line, more: true}
	command, _ := a.field()
	l := p.parse(command, &a)
	if l == nil {
		return nil, fmt.Errorf("%q: %w", command, ErrUnknown)
	}
	if a.bad != "" {
		return nil, fmt.Errorf("%s: %s", command, a.bad)
	}
	return l, nil
}

// parse returns nil for an unknown command. What is wrong with arguments is remembered in a.
func (p *Parser) parse(command []byte, a *args) Line {
	switch string(command) {
	case "USER":
		p.user = User{}
		a.user(&p.user.UserUpdate)
		if a.more {
			// Peers older than minor 9 list weak users of a handshake this way.
			if f, _ := a.field(); string(f) == "w" {
				p.user.Weak = true
			} else {
				p.user.Ordered = a.timeOf(f, "order time")
			}
		}
		return &p.user
	case "U":
		p.handUser = HandUser{}
		u := &p.handUser.UserUpdate
		a.user(u)
		if u.Refreshed == 0 && a.bad == "" {
			a.fail("timestamp")
		}
		if a.more {
			f, _ := a.field()
			if u.Weak = string(f) == "w"; !u.Weak && len(f) > 0 {
				a.fail("weak mark")
			}
		}
		if a.more {
			u.Ordered = a.time("order time")
		}
		return &p.handUser
	case "HOST":
		if p.inHosts {
			return &HandHost{a.host()}
		}
		origin := a.origin()
		return &Told{origin, a.host()}
	case "HOST-HAND-START":
		p.inHosts = true
		return &HandStart{a.uint(maxWeight, "flag") != 0}
	case "HOST-HAND-END":
		p.inHosts = false
		return &HandEnd{a.more && a.uint(maxWeight, "flag") != 0}
	case "VERSION":
		return &Version{a.text("name"), int(a.uint(maxMinor, "major version")), int(a.uint(maxMinor, "minor version"))}
	case "ME":
		me := &Me{Addr: a.addrPort()}
		if a.more {
			me.Time = a.time("time")
		}
		if a.more {
			f, _ := a.field()
			if n, ok := bytes.CutPrefix(f, []byte("usher=")); ok {
				me.Usher = a.uintOf(n, 1<<63-1, "usher")
			}
		}
		return me
	case "DIRECTOR":
		return &Director{a.addrPort()}
	case "DIRECTOR-REMOVE":
		return &DirectorRemove{a.addrPort()}
	case "CONNECT":
		return &Connect{a.addrPort()}
	case "SYNC":
		return a.sync()
	case "PING":
		ping := Ping{}
		a.ping(&ping.Time, &ping.Queued)
		return &ping
	case "PONG":
		pong := Pong{}
		a.ping(&pong.Time, &pong.Queued)
		return &pong
	case "USER-KILLED":
		killed := UserKilled{director.UserKilled{Hash: a.uint32("hash")}}
		a.end()
		return &killed
	case "OPTIONS":
		o := Options{}
		for a.more {
			f, _ := a.field()
			o.ConsistentHashing = o.ConsistentHashing || string(f) == "consistent-hashing"
		}
		return &o
	case "DONE":
		return &Done{}
	case "QUIT":
		q := Quit{}
		if a.more {
			q.Reason = a.text("reason")
		}
		return &q
	case "USHER-HEALTH":
		h := Health{Origin: a.origin(), Host: a.addr("host")}
		switch f, _ := a.field(); string(f) {
		case "up":
			h.Up = true
		case "down":
		default:
			a.fail("state")
		}
		return &h
	}
	return told(command, a)
}

// told parses the rest of the commands with an origin: those whose number of arguments is exact.
func told(command []byte, a *args) Line {
	var t Told
	switch string(command) {
	case "USER-WEAK":
		t.Origin = a.origin()
		t.Message = director.UserWeak{Hash: a.uint32("hash"), Host: a.addr("host")}
	case "USER-MOVE":
		t.Origin = a.origin()
		m := director.UserMove{Hash: a.uint32("hash"), Host: a.addr("host")}
		if a.more { // from Ushers
			m.Ordered = a.time("order time")
		}
		t.Message = m
	case "USER-KICK":
		t.Origin = a.origin()
		t.Message = director.UserKick{User: a.text("user")}
	case "USER-KICK-ALT":
		t.Origin = a.origin()
		t.Message = director.UserKickAlt{Field: a.text("field"), Value: a.text("value")}
	case "USER-KICK-HASH":
		t.Origin = a.origin()
		t.Message = director.UserKickHash{Hash: a.uint32("hash"), Except: a.addr("host")}
	case "USER-KILLED-EVERYWHERE":
		t.Origin = a.origin()
		t.Message = director.UserKilledEverywhere{Hash: a.uint32("hash")}
	case "HOST-REMOVE":
		t.Origin = a.origin()
		t.Message = director.HostGone{Addr: a.addr("host")}
	case "HOST-FLUSH":
		t.Origin = a.origin()
		t.Message = director.HostForget{Addr: a.addr("host")}
	default:
		return nil
	}
	a.end()
	return &t
}

// origin parses the three fields that begin each command with an origin.
func (a *args) origin() Origin { return Origin{a.addrPort(), a.uint32("sequence number")} }

// user parses hash, host and the time, which is not there before minor 9.
func (a *args) user(u *director.UserUpdate) {
	u.Hash, u.Host = a.uint32("hash"), a.addr("host")
	if a.more {
		u.Refreshed = a.time("timestamp")
	}
}

// host parses what follows the origin of HOST. Tag, state and name came with later minor versions.
func (a *args) host() director.HostUpdate {
	h := director.HostUpdate{Host: hosts.Host{Addr: a.addr("host")}, Up: true}
	h.Host.Weight = int(a.uint(maxWeight, "weight"))
	if a.more {
		h.Host.Tag = a.text("tag")
	}
	if a.more {
		f, _ := a.field()
		if len(f) == 0 || f[0] != 'U' && f[0] != 'D' {
			a.fail("state")
			return h
		}
		h.Up = f[0] == 'U'
		h.Changed = a.timeOf(f[1:], "time of the state")
	}
	if a.more {
		h.Host.Name = a.text("name")
	}
	if a.more {
		h.Ordered = a.time("order time")
	}
	if a.more {
		f, _ := a.field()
		if h.Health = string(f) == "h"; !h.Health && len(f) > 0 {
			a.fail("health mark")
		}
	}
	return h
}

// sync parses SYNC. What follows the number came with minor 1; more than we know is ignored, as Dovecot does.
func (a *args) sync() *Sync {
	s := &Sync{Director: a.addrPort(), Seq: a.uint32("sequence number")}
	if a.more {
		s.Minor = int(a.uint(maxMinor, "minor version"))
	}
	if a.more {
		s.Time = a.time("timestamp")
	}
	if a.more {
		s.HostsHash = a.uint32("hash of the hosts")
	}
	return s
}

// ping parses PING and PONG, whose fields may be missing.
func (a *args) ping(time *int64, queued *uint64) {
	if a.more {
		*time = a.time("time")
	}
	if a.more {
		*queued = a.uint(1<<63-1, "queued bytes")
	}
}

// addrPort parses the two fields that name a director.
func (a *args) addrPort() netip.AddrPort {
	addr, port := a.addr("director"), a.uint(1<<16-1, "port")
	if port == 0 {
		a.fail("port")
	}
	return netip.AddrPortFrom(addr, uint16(port))
}
