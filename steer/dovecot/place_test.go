package dovecot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"usher/director"
)

// dovecot is in place of Dovecot's master: a process, its pid file, and auth's sockets, on which nobody speaks.
type dovecotMaster struct {
	t    *testing.T
	base string
	cmd  *exec.Cmd
	auth []net.Listener
}

func startMaster(t *testing.T, base string) *dovecotMaster {
	t.Helper()
	m := &dovecotMaster{t: t, base: base, cmd: exec.Command("sleep", "1000")}
	// As Dovecot does: nobody may listen in login/.
	for _, name := range []string{loginSocket, "login/other"} {
		if conn, err := net.Dial("unix", filepath.Join(base, name)); err == nil {
			conn.Close()
			t.Errorf("Dovecot is already running? Socket already exists: %s", name)
		}
	}
	if err := os.MkdirAll(filepath.Join(base, "login"), 0o750); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{authLogin, authUserdb} {
		os.Remove(filepath.Join(base, name))
		l, err := net.Listen("unix", filepath.Join(base, name))
		if err != nil {
			t.Fatal(err)
		}
		m.auth = append(m.auth, l)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.kill)
	if err := os.WriteFile(filepath.Join(base, "master.pid"), fmt.Appendf(nil, "%d\n", m.cmd.Process.Pid), 0o644); err != nil {
		t.Fatal(err)
	}
	return m
}

// kill leaves the pid file.
func (m *dovecotMaster) kill() {
	for _, l := range m.auth {
		l.Close()
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

func listens(path string) bool {
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// run runs the drop-in until the test, or end, ends it.
func (s *scene) run(t *testing.T) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return end
}

func TestSocketsAreThereWhileDovecotRuns(t *testing.T) {
	base := t.TempDir()
	login, userdb := filepath.Join(base, loginSocket), filepath.Join(base, userdbSocket)
	s := newScene(t, director.Config{}, base)
	end := s.run(t)
	time.Sleep(3 * masterPoll)
	if _, err := os.Lstat(filepath.Join(base, "login")); err == nil {
		t.Error("something was made before Dovecot started")
	}
	m := startMaster(t, base)
	eventually(t, "the sockets are there", func() bool { return listens(login) && listens(userdb) })
	for name, want := range map[string]fs.FileMode{
		loginSocket: fs.ModeSocket | 0o666, userdbSocket: fs.ModeSocket | 0o600, notifyFIFO: fs.ModeNamedPipe | 0o666,
	} {
		if info, err := os.Lstat(filepath.Join(base, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, info, err, want)
		}
	}
	// A session on it, whose end is a part of the end.
	conn, err := net.Dial("unix", login)
	if err != nil {
		t.Fatal(err)
	}
	client := newLineConn(t, conn)
	client.send("VERSION\t1\t2")

	m.kill() // its pid file stays behind
	client.eof()
	eventually(t, "the sockets are gone", func() bool {
		_, err := os.Lstat(login)
		_, err2 := os.Lstat(userdb)
		return errors.Is(err, fs.ErrNotExist) && errors.Is(err2, fs.ErrNotExist)
	})
	time.Sleep(3 * masterPoll)
	if listens(login) {
		t.Error("it listens for a Dovecot that is dead")
	}
	startMaster(t, base)
	eventually(t, "the sockets are there again", func() bool { return listens(login) && listens(userdb) })

	// Somebody cleans up.
	if err := os.Remove(login); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the socket is there once more", func() bool { return listens(login) })
	end()
	for _, path := range []string{login, userdb} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left behind: %v", path, err)
		}
	}
}

// The process that has the pid of a Dovecot that crashed is no Dovecot.
func TestStalePidFile(t *testing.T) {
	base := t.TempDir()
	m := startMaster(t, base)
	for _, l := range m.auth {
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
	if m := findMaster(base); m != nil {
		t.Error("found a master without auth")
	}
	for _, text := range []string{"", "x\n", "0\n", "-1\n", fmt.Sprint(os.Getpid()), "99999999\n"} {
		if err := os.WriteFile(filepath.Join(base, "master.pid"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if m := findMaster(base); m != nil {
			t.Errorf("found a master in %q", text)
		}
	}
}

// Login processes keep the FIFO open: it stays the same, and its readers may come and go.
func TestRefreshesByFIFO(t *testing.T) {
	base := t.TempDir()
	s := newScene(t, director.Config{}, base)
	end := s.run(t)
	startMaster(t, base)
	path := filepath.Join(base, notifyFIFO)
	eventually(t, "the FIFO is there", func() bool { return listens(filepath.Join(base, loginSocket)) })
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	say := func(user string) {
		t.Helper()
		s.must(t, user, "")
		if _, err := io.WriteString(w, escape(user)+"\n"); err != nil {
			t.Fatal(err)
		}
		eventually(t, user+" is refreshed", func() bool { return s.sessions(user) == 1 })
	}
	say("anna")
	say("tab\there")
	if _, err := io.WriteString(w, strings.Repeat("x", 3*maxRelayLine)+"\n\n"); err != nil {
		t.Fatal(err)
	}
	say("berta")
	end()
	if _, err := io.WriteString(w, "lost\n"); err == nil {
		t.Log("nobody hears this, and the writer does not know yet")
	}
	s.run(t)
	eventually(t, "it runs again", func() bool { return listens(filepath.Join(base, loginSocket)) })
	say("carla")
}

func TestInTheWay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "proxy-notify")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := openFIFO(path); err == nil {
		f.Close()
		t.Error("a file is taken for a FIFO")
	}
}

// answered plays one side of a transcript: it wants lines and answers each.
func answered(t *testing.T, greeting string, exchanges ...[2]string) string {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for i, x := range exchanges {
			got, err := in.ReadString('\n')
			if err != nil || got != x[0]+"\n" {
				t.Errorf("got %q, %v; want %q", got, err, x[0])
				return
			}
			if i == 0 {
				io.WriteString(conn, greeting)
			}
			io.WriteString(conn, x[1])
		}
	}()
	return path
}

func TestIPC(t *testing.T) {
	// As recorded; what went between the service and the login processes is not our business.
	var said [][2]string
	for _, l := range transcript(t, "ipc-raw.txt") {
		if rest, ok := strings.CutPrefix(l, "client->ipc "); ok {
			said = append(said, [2]string{rest})
		} else if rest, ok := strings.CutPrefix(l, "ipc->client "); ok {
			said[len(said)-1][1] += rest + "\n"
		}
	}
	said = slices.DeleteFunc(said, func(x [2]string) bool {
		return !strings.HasPrefix(x[0], "proxy\t*\tKICK") && !strings.HasPrefix(x[0], "proxy\t*\tLIST")
	})
	if len(said) != 5 {
		t.Fatalf("%d commands in the transcript: %q", len(said), said)
	}
	lv, err := openIPC(t.Context(), answered(t, "", said...))
	if err != nil {
		t.Fatal(err)
	}
	defer lv.close()
	i := lv.(ipc)
	if err := i.kickHash(t.Context(), 12345, netip.Addr{}); err != nil { // +3
		t.Error(err)
	}
	if err := i.kickUser(t.Context(), "user@x"); !errors.Is(err, ErrKick) || !strings.Contains(err.Error(), "Some error") {
		t.Errorf("a refusal: %v", err)
	}
	listed := ""
	if err := i.list(t.Context(), func(login string, host netip.Addr) { listed += login + " at " + host.String() + "\n" }); err != nil || listed != "u@x at 127.0.2.1\n" {
		t.Errorf("listed %q, %v", listed, err)
	}
	for range 2 { // +(null), and the last of two counts
		if err := i.kickUser(t.Context(), "user@x"); err != nil {
			t.Error(err)
		}
	}
	if err := i.kickUser(t.Context(), "user@x"); err == nil {
		t.Error("no error when ipc is gone")
	}

	lv, err = openIPC(t.Context(), answered(t, "",
		[2]string{"proxy\t*\tKICK-DIRECTOR-HASH\t7\t127.0.2.1", "+0\n"}, [2]string{"proxy\t*\tKICK-ALT\tuser_x\ta\x01tb", "what\n"}))
	if err != nil {
		t.Fatal(err)
	}
	defer lv.close()
	if err := lv.kickHash(t.Context(), 7, s1); err != nil {
		t.Error(err)
	}
	if err := lv.kickField(t.Context(), "user_x", "a\tb"); !errors.Is(err, ErrKick) {
		t.Errorf("nonsense is taken for an answer: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s")) // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	silent, err := openIPC(ctx, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.close()
	if err := silent.kickUser(ctx, "x"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ipc is silent: %v", err)
	}
}

// theAnvil is the third run of the transcript: the list of three sessions, and kicks of two of them.
func theAnvil(t *testing.T) (list []string) {
	lines := transcript(t, "anvil-kick-2.4.1.txt")
	lines = lines[slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "== third run") }):]
	for _, l := range lines[2:6] {
		list = append(list, strings.TrimPrefix(l, "S: "))
	}
	if len(list) != 4 || !strings.HasPrefix(list[3], "32404\tkick1@x.test\t") {
		t.Fatalf("the transcript is not understood: %q", list)
	}
	return list
}

func TestAnvil(t *testing.T) {
	list := theAnvil(t)
	dump := func(rows ...string) string { return strings.Join(rows, "\n") + "\n\n" }
	path := answered(t, "VERSION\tanvil-server\t2\t0\n", [][2]string{
		{"VERSION\tanvil-client\t2\t0"}, {""},
		{"KICK-ALT-USER\tuser_alt\tnobody", "0\n"},
		// It is looked at whether they are gone, until that was so once.
		{"KICK-ALT-USER\tuser_director_hash\t760602863", "1\n"}, {"CONNECT-DUMP", dump(list...)}, {"CONNECT-DUMP", dump(list[:3]...)},
		{"KICK-USER\tkick2@x.test", "1\n"}, {"CONNECT-DUMP", dump(list...)},
		{"KICK-USER\tx", "-\n"},
	}...)
	lv, err := openAnvil(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer lv.close()
	err = errors.Join(lv.kickField(t.Context(), "user_alt", "nobody"), lv.kickHash(t.Context(), 760602863, s1),
		lv.kickUser(t.Context(), "kick2@x.test"))
	if err != nil {
		t.Error(err)
	}
	listed := 0
	if err := lv.list(t.Context(), func(_ string, host netip.Addr) { listed++ }); err != nil || listed != 3 {
		t.Errorf("%d sessions are listed, %v; want 3", listed, err)
	}
	if err := lv.kickUser(t.Context(), "x"); !errors.Is(err, ErrKick) {
		t.Errorf("nonsense is taken for an answer: %v", err)
	}
	old := answered(t, "VERSION\tanvil\t1\t0\n", [2]string{"VERSION\tanvil-client\t2\t0"}, [2]string{""}) // 2.3's
	if _, err := openAnvil(t.Context(), old); err == nil {
		t.Error("the anvil of Dovecot 2.3 is taken for that of 2.4")
	}
}

// Login processes with one client each are told and do nothing: they are killed. Those with several are not.
func TestAnvilCountsAndDoesNothing(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "imap-login")
	if err := os.WriteFile(copied, program, 0o755); err != nil {
		t.Fatal(err)
	}
	victim, other := exec.Command(copied, "1000"), exec.Command(sleep, "1000")
	for _, cmd := range []*exec.Cmd{victim, other} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill()
	}
	strange := fmt.Sprintf("%d\tcarla\timap-login\t127.0.0.1\tguid\t127.0.2.1\t79", other.Process.Pid)
	alone := fmt.Sprintf("%d\tanna\timap-login\t127.0.0.1\tguid\t127.0.2.1\t77", victim.Process.Pid)
	shared := "2147483646\tberta\timap-login\t127.0.0.1\tguid\t127.0.2.1\t78"
	said := [][2]string{{"VERSION\tanvil-client\t2\t0"}, {""}}
	for _, name := range []string{"anna", "berta", "carla"} {
		said = append(said, [2]string{"KICK-USER\t" + name, "1\n"})
		for range anvilLooks {
			said = append(said, [2]string{"CONNECT-DUMP", "user_director_hash\n" + strings.Join([]string{alone, shared, shared, strange}, "\n") + "\n\n"})
		}
	}
	lv, err := openAnvil(t.Context(), answered(t, "VERSION\tanvil-server\t2\t0\n", said...))
	if err != nil {
		t.Fatal(err)
	}
	defer lv.close()
	if err := lv.kickUser(t.Context(), "anna"); err != nil {
		t.Error(err)
	}
	if err := victim.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process with the session ended with %v", err)
	}
	for _, name := range []string{"berta", "carla"} {
		if err := lv.kickUser(t.Context(), name); !errors.Is(err, ErrKick) {
			t.Errorf("the session of %s stays, and the error is %v", name, err)
		}
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a process that is no login process: %v", err)
	}
}

// Which lever it is depends on the Dovecot.
func TestLever(t *testing.T) {
	base := t.TempDir()
	s := newScene(t, director.Config{}, base)
	if _, err := s.openLever(t.Context()); err == nil || !strings.Contains(err.Error(), "anvil") {
		t.Errorf("without any socket: %v", err)
	}
	l, err := net.Listen("unix", filepath.Join(base, "ipc"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lv, err := s.openLever(t.Context())
	if _, is := lv.(ipc); !is || err != nil {
		t.Errorf("with ipc: %T, %v", lv, err)
	}
	lv.close()
	s.cfg.IPC = filepath.Join(base, "elsewhere")
	if _, err := s.openLever(t.Context()); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("with [dovecot] ipc: %v", err)
	}
}

func FuzzNotify(f *testing.F) {
	f.Add([]byte("anna\nber\x01tta\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		lines := 0
		err := heed(t.Context(), strings.NewReader(string(b)), func(user string) {
			if lines++; user == "" {
				t.Error("a refresh without a name")
			}
		})
		if !errors.Is(err, io.EOF) || lines > strings.Count(string(b), "\n") {
			t.Errorf("%d users in %q, %v", lines, b, err)
		}
	})
}

func FuzzKickReply(f *testing.F) {
	f.Add([]byte("+3\n"))
	f.Add([]byte(":x\n-no\n"))
	f.Add([]byte("VERSION\tanvil-server\t2\t0\n1\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		for _, ask := range []func(*wire) error{
			func(w *wire) error { return ipc{w}.kickUser(t.Context(), "x") },
			func(w *wire) error {
				a := &anvil{wire: w}
				if err := a.handshake(t.Context()); err != nil {
					return err
				}
				return a.kickHash(t.Context(), 1, s1)
			},
		} {
			a, b := net.Pipe()
			go func() { io.Copy(io.Discard, b) }()
			go func() { b.Write(says); b.Close() }()
			if err := ask(&wire{conn: a, in: bufio.NewReaderSize(a, maxRelayLine)}); err == nil && !strings.Contains(string(says), "\n") {
				t.Errorf("%q is taken for an answer", says)
			}
			a.Close()
		}
	})
}
