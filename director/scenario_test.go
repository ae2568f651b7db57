package director

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"usher/director/placement"
)

// TestScenarios plays the files of testdata/*.txt, which are meant to be read: prose, events, and the
// effects they have. `go test ./director -rewrite` writes the effects anew; read the difference.
//
//	new [user-expire=D] [kick-delay=D] [move-timeout=D] [hash=FORMAT] [separator=S] [max-moves=N] [flush] [ring]
//	play                     one event per line, effects are printed behind "=>"
//	  host ADDR [weight=N] [tag=T] [configured]           remove ADDR
//	  up ADDR      down ADDR      health-up ADDR          health-down ADDR         (all with [id=N])
//	  lookup REQUEST USER [tag=T]      forget REQUEST
//	  start USER [epoch=N] [tag=T]     end USER [epoch=N] [tag=T]    active USER
//	  move ID USER ADDR [tag=T]        kick ID USER [tag=T]          kick-mask ID MASK    kick-alt ID FIELD VALUE
//	  drain ID ADDR|all [max=N] [rate=N]      drain-stop ID ADDR|all       forget-users ID ADDR|all
//	  adopt USER ADDR epoch=N age=D [sessions=N] [tag=T]             flushed USER [failed]
//	  wait D                 lets time pass, with a Tick whenever Next asks for one
//	  show USER              prints an entry
//	  hosts                  prints the hosts
//	  restart                a new process; restore gives it the orders of the one before
//	  ring [handshaked] [synced] [alone] [parted] [minor=N]          the state of the ring
//	  synced                                                         a SYNC of ours came back
//	  replace ADDR[=WEIGHT]...                                       the hosts of the ring we have joined
//	  heard user USER ADDR [used=T] [ordered=T] [weak] [handshake]   weak USER ADDR [seen] [own]
//	  heard move USER ADDR [ordered=T] [seen]                        killed USER       killed-everywhere USER
//	  heard kick MASK      kick-alt FIELD VALUE                      kick-hash USER ADDR
//	  heard host ADDR [weight=N] [tag=T] [down] [changed=T] [ordered=T] [health] [handshake]
//	  heard host-gone ADDR                                           host-forget ADDR          (any: [usher])
//	show USER...             prints entries, outside of play
//	hosts                    prints hosts
//	dump                     prints the list of users for a handshake
//	progress ADDR|all        prints how far a drain is
//	orders                   prints what has to outlive the process
//
// In messages a time T is told in seconds since the start of the scenario, or as now, now-5; "-" is none.
func TestScenarios(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			var s *scenario
			datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
				switch td.Cmd {
				case "new":
					s = newScenario(t, td)
					return ""
				case "play":
					return s.play(t, td)
				case "show":
					return s.show(td)
				case "hosts":
					return s.showHosts()
				case "dump":
					return s.dump()
				case "progress":
					return s.progress(td)
				case "orders":
					return s.orders()
				}
				td.Fatalf(t, "unknown command %q", td.Cmd)
				return ""
			})
		})
	}
}

type scenario struct {
	d          *Director
	start, now time.Time
	started    map[Key]uint32 // epoch of the last session
	seen       map[Key]string // the user a key was first used with, to print keys readably
	config     Config
	saved      Orders // of the last restart
	ring       bool
	out        strings.Builder
}

func newScenario(t *testing.T, td *datadriven.TestData) *scenario {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var config Config
	for _, arg := range td.CmdArgs {
		value := strings.Join(arg.Vals, ",")
		duration, err := time.ParseDuration(value)
		switch arg.Key {
		case "user-expire":
			config.UserExpire = duration
		case "kick-delay":
			config.KickDelay = duration
		case "move-timeout":
			config.MoveTimeout = duration
		case "hash":
			config.UsernameHash, err = placement.ParseFormat(value)
		case "separator":
			config.UserSeparator, err = value, nil
		case "max-moves":
			config.MaxParallelMoves, err = strconv.Atoi(value)
		case "flush":
			config.FlushCommand, err = true, nil
		case "ring":
			config.Ring, err = true, nil
		default:
			td.Fatalf(t, "unknown setting %q", arg.Key)
		}
		if err != nil {
			td.Fatalf(t, "%s: %v", arg.Key, err)
		}
	}
	return &scenario{d: New(config), start: start, now: start, seen: make(map[Key]string), started: make(map[Key]uint32), config: config, ring: config.Ring}
}

func (s *scenario) play(t *testing.T, td *datadriven.TestData) string {
	s.out.Reset()
	for line := range strings.Lines(td.Input) {
		fmt.Fprintf(&s.out, "%s\n", strings.TrimSpace(line))
		words := strings.Fields(line)
		options := make(map[string]string)
		words = slices.DeleteFunc(words, func(w string) bool {
			k, v, ok := strings.Cut(w, "=")
			if ok {
				options[k] = v
			}
			return ok
		})
		func() {
			defer func() {
				if r := recover(); r != nil {
					td.Fatalf(t, "%s: %v", strings.TrimSpace(line), r)
				}
			}()
			s.event(words, options)
		}()
	}
	return s.out.String()
}

// event plays one line; what does not parse panics, with the line added by the caller.
func (s *scenario) event(words []string, options map[string]string) {
	addr := func(i int) netip.Addr { return netip.MustParseAddr(words[i]) }
	number := func(text string) int { return must(strconv.Atoi(text)) }
	tag := options["tag"]
	key := func(i int) Key {
		k := s.d.KeyOf(words[i], tag)
		if _, ok := s.seen[k]; !ok {
			s.seen[k] = words[i]
		}
		return k
	}
	id := func(i int) uint64 { return uint64(number(words[i])) }
	anyAddr := func(i int) netip.Addr {
		if words[i] == "all" {
			return netip.Addr{}
		}
		return addr(i)
	}
	order := uint64(0)
	if text, ok := options["id"]; ok {
		order = uint64(number(text))
	}
	weight := 100
	if w, ok := options["weight"]; ok {
		weight = number(w)
	}
	flag := func(name string) bool { return slices.Contains(words, name) }
	switch words[0] {
	case "host":
		s.step(HostPut{ID: order, Host: Host{Addr: addr(1), Tag: tag, Weight: weight}, Configured: flag("configured")})
	case "remove":
		s.step(HostRemove{ID: order, Addr: addr(1)})
	case "up", "down":
		s.step(HostUp{ID: order, Addr: addr(1), Up: words[0] == "up"})
	case "health-up", "health-down":
		s.step(HostUp{ID: order, Addr: addr(1), Up: words[0] == "health-up", Health: true})
	case "lookup", "peek":
		key(2)
		s.step(Lookup{Request: id(1), User: words[2], Tag: tag, Peek: words[0] == "peek"})
	case "forget":
		s.step(Forget{id(1)})
	case "start":
		k := key(1)
		e, _ := s.d.Entry(k)
		s.started[k] = e.Epoch
		if text, ok := options["epoch"]; ok {
			s.started[k] = uint32(number(text))
		}
		s.step(SessionStart{k, words[1], s.started[k]})
	case "end":
		k := key(1)
		epoch := s.started[k]
		if text, ok := options["epoch"]; ok {
			epoch = uint32(number(text))
		}
		s.step(SessionEnd{k, words[1], epoch})
	case "active":
		s.step(Active{key(1)})
	case "move":
		key(2)
		s.step(Move{ID: id(1), User: words[2], Tag: tag, To: addr(3)})
	case "kick":
		s.step(Kick{ID: id(1), User: words[2], Tag: tag})
	case "kick-mask":
		s.step(Kick{ID: id(1), User: words[2], Mask: true})
	case "kick-alt":
		s.step(KickAlt{ID: id(1), Field: words[2], Value: words[3]})
	case "drain":
		ev := HostFlush{ID: id(1), Addr: anyAddr(2)}
		if text, ok := options["max"]; ok {
			ev.Max = number(text)
		}
		if text, ok := options["rate"]; ok {
			ev.Rate = float64(number(text))
		}
		s.step(ev)
	case "drain-stop":
		s.step(HostFlushStop{ID: id(1), Addr: anyAddr(2)})
	case "forget-users":
		s.step(HostForgetUsers{ID: id(1), Addr: anyAddr(2)})
	case "flushed":
		s.step(Flushed{Key: key(1), OK: !flag("failed")})
	case "adopt":
		a := Adopted{Key: key(1), Host: addr(2), Epoch: uint32(number(options["epoch"])), Users: []string{words[1]},
			LastRefresh: s.now.Add(-must(time.ParseDuration(options["age"])))}
		if n, ok := options["sessions"]; ok {
			a.Sessions = map[string]int{words[1]: number(n)}
		}
		s.step(Adopt{[]Adopted{a}})
	case "ring":
		state := RingState{Handshaked: flag("handshaked"), Synced: flag("synced"), Right: !flag("alone"), Whole: !flag("alone") && !flag("parted"), Minor: 9}
		if text, ok := options["minor"]; ok {
			state.Minor = number(text)
		}
		s.step(state)
	case "synced":
		s.step(RingSynced{})
	case "replace":
		var list []HostUpdate
		for i := range words[1:] {
			list = append(list, HostUpdate{Host: Host{Addr: addr(i + 1), Weight: 100}, Up: true})
		}
		for a, w := range options {
			list = append(list, HostUpdate{Host: Host{Addr: netip.MustParseAddr(a), Weight: number(w)}, Up: true})
		}
		slices.SortFunc(list, func(a, b HostUpdate) int { return a.Host.Addr.Compare(b.Host.Addr) })
		s.step(HostsReplace{list})
	case "heard":
		h := Heard{Handshake: flag("handshake"), Seen: flag("seen"), Own: flag("own"), Usher: flag("usher")}
		words = words[1:]
		switch words[0] {
		case "user":
			h.Message = UserUpdate{Hash: key(1).Hash, Host: addr(2), Refreshed: s.unix(options["used"]),
				Ordered: s.unix(options["ordered"]), Weak: flag("weak")}
		case "weak":
			h.Message = UserWeak{Hash: key(1).Hash, Host: addr(2)}
		case "move":
			h.Message = UserMove{Hash: key(1).Hash, Host: addr(2), Ordered: s.unix(options["ordered"])}
		case "killed":
			h.Message = UserKilled{Hash: key(1).Hash}
		case "killed-everywhere":
			h.Message = UserKilledEverywhere{Hash: key(1).Hash}
		case "kick":
			h.Message = UserKick{User: words[1]}
		case "kick-alt":
			h.Message = UserKickAlt{Field: words[1], Value: words[2]}
		case "kick-hash":
			h.Message = UserKickHash{Hash: key(1).Hash, Except: addr(2)}
		case "host":
			h.Message = HostUpdate{Host: Host{Addr: addr(1), Weight: weight, Tag: tag}, Up: !flag("down"),
				Changed: s.unix(options["changed"]), Ordered: s.unix(options["ordered"]), Health: flag("health")}
		case "host-gone":
			h.Message = HostGone{Addr: addr(1)}
		case "host-forget":
			h.Message = HostForget{Addr: addr(1)}
		default:
			panic("unknown message")
		}
		s.step(h)
	case "restart": // what follows is for a new process
		s.saved = s.d.Orders()
		s.d = New(s.config)
	case "restore":
		s.step(Restore{s.saved})
	case "hosts":
		for line := range strings.Lines(s.showHosts()) {
			fmt.Fprintf(&s.out, "  %s", line)
		}
	case "show":
		fmt.Fprintf(&s.out, "  %s", s.entry(words[1]))
	case "wait":
		end := s.now.Add(must(time.ParseDuration(words[1])))
		for next := s.d.Next(); !next.IsZero() && !next.After(end); next = s.d.Next() {
			if next.After(s.now) {
				s.now = next
			}
			s.step(Tick{})
		}
		s.now = end
	default:
		panic("unknown event")
	}
}

// unix turns a time of a scenario, such as "90" or "now-5", into unix seconds; nothing is 0.
func (s *scenario) unix(text string) int64 {
	if text == "" {
		return 0
	}
	if ago, ok := strings.CutPrefix(text, "now"); ok {
		if ago == "" {
			ago = "0"
		}
		return s.now.Unix() + int64(must(strconv.Atoi(ago)))
	}
	return s.start.Unix() + int64(must(strconv.Atoi(text)))
}

// second is the reverse of unix.
func (s *scenario) second(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return strconv.FormatInt(unix-s.start.Unix(), 10)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (s *scenario) step(ev Event) {
	for _, effect := range s.d.Step(s.now, ev) {
		if tell, ok := effect.(Tell); ok {
			if _, heard := ev.(Heard); !heard {
				if !tell.Source {
					panic("there is no source to be left out")
				}
				tell.Source = false
				effect = tell
			}
		}
		if _, ok := ev.(Tick); ok {
			fmt.Fprintf(&s.out, "  at %s", s.now.Sub(s.start))
		}
		fmt.Fprintf(&s.out, "  => %s\n", s.effect(effect))
	}
}
