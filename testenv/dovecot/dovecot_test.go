package dovecot

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"usher/loader/netns"
	"usher/testenv/client"
	"usher/testenv/dialogue"
	"usher/testenv/lab"
)

// directory is one that other users can enter.
func directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "usher-dovecot")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// untouched are the places of an installed Dovecot, with the times of their last change.
func untouched() (s []string) {
	for _, root := range []string{"/etc/dovecot", "/run/dovecot", "/var/lib/dovecot"} {
		filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
			if err == nil {
				s = append(s, path+" "+info.ModTime().String())
			}
			return nil
		})
	}
	return s
}

// children returns the processes of /proc whose parent is pid.
func children(pid int) (paths []string) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		b, _ := os.ReadFile(p + "/stat")
		_, rest, _ := strings.Cut(string(b), ") ") // state, parent, ...
		if f := strings.Fields(rest); len(f) > 1 && f[1] == fmt.Sprint(pid) {
			paths = append(paths, p)
		}
	}
	return paths
}

func TestDovecot(t *testing.T) {
	for _, err := range []error{Available(), netns.Available()} {
		if err != nil {
			t.Skip(err)
		}
	}
	before := untouched()
	l, err := lab.New(lab.Options{Backends: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.SetForwarding(true); err != nil {
		t.Fatal(err)
	}
	var servers []*Server
	for i := range 2 { // each with an address of each family
		s, err := Start(l.Backend, directory(t), []netip.Addr{l.V4.Backends[i], l.V6.Backends[i]}, Options{
			Name: fmt.Sprint("b", i), Password: "secret", Master: "usher", MasterPassword: "key",
			Trusted: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Stop() })
		servers = append(servers, s)
	}

	t.Run("dialogue", func(t *testing.T) {
		c, err := l.Client.Dial(t.Context(), "tcp", nil, netip.AddrPortFrom(l.V4.Backends[0], 143).String())
		if err != nil {
			t.Fatal(err)
		}
		d := dialogue.New(t, c)
		d.Expect("* OK *ready.")
		d.Send("a LOGIN anna*usher wrong")
		d.Expect("a NO [AUTHENTICATIONFAILED] *")
		d.Send("b LOGIN anna*usher key")
		d.ExpectUntil("b OK *")
		d.Send("c LOGOUT")
		d.ExpectUntil("c OK *")
		d.ExpectEOF()
	})

	t.Run("traffic", func(t *testing.T) {
		var configs []client.Config
		for _, n := range l.Nets() {
			for i, b := range n.Backends {
				for k := range 10 {
					configs = append(configs, client.Config{
						NS: l.Client, Server: netip.AddrPortFrom(b, 143), Real: true,
						User: fmt.Sprintf("user%d-%d", i, k), Method: client.Methods[k%4],
					})
				}
			}
		}
		sessions, report := client.DialAll(t.Context(), len(configs), 10, func(i int) client.Config { return configs[i] })
		if err := report.Err(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := client.Each(sessions, func(i int, s *client.Session) error {
			if err := s.Traffic(ctx, uint64(i)); err != nil {
				return err
			}
			// One message for POP3 to read.
			if err := s.Append(uint64(i), 5000, false); err != nil {
				return err
			}
			return s.Logout()
		}).Err()
		if err != nil {
			t.Error(err)
		}
		for i, b := range l.V6.Backends {
			s, err := client.Dial(t.Context(), client.Config{
				NS: l.Client, Server: netip.AddrPortFrom(b, 110), Real: true, Protocol: client.POP3, User: fmt.Sprintf("user%d-0", i),
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Fetch(1); err != nil {
				t.Error(err)
			}
			if err := s.Logout(); err != nil {
				t.Error(err)
			}
		}
	})

	for _, s := range servers {
		theirs := children(s.Pid())
		if len(theirs) < 3 {
			t.Errorf("master %d has the processes %q", s.Pid(), theirs)
		}
		if log := s.Log(); strings.Contains(log, "Error:") || strings.Contains(log, "Fatal:") {
			t.Errorf("log of %s:\n%s", s.Dir, log)
		}
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		for _, p := range theirs {
			for end := time.Now().Add(3 * time.Second); exists(p); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s is still there", p)
				}
			}
		}
	}
	if after := untouched(); !slices.Equal(before, after) {
		t.Errorf("files of the installed Dovecot changed:\n%q\nbefore:\n%q", after, before)
	}
}

func TestStartErrors(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	lo := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if _, err := Start(nil, t.TempDir(), lo, Options{}); err == nil || !strings.Contains(err.Error(), "open to all users") {
		t.Errorf("in a closed directory: %v", err)
	}
	if _, err := Start(nil, "/tmp/"+strings.Repeat("x", 90), lo, Options{}); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("in a deep directory: %v", err)
	}
	if _, err := Start(nil, directory(t), lo, Options{Extra: "no_such_setting = 1"}); err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("wrong configuration: %v", err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
