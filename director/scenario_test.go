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
//	new [user-expire=D] [kick-delay=D] [move-timeout=D] [hash=FORMAT] [separator=S]
//	play                     one event per line, effects are printed behind "=>"
//	  host ADDR [weight=N] [tag=T]     remove ADDR      up ADDR      down ADDR
//	  lookup REQUEST USER [tag=T]      forget REQUEST
//	  start USER epoch=N [tag=T]       end USER epoch=N [tag=T]      active USER
//	  move ID USER ADDR [tag=T]        kick ID USER [tag=T]
//	  adopt USER ADDR epoch=N age=D [sessions=N] [tag=T]
//	  wait D                 lets time pass, with a Tick whenever Next asks for one
//	show USER...             prints entries
//	hosts                    prints hosts
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
	seen       map[Key]string // the user a key was first used with, to print keys readably
	out        strings.Builder
}

func newScenario(t *testing.T, td *datadriven.TestData) *scenario {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	config := Config{}
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
		default:
			td.Fatalf(t, "unknown setting %q", arg.Key)
		}
		if err != nil {
			td.Fatalf(t, "%s: %v", arg.Key, err)
		}
	}
	return &scenario{d: New(config), start: start, now: start, seen: make(map[Key]string)}
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
	switch words[0] {
	case "host":
		weight := 100
		if w, ok := options["weight"]; ok {
			weight = number(w)
		}
		s.step(HostPut{Host{Addr: addr(1), Tag: tag, Weight: weight}})
	case "remove":
		s.step(HostRemove{addr(1)})
	case "up", "down":
		s.step(HostUp{addr(1), words[0] == "up"})
	case "lookup":
		key(2)
		s.step(Lookup{uint64(number(words[1])), words[2], tag})
	case "forget":
		s.step(Forget{uint64(number(words[1]))})
	case "start":
		s.step(SessionStart{key(1), words[1], uint32(number(options["epoch"]))})
	case "end":
		s.step(SessionEnd{key(1), words[1], uint32(number(options["epoch"]))})
	case "active":
		s.step(Active{key(1)})
	case "move":
		key(2)
		s.step(Move{ID: uint64(number(words[1])), User: words[2], Tag: tag, To: addr(3)})
	case "kick":
		s.step(Kick{uint64(number(words[1])), words[2], tag})
	case "adopt":
		a := Adopted{Key: key(1), Host: addr(2), Epoch: uint32(number(options["epoch"])), Users: []string{words[1]},
			LastRefresh: s.now.Add(-must(time.ParseDuration(options["age"])))}
		if n, ok := options["sessions"]; ok {
			a.Sessions = map[string]int{words[1]: number(n)}
		}
		s.step(Adopt{[]Adopted{a}})
	case "wait":
		end := s.now.Add(must(time.ParseDuration(words[1])))
		for next := s.d.Next(); !next.IsZero() && !next.After(end); next = s.d.Next() {
			s.now = next
			s.step(Tick{})
		}
		s.now = end
	default:
		panic("unknown event")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (s *scenario) step(ev Event) {
	for _, effect := range s.d.Step(s.now, ev) {
		if _, ok := ev.(Tick); ok {
			fmt.Fprintf(&s.out, "  at %s", s.now.Sub(s.start))
		}
		fmt.Fprintf(&s.out, "  => %s\n", s.effect(effect))
	}
}

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
	}
	return fmt.Sprintf("%T", e)
}

func (s *scenario) show(td *datadriven.TestData) string {
	var out strings.Builder
	for _, arg := range td.CmdArgs {
		key := s.d.KeyOf(arg.Key, "")
		e, ok := s.d.Entry(key)
		if !ok {
			fmt.Fprintf(&out, "%s: no entry\n", arg.Key)
			continue
		}
		expires := "never"
		if !e.ExpiresAt.IsZero() {
			expires = e.ExpiresAt.Sub(s.now).String()
		}
		fmt.Fprintf(&out, "%s: hash %s on %s epoch=%d sessions=%d names=%v expires-in=%s moving=%v\n",
			arg.Key, key, e.Host, e.Epoch, e.Sessions, e.Users, expires, e.Moving)
	}
	return out.String()
}

func (s *scenario) showHosts() string {
	var out strings.Builder
	for _, h := range s.d.Hosts() {
		fmt.Fprintf(&out, "%s weight=%d up=%v tag=%q users=%d sessions=%d\n",
			h.Addr, h.Weight, h.Up, h.Tag, h.Users, h.Sessions)
	}
	return out.String()
}
