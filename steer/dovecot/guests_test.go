package dovecot

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"usher/director"
)

var s1 = netip.MustParseAddr("127.0.2.1")

func (s *scene) keyOf(user string) (key director.Key) {
	s.router.View(func(d *director.Director) { key = d.KeyOf(user, "") })
	return key
}

// inBubble plays with virtual time, with guests and kicks at work.
func inBubble(t *testing.T, c director.Config, play func(t *testing.T, s *scene)) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, c, "")
		s.up.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.guests.run(ctx)
		go s.kicks.run(ctx)
		play(t, s)
		cancel()
		synctest.Wait()
	})
}

// welcome gives a user a host as a relay does.
func (s *scene) welcome(t *testing.T, user, login string) (*guest, director.Assigned) {
	t.Helper()
	a := s.must(t, user, "")
	g, ok := s.guests.welcome(user, login, a)
	if !ok {
		t.Fatalf("%s is not welcome", user)
	}
	s.guests.wrote(g)
	return g, a
}

func (s *scene) sessions(user string) int {
	e, _ := s.entry(s.keyOf(user))
	return e.Sessions
}

func TestGuestLivesWhileItIsRefreshed(t *testing.T) {
	inBubble(t, director.Config{UserExpire: time.Minute}, func(t *testing.T, s *scene) {
		_, a := s.welcome(t, "anna", "anna")
		s.welcome(t, "anna", "anna") // her second session is the same guest
		if n := s.sessions("anna"); n != 1 || s.Guests() != 1 {
			t.Fatalf("%d sessions, %d guests; want one", n, s.Guests())
		}
		for range 10 { // a session that lives for five minutes
			time.Sleep(30 * time.Second)
			s.guests.refresh("anna")
			s.guests.refresh("nobody")
		}
		time.Sleep(59 * time.Second)
		if n := s.sessions("anna"); n != 1 {
			t.Errorf("%d sessions within a life of the last refresh", n)
		}
		time.Sleep(2 * time.Second)
		if e, ok := s.entry(a.Key); !ok || e.Sessions != 0 || s.Guests() != 0 {
			t.Errorf("a life after the last refresh: %+v, %d guests", e, s.Guests())
		}
		time.Sleep(time.Minute)
		if _, ok := s.entry(a.Key); ok {
			t.Error("the entry is still there")
		}
		if _, ok := s.entry(s.keyOf("nobody")); ok {
			t.Error("a refresh made an entry")
		}
	})
}

func TestMoveWaitsForTheKick(t *testing.T) {
	inBubble(t, director.Config{KickDelay: 2 * time.Second}, func(t *testing.T, s *scene) {
		g, a := s.welcome(t, "anna", "anna")
		time.Sleep(time.Minute)
		s.levers.hold = make(chan struct{})
		to, done := s.move(t, "anna")
		synctest.Wait()
		routed := make(chan director.Assigned, 1)
		go func() { routed <- s.must(t, "anna", "") }()
		time.Sleep(8 * time.Second) // Dovecot takes its time
		if want := []string{fmt.Sprintf("hash %v except %v", a.Key, to)}; !slices.Equal(s.levers.kicked(), want) {
			t.Errorf("kicked %q, want %q", s.levers.kicked(), want)
		}
		if e, _ := s.entry(a.Key); !e.Moving || e.Sessions != 1 {
			t.Errorf("while the kick is not answered: %+v", e)
		}
		begin := time.Now()
		close(s.levers.hold)
		if b := <-routed; b.Host.Addr != to || time.Since(begin) != 2*time.Second {
			t.Errorf("%v after the kick on %v; want %v after the kick delay", time.Since(begin), b.Host, to)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !s.guests.wrote(g) {
			t.Error("a guest that was kicked is not stopped")
		}
	})
}

// A login whose answer has just been written is where no kick finds it.
func TestLateLoginIsKickedTwice(t *testing.T) {
	inBubble(t, director.Config{}, func(t *testing.T, s *scene) {
		s.welcome(t, "anna", "anna")
		time.Sleep(settle / 4)
		begin := time.Now()
		_, done := s.move(t, "anna")
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := len(s.levers.kicked()); n != 2 {
			t.Errorf("kicked %q, want two kicks", s.levers.kicked())
		}
		if took := time.Since(begin); took != settle*3/4 {
			t.Errorf("the move took %v, want the rest of a second", took)
		}
	})
}

func TestStaleAnswerIsNotGiven(t *testing.T) {
	inBubble(t, director.Config{}, func(t *testing.T, s *scene) {
		a := s.must(t, "anna", "")
		_, done := s.move(t, "anna") // before the guest is counted
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		before := len(s.levers.kicked())
		if _, ok := s.guests.welcome("anna", "anna", a); ok {
			t.Error("an answer from before the move is given")
		}
		synctest.Wait()
		if s.Guests() != 0 || s.sessions("anna") != 0 {
			t.Errorf("%d guests, %d sessions of it are left", s.Guests(), s.sessions("anna"))
		}
		if n := len(s.levers.kicked()); n != before {
			t.Errorf("who was given nothing is kicked: %q", s.levers.kicked()[before:])
		}
	})
}

// An answer that is being written while its user is moved: the session is found by one more kick.
func TestMoveDuringTheAnswer(t *testing.T) {
	inBubble(t, director.Config{}, func(t *testing.T, s *scene) {
		g, _ := s.guests.welcome("anna", "anna", s.must(t, "anna", ""))
		to, done := s.move(t, "anna")
		if err := <-done; err != nil {
			t.Error(err)
		}
		before := len(s.levers.kicked())
		if !s.guests.wrote(g) {
			t.Fatal("the guest is not stopped")
		}
		s.again(g)
		time.Sleep(2 * settle)
		want := []string{fmt.Sprintf("hash %v except %v", g.key, to)}
		if got := s.levers.kicked()[before:]; !slices.Equal(got, want) {
			t.Errorf("kicked %q, want %q: those who came after the move stay", got, want)
		}
	})
}

func TestKickOfOneName(t *testing.T) {
	inBubble(t, director.Config{}, func(t *testing.T, s *scene) {
		s.welcome(t, "shared", "alias") // destuser=shared
		s.welcome(t, "shared", "shared")
		time.Sleep(time.Minute)
		err := s.router.Begin(func(id uint64) director.Event { return director.Kick{ID: id, User: "shared"} }).Wait(t.Context())
		synctest.Wait()
		got := s.levers.kicked()
		slices.Sort(got)
		if want := []string{"user alias", "user shared"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("kicked %q, %v; want %q", got, err, want)
		}
		if s.Guests() != 0 || s.sessions("shared") != 0 {
			t.Errorf("%d guests, %d sessions are left", s.Guests(), s.sessions("shared"))
		}
		s.router.Tell(director.KickAlt{ID: 1 << 60, Field: "user_alt", Value: "x y"})
		synctest.Wait()
		if got := s.levers.kicked(); got[len(got)-1] != "user_alt=x y" {
			t.Errorf("kicked %q", got)
		}
	})
}

// A move hits login names that the hash does not.
func TestMoveOfAnAlias(t *testing.T) {
	inBubble(t, director.Config{}, func(t *testing.T, s *scene) {
		_, a := s.welcome(t, "shared", "alias")
		time.Sleep(time.Minute)
		to, done := s.move(t, "shared")
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := []string{"user alias", fmt.Sprintf("hash %v except %v", a.Key, to)}
		if got := s.levers.kicked(); !slices.Equal(got, want) {
			t.Errorf("kicked %q, want %q", got, want)
		}
	})
}

// Sessions that an earlier process gave their host count from their first refresh on, and are kicked before it, too.
func TestSessionsOfAnEarlierProcess(t *testing.T) {
	inBubble(t, director.Config{}, func(t *testing.T, s *scene) {
		a := s.must(t, "anna", "")
		to, done := s.move(t, "anna")
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if want := []string{fmt.Sprintf("hash %v except %v", a.Key, to)}; !slices.Equal(s.levers.kicked(), want) {
			t.Errorf("kicked %q, want %q", s.levers.kicked(), want)
		}
		s.guests.refresh("anna")
		s.guests.refresh("anna")
		if n := s.sessions("anna"); n != 1 {
			t.Errorf("%d sessions after a refresh, want 1", n)
		}
		s.must(t, "berta", "fast")
		s.guests.refresh("berta")
		e, _ := s.entry(s.must(t, "berta", "fast").Key)
		if e.Sessions != 1 {
			t.Errorf("%d sessions under the tag, want 1", e.Sessions)
		}
	})
}

// Those that Dovecot can list count at once, if they are where their users are.
func TestCensus(t *testing.T) {
	inBubble(t, director.Config{}, func(t *testing.T, s *scene) {
		a, b := s.must(t, "anna", ""), s.must(t, "berta", "fast")
		wrong := "127.0.2.1"
		if s.must(t, "carla", "").Host.Addr == s1 {
			wrong = "127.0.2.2"
		}
		s.levers.there = [][2]string{
			{"anna", a.Host.Addr.String()}, {"anna", a.Host.Addr.String()}, {"berta", b.Host.Addr.String()}, {"carla", wrong},
			{"dora", "127.0.2.1"}, {"elsa", "192.0.2.1"},
		}
		s.welcome(t, "fanny", "fanny")
		for range 2 {
			if err := s.census(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if s.Guests() != 3 || s.sessions("anna") != 1 || s.sessions("carla") != 0 {
			t.Errorf("%d guests, %d sessions of anna, %d of carla; want 3, 1, 0", s.Guests(), s.sessions("anna"), s.sessions("carla"))
		}
		if e, _ := s.entry(b.Key); e.Sessions != 1 {
			t.Errorf("%d sessions under the tag, want 1", e.Sessions)
		}
		if _, ok := s.entry(s.keyOf("dora")); ok {
			t.Error("a listed session made an entry")
		}
		// Her next login, and a refresh, are the same guest.
		s.welcome(t, "anna", "anna")
		s.guests.refresh("anna")
		if n := s.sessions("anna"); n != 1 {
			t.Errorf("%d sessions of anna, want 1", n)
		}
		err := s.router.Begin(func(id uint64) director.Event { return director.Kick{ID: id, User: "*", Mask: true} }).Wait(t.Context())
		synctest.Wait()
		if err != nil || len(s.levers.kicked()) != 3 || s.Guests() != 0 {
			t.Errorf("kicked %q, %v", s.levers.kicked(), err)
		}
	})
}

func TestGuestsAreBounded(t *testing.T) {
	inBubble(t, director.Config{}, func(t *testing.T, s *scene) {
		s.guests.max = 3
		for i := range 10 {
			s.welcome(t, fmt.Sprint("user", i), "login")
			time.Sleep(time.Second)
			s.guests.refresh("user0") // the one that is alive
		}
		counted := 0
		for i := range 10 {
			counted += s.sessions(fmt.Sprint("user", i))
		}
		if s.Guests() != 3 || counted != 3 || s.sessions("user0") != 1 {
			t.Errorf("%d guests, %d sessions, %d of the one that is refreshed; want 3, 3, 1", s.Guests(), counted, s.sessions("user0"))
		}
	})
}

// Nobody is locked out because Dovecot does not answer.
func TestKickFails(t *testing.T) {
	inBubble(t, director.Config{}, func(t *testing.T, s *scene) {
		s.welcome(t, "anna", "anna")
		time.Sleep(time.Minute)
		s.levers.fail = errors.New("no")
		begin := time.Now()
		_, done := s.move(t, "anna")
		if err := <-done; err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took < kickPatience || took > kickPatience+time.Second {
			t.Errorf("the move ended after %v, want %v", took, kickPatience)
		}
		if n := len(s.levers.kicked()); n < 10 {
			t.Errorf("only %d attempts", n)
		}
	})
}

// Dovecot's login processes outlive their master for a while.
func TestDovecotEnds(t *testing.T) {
	inBubble(t, director.Config{}, func(t *testing.T, s *scene) {
		s.welcome(t, "anna", "anna")
		s.up.Store(false)
		s.linger()
		if s.Guests() != 0 || s.sessions("anna") != 1 {
			t.Errorf("%d guests, %d sessions", s.Guests(), s.sessions("anna"))
		}
		time.Sleep(lingering)
		synctest.Wait()
		if s.sessions("anna") != 0 {
			t.Errorf("%d sessions are left", s.sessions("anna"))
		}
		_, done := s.move(t, "anna")
		if err := <-done; err != nil || len(s.levers.kicked()) != 0 {
			t.Errorf("kicked %q, %v", s.levers.kicked(), err)
		}
	})
}

func BenchmarkWelcome(b *testing.B) {
	var before, after runtime.MemStats
	d := newDirector(director.Config{})
	tell := &deafRouter{d}
	g := newGuests(tell, time.Hour)
	key := director.Key{}
	runtime.GC()
	runtime.ReadMemStats(&before)
	n := 0
	for b.Loop() {
		n++
		key.Hash = uint32(n)
		name := fmt.Sprintf("user%d@example.com", n)
		g.welcome(name, name, director.Assigned{Key: key, Host: director.Host{Addr: s1}, Epoch: 1})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/guest")
	runtime.KeepAlive(g)
}

// deafRouter hears nothing.
type deafRouter struct{ d *director.Director }

func (*deafRouter) Route(context.Context, string, string) (director.Assigned, error) {
	return director.Assigned{}, nil
}
func (*deafRouter) WaitSynced(context.Context) error  { return nil }
func (*deafRouter) Tell(director.Event)               {}
func (l *deafRouter) View(f func(*director.Director)) { f(l.d) }
