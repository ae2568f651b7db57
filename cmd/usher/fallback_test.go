package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"usher/cmd/internal/admin"
	"usher/cmd/internal/site"
	"usher/testenv/client"
	"usher/testenv/content"
	"usher/testenv/dialogue"
)

// User space alone does the same as the kernel, without root.
func TestUserSpace(t *testing.T) {
	for _, mode := range []string{"splice", "copy"} {
		t.Run(mode, func(t *testing.T) {
			s := newSite(t, site.Options{Loopback: true, Mode: mode})
			start(t, s)
			t.Run("traffic", func(t *testing.T) { userSpaceTraffic(t, s, mode) })
			t.Run("half-close", func(t *testing.T) { halfClose(t, s) })
			t.Run("accounting", func(t *testing.T) { accounting(t, s, mode) })
			t.Run("back-pressure", func(t *testing.T) { backPressure(t, s) })
			t.Run("move", func(t *testing.T) { userSpaceMove(t, s) })
			t.Run("kick", func(t *testing.T) { userSpaceKick(t, s) })
			t.Run("stop", func(t *testing.T) { userSpaceStop(t, s) })
			noErrors(t, s)
		})
	}
}

func userSpaceTraffic(t *testing.T, s *site.Site, mode string) {
	const users, each = 40, 5
	sessions := login(t, s, users*each, func(i int) client.Config {
		c := s.Client(fmt.Sprintf("user%d", i%users))
		c.Method, c.Pipeline, c.Timeout = client.Methods[i%len(client.Methods)], i%2 == 0, time.Minute
		if i%4 == 3 {
			c.Protocol, c.Server = client.POP3, s.Service(client.POP3)
		}
		return c
	})
	if st := status(t, s); st.Sessions.Splice+st.Sessions.Copy != users*each || st.Kernel.Mode != mode || st.Kernel.Reason == "" {
		t.Errorf("status %+v", st)
	}
	for _, x := range user(t, s, "user1").Sessions {
		if x.Mode != mode || x.Reason != "mode" || x.State != "relayed" {
			t.Errorf("session %+v", x)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := client.Each(sessions, func(i int, x *client.Session) error { return x.Hammer(ctx, uint64(i)) }).Err(); err != nil {
		t.Error(err)
	}
	for _, b := range s.Backends {
		for name, n := range b.Live() {
			if n != each {
				t.Errorf("user %s has %d sessions at backend %s, want all %d or none", name, n, b.Name(), each)
			}
		}
	}
	t.Logf("%d commands, 0 errors", ops(sessions))
	if err := client.Each(sessions, func(_ int, x *client.Session) error { return x.Logout() }).Err(); err != nil {
		t.Error(err)
	}
	eventually(t, "no session left", func() bool { return status(t, s).Sessions.Total == 0 })
}

// halfClose ends one direction first, from either side, while the other one goes on.
func halfClose(t *testing.T, s *site.Site) {
	const pairs, size = 20, 3 << 20
	sessions := login(t, s, 2*pairs, func(i int) client.Config { return s.Client(fmt.Sprintf("half%d", i)) })
	if s.Lab != nil {
		allForwarded(t, s, 2*pairs)
	}
	if err := client.Each(sessions, func(i int, x *client.Session) error {
		if i%2 == 0 {
			return x.HalfClose(size, uint64(i+1))
		}
		return x.Finish(size, uint64(i+1))
	}).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all sessions have ended", func() bool {
		for _, b := range s.Backends {
			for name := range b.Live() {
				if strings.HasPrefix(name, "half") {
					return false
				}
			}
		}
		return status(t, s).Sessions.Total == 0
	})
	seen := 0
	for _, b := range s.Backends {
		for _, x := range b.Sessions() {
			var i int
			if n, _ := fmt.Sscanf(x.User, "half%d", &i); n != 1 {
				continue
			}
			seen++
			if x.Ending != "FIN" {
				t.Errorf("backend saw session of %s end by %s, want FIN", x.User, x.Ending)
			}
			if i%2 == 0 {
				continue
			}
			h := sha256.New()
			io.CopyN(h, content.Stream(uint64(i+1)), size)
			if x.Tail != size || x.TailSHA256 != hex.EncodeToString(h.Sum(nil)) {
				t.Errorf("after its own FIN the backend got %d bytes, hash %s", x.Tail, x.TailSHA256)
			}
		}
	}
	if seen != 2*pairs {
		t.Errorf("backends know %d of the sessions, want %d", seen, 2*pairs)
	}
}

// accounting compares `usher user` and the log with what the client has counted.
func accounting(t *testing.T, s *site.Site, mode string) {
	x := login(t, s, 1, func(int) client.Config { return s.Client("counted") })[0]
	own := func() (sent, received uint64) {
		_, sent, received = x.Stats()
		return sent, received
	}
	theirs := func() admin.Session {
		t.Helper()
		all := user(t, s, "counted").Sessions
		if len(all) != 1 {
			t.Fatalf("%d sessions, want 1", len(all))
		}
		return all[0]
	}
	var before admin.Session
	eventually(t, "the backend's answer to the login is counted", func() bool {
		before = theirs()
		return before.BytesOut > 0
	})
	sent, received := own()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := errors.Join(x.Hammer(ctx, 5), x.Echo(5<<20+17, 3), x.Source(7<<20+1, 4)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was relayed is counted", func() bool {
		after := theirs()
		sent2, received2 := own()
		return after.BytesIn-before.BytesIn == sent2-sent && after.BytesOut-before.BytesOut == received2-received
	})
	if before.BytesIn != 0 {
		t.Errorf("%d bytes from the client before it sent anything after the login", before.BytesIn)
	}
	if err := x.Logout(); err != nil {
		t.Fatal(err)
	}
	sent2, received2 := own()
	eventually(t, "the end is in the log, with the right numbers", func() bool {
		for _, e := range endings(t, s) {
			if e.User == "counted" {
				return e.Mode == mode && e.End == "closed" && e.BytesIn == sent2-sent && e.BytesOut == before.BytesOut+received2-received
			}
		}
		return false
	})
}

// backPressure: who does not read makes the sender wait; the daemon stores nothing.
func backPressure(t *testing.T, s *site.Site) {
	const n, size = 8, 64 << 20
	const room = 48 << 20 // for the daemon: a tenth of what is sent
	rss := func() float64 { return metrics(t, s)["process_resident_memory_bytes"] }
	sessions := login(t, s, n, func(i int) client.Config { return s.Client(fmt.Sprintf("slow%d", i)) })
	before := rss()
	// The client does not read what it has asked for.
	for _, x := range sessions {
		if _, err := fmt.Fprintf(x.Conn(), "p X-SOURCE %d 7\r\n", size); err != nil {
			t.Fatal(err)
		}
	}
	moved := func() (in, out uint64) {
		for i := range n {
			for _, x := range user(t, s, fmt.Sprintf("slow%d", i)).Sessions {
				in, out = in+x.BytesIn, out+x.BytesOut
			}
		}
		return in, out
	}
	still := func() (in, out uint64) {
		t.Helper()
		for {
			in, out = moved()
			time.Sleep(300 * time.Millisecond)
			if in2, out2 := moved(); in == in2 && out == out2 {
				return in, out
			}
		}
	}
	_, out := still()
	if out > n*size/2 {
		t.Errorf("%d MiB went to clients that do not read", out>>20)
	}
	full := rss()
	// The rest comes, and is right, as soon as they do.
	if err := client.Each(sessions, func(_ int, x *client.Session) error {
		x.Conn().SetReadDeadline(time.Now().Add(2 * time.Minute))
		if _, err := io.CopyN(content.NewCheck(7), x.Conn(), size); err != nil {
			return err
		}
		return readLine(x.Conn(), "p OK X-SOURCE completed.")
	}).Err(); err != nil {
		t.Fatal(err)
	}
	drained := rss()
	// The other way: the backend waits with its answer, and so does not read. The buffers
	// of all sockets on the way have more room together (tcp_rmem: 32 MiB each) than in the first case.
	const size2 = 4 * size
	if err := client.Each(sessions[:2], func(_ int, x *client.Session) error {
		if _, err := fmt.Fprintf(x.Conn(), "q X-ECHO %d\r\n", size2); err != nil {
			return err
		}
		stream, sent := content.Stream(9), int64(0)
		buf := make([]byte, 64<<10)
		for {
			x.Conn().SetWriteDeadline(time.Now().Add(time.Second))
			io.ReadFull(stream, buf)
			k, err := x.Conn().Write(buf)
			sent += int64(k)
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					return err
				}
				break
			}
			if sent >= size2 {
				return fmt.Errorf("client could send all %d bytes to a backend that does not read", size2)
			}
		}
		x.Conn().SetDeadline(time.Now().Add(2 * time.Minute))
		rest := make(chan error, 1)
		go func() {
			again := content.Stream(9)
			io.CopyN(io.Discard, again, sent)
			_, err := io.CopyN(x.Conn(), again, size2-sent)
			rest <- err
		}()
		if _, err := io.CopyN(content.NewCheck(9), x.Conn(), size2); err != nil {
			return err
		}
		return errors.Join(<-rest, readLine(x.Conn(), "q OK X-ECHO completed."))
	}).Err(); err != nil {
		t.Fatal(err)
	}
	end := rss()
	t.Logf("%d MiB to clients that did not read stopped at %d MiB; resident memory of the daemon: %.0f MiB before, %.0f waiting, %.0f after reading on, %.0f at the end",
		n*size>>20, out>>20, before/(1<<20), full/(1<<20), drained/(1<<20), end/(1<<20))
	if max(full, drained, end) > before+room {
		t.Errorf("the daemon's memory grew by %.0f MiB", (max(full, drained, end)-before)/(1<<20))
	}
	client.CloseAll(sessions)
	eventually(t, "no session left", func() bool { return status(t, s).Sessions.Total == 0 })
}

func readLine(r io.Reader, want string) error {
	b := make([]byte, len(want)+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	if string(b) != want+"\r\n" {
		return fmt.Errorf("got %q, want %q", b, want)
	}
	return nil
}

// awaitReset expects that a session is cut by a RST, so that nobody takes it for an end.
func awaitReset(x *client.Session) error {
	x.Conn().SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := x.Conn().Read(make([]byte, 1)); !isReset(err) {
		return fmt.Errorf("client of %s sees %w, want a reset", x.User(), err)
	}
	return nil
}

func userSpaceMove(t *testing.T, s *site.Site) {
	sessions := login(t, s, 5, func(int) client.Config { return s.Client("moved") })
	other := login(t, s, 2, func(int) client.Config { return s.Client("unmoved") })
	from := user(t, s, "moved").Host
	to := s.Hosts[(slices.Index(s.Hosts, from)+1)%len(s.Hosts)]
	if _, err := s.Admin.UserMove(t.Context(), "moved", to.String(), true); err != nil {
		t.Fatal(err)
	}
	if err := client.Each(sessions, func(_ int, x *client.Session) error { return awaitReset(x) }).Err(); err != nil {
		t.Error(err)
	}
	again := login(t, s, 3, func(int) client.Config { return s.Client("moved") })
	for _, b := range s.Backends {
		want := 0
		if b.Name() == to.String() {
			want = 3
		}
		eventually(t, fmt.Sprintf("%d sessions at %s", want, b.Name()), func() bool { return b.Live()["moved"] == want })
		for _, x := range b.Sessions() {
			if x.User == "moved" && !x.End.IsZero() && x.Ending != "RST" {
				t.Errorf("backend %s saw session %d end by %s, want RST", b.Name(), x.ID, x.Ending)
			}
		}
	}
	if err := client.Each(append(again, other...), func(_ int, x *client.Session) error { return x.Logout() }).Err(); err != nil {
		t.Error(err)
	}
}

func userSpaceKick(t *testing.T, s *site.Site) {
	sessions := login(t, s, 5, func(i int) client.Config { return s.Client([]string{"kicked", "unkicked"}[i%2]) })
	if _, err := s.Admin.UserKick(t.Context(), "kicked"); err != nil {
		t.Fatal(err)
	}
	if err := client.Each(sessions, func(i int, x *client.Session) error {
		if i%2 == 1 {
			return x.Logout()
		}
		return awaitReset(x)
	}).Err(); err != nil {
		t.Error(err)
	}
	eventually(t, "the user has no sessions", func() bool {
		u := user(t, s, "kicked")
		return len(u.Sessions) == 0 && u.ExpiresAt != nil
	})
}

// userSpaceStop ends the daemon: its sessions end with it, and the clients know.
func userSpaceStop(t *testing.T, s *site.Site) {
	sessions := login(t, s, 5, func(i int) client.Config { return s.Client(fmt.Sprint("last", i)) })
	early, err := net.Dial("tcp", s.Service(client.IMAP).String())
	if err != nil {
		t.Fatal(err)
	}
	d := dialogue.New(t, early)
	defer d.Close()
	d.Expect("* OK *")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	d.Expect("* BYE Server is shutting down.")
	d.ExpectEOF()
	for _, x := range sessions {
		if err := awaitReset(x); err != nil {
			t.Error(err)
		}
	}
	n := 0
	for _, e := range endings(t, s) {
		if strings.HasPrefix(e.User, "last") && e.End == "shutdown" {
			n++
		}
	}
	if n != len(sessions) {
		t.Errorf("%d sessions in the log ended by shutdown, want %d", n, len(sessions))
	}
}

// A half-closed session goes on in the kernel, which takes nothing for an end but both.
func TestHalfCloseForwarded(t *testing.T) {
	s := newSite(t, site.Options{})
	start(t, s)
	halfClose(t, s)
	for _, e := range endings(t, s) {
		if e.Mode != "tc" || e.End != "closed" {
			t.Errorf("unexpected end: %+v", e)
		}
	}
	within(t, time.Minute, "the flows are gone", func() bool { return sum(flowStates(t, s)) == 0 })
	noErrors(t, s)
}
