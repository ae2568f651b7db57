package main

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

	"usher/cmd/internal/site"
	"usher/testenv/client"
	"usher/testenv/dialogue"
	"usher/testenv/dovecot"
	"usher/testenv/lab"
)

// dovecots starts one Dovecot for each backend address of a site.
func dovecots(t *testing.T, s *site.Site, o dovecot.Options) []*dovecot.Server {
	t.Helper()
	var all []*dovecot.Server
	for i, a := range s.Hosts {
		// Not t.TempDir: mail is another user's, and may not pass its parents.
		dir, err := os.MkdirTemp("", "usher-dovecot-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		o.Name = fmt.Sprint("b", i)
		d, err := dovecot.Start(s.Lab.Backend, dir, []netip.Addr{a}, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			log := d.Log()
			if err := d.Stop(); err != nil {
				t.Error(err)
			}
			if strings.Contains(log, "Error:") || strings.Contains(log, "Fatal:") || strings.Contains(log, "Panic:") {
				t.Errorf("log of Dovecot %v:\n%s", a, log)
			}
		})
		all = append(all, d)
	}
	return all
}

func dovecotSite(t *testing.T, family int, o dovecot.Options, auth string) (*site.Site, []*dovecot.Server) {
	t.Helper()
	if err := dovecot.Available(); err != nil {
		t.Skip(err)
	}
	s := newSite(t, site.Options{NoBackends: true, Auth: auth, Lab: lab.Options{Family: family}})
	d := dovecots(t, s, o)
	start(t, s)
	return s, d
}

func real(s *site.Site, user, password string) client.Config {
	c := s.Client(user)
	c.Real, c.Password, c.Timeout = true, password, time.Minute
	return c
}

func pop(s *site.Site, c client.Config) client.Config {
	c.Protocol, c.Server = client.POP3, s.Service(client.POP3)
	return c
}

// talk opens a connection for a dialogue.
func talk(t *testing.T, s *site.Site, p client.Protocol) *dialogue.Dialogue {
	t.Helper()
	c, err := s.Lab.Client.Dial(t.Context(), "tcp", nil, s.Service(p).String())
	if err != nil {
		t.Fatal(err)
	}
	d := dialogue.New(t, c)
	t.Cleanup(d.Close)
	return d
}

// Real Dovecot verifies the passwords and serves the mail, through the kernel.
func TestDovecot(t *testing.T) {
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprint("ipv", family), func(t *testing.T) {
			s, servers := dovecotSite(t, family, dovecot.Options{Password: "s3cret"}, "")
			testDovecot(t, s, servers, "s3cret")
		})
	}
}

func testDovecot(t *testing.T, s *site.Site, servers []*dovecot.Server, password string) {
	const users, each = 12, 4 // one session for each method
	sessions := login(t, s, users*each, func(i int) client.Config {
		c := real(s, fmt.Sprintf("user%d@example.com", i%users), password)
		c.Method = client.Methods[i/users]
		return c
	})
	allForwarded(t, s, users*each)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := client.Each(sessions, func(i int, x *client.Session) error {
		if err := x.Append(uint64(i+1), 1000*(i+1), i%2 == 0); err != nil {
			return err
		}
		return x.Traffic(ctx, uint64(i))
	}).Err(); err != nil {
		t.Fatal(err)
	}
	// Each user has mail in one place only, where `usher user` says.
	for i := range users {
		name := fmt.Sprintf("user%d@example.com", i)
		u := user(t, s, name)
		if len(u.Sessions) != each {
			t.Errorf("user %s has %d sessions, want %d", name, len(u.Sessions), each)
		}
		for k, d := range servers {
			_, err := os.Stat(filepath.Join(d.Dir, "mail", name))
			if has, want := err == nil, s.Hosts[k] == u.Host; has != want {
				t.Errorf("mail of %s at %v: %v, want %v", name, s.Hosts[k], has, want)
			}
		}
	}

	t.Run("idle", func(t *testing.T) {
		x := sessions[0]
		came := make(chan []string, 1)
		failed := make(chan error, 1)
		if err := x.Select(); err != nil {
			t.Fatal(err)
		}
		go func() {
			lines, err := x.Idle(1500 * time.Millisecond)
			came <- lines
			failed <- err
		}()
		time.Sleep(200 * time.Millisecond)
		if err := sessions[users].Append(99, 2000, false); err != nil { // the same user's
			t.Fatal(err)
		}
		lines := <-came
		if err := <-failed; err != nil || !slices.ContainsFunc(lines, func(l string) bool { return strings.HasSuffix(l, " EXISTS") }) {
			t.Errorf("in IDLE came %q, %v; want news of a message", lines, err)
		}
	})

	t.Run("pop3", func(t *testing.T) {
		mail := login(t, s, users, func(i int) client.Config {
			c := pop(s, real(s, fmt.Sprintf("user%d@example.com", i), password))
			c.Method = client.Methods[i%len(client.Methods)]
			return c
		})
		allForwarded(t, s, users*(each+1))
		if err := client.Each(mail, func(_ int, x *client.Session) error {
			for n := range uint64(each) {
				if err := x.Fetch(n + 1); err != nil {
					return err
				}
			}
			if err := x.List(); err != nil {
				return err
			}
			return x.Logout()
		}).Err(); err != nil {
			t.Error(err)
		}
	})

	t.Run("wrong password", func(t *testing.T) {
		d := talk(t, s, client.IMAP)
		d.Expect("* OK *")
		d.Send("a LOGIN user1@example.com wrong")
		d.Expect("a NO [AUTHENTICATIONFAILED] Authentication failed.") // Dovecot's words
		d.Send("b AUTHENTICATE PLAIN AHVzZXIxAHdyb25n")
		d.Expect("b NO [AUTHENTICATIONFAILED] Authentication failed.")
		d.Send("c LOGIN {17}")
		d.Expect("+ *")
		d.Send(fmt.Sprintf("user1@example.com {%d}", len(password)))
		d.Expect("+ *")
		d.Send(password)
		d.ExpectUntil("c OK *")
		d.Send("d LOGOUT")
		d.ExpectUntil("d OK *")
		d.ExpectEOF()
		d = talk(t, s, client.POP3)
		d.Expect("+OK *")
		d.Send("USER user1@example.com")
		d.Expect("+OK*")
		d.Send("PASS wrong")
		d.Expect("-ERR [AUTH] Authentication failed.")
		d.Send("QUIT")
		d.Expect("+OK*")
		d.ExpectEOF()
	})

	if err := client.Each(sessions, func(_ int, x *client.Session) error { return x.Logout() }).Err(); err != nil {
		t.Error(err)
	}
	eventually(t, "no session left", func() bool { return status(t, s).Sessions.Total == 0 })
	noErrors(t, s)
	t.Logf("%d sessions of %d users, %d commands, 0 errors", len(sessions), users, ops(sessions))
}

// Usher verifies the users by a passwd-file and logs in by the master user: the
// backends know no user's password.
func TestDovecotMaster(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// The hash is the first example of Drepper's SHA-crypt specification.
	users := write("users", strings.Join([]string{
		"plain:{PLAIN}open sesame",
		"crypt:{SHA512-CRYPT}$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
		"alias:{PLAIN}secret::::::user=crypt",
		"locked:{PLAIN}secret::::::nologin",
	}, "\n")+"\n")
	master := write("master", "key of the master\n")
	s, servers := dovecotSite(t, 4, dovecot.Options{Password: "nobody knows", Master: "usher", MasterPassword: "key of the master"},
		fmt.Sprintf("driver = \"passwd-file\"\nfile = %q\nmaster_user = \"usher\"\nmaster_password_file = %q", users, master))
	passwords := map[string]string{"plain": "open sesame", "crypt": "Hello world!", "alias": "secret"}
	names := []string{"plain", "crypt", "alias"}
	sessions := login(t, s, 4*len(names), func(i int) client.Config {
		name := names[i%len(names)]
		c := real(s, name, passwords[name])
		c.Method = client.Methods[i/len(names)]
		return c
	})
	sessions = append(sessions, login(t, s, 4*len(names), func(i int) client.Config {
		name := names[i%len(names)]
		c := pop(s, real(s, name, passwords[name]))
		c.Method = client.Methods[i/len(names)]
		return c
	})...)
	allForwarded(t, s, len(sessions))
	if u := user(t, s, "crypt"); len(u.Sessions) != 16 {
		t.Errorf("user crypt has %d sessions, want its own and those of its alias: 16", len(u.Sessions))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := client.Each(sessions[:4*len(names)], func(i int, x *client.Session) error {
		if err := x.Append(uint64(i+1), 5000, false); err != nil {
			return err
		}
		if err := x.Traffic(ctx, uint64(i)); err != nil {
			return err
		}
		return x.Logout()
	}).Err(); err != nil {
		t.Error(err)
	}
	if err := client.Each(sessions[4*len(names):], func(_ int, x *client.Session) error { return x.Logout() }).Err(); err != nil {
		t.Error(err)
	}
	logins := 0
	for _, d := range servers {
		logins += strings.Count(d.Log(), "Login: user=<crypt>")
	}
	if logins != 16 {
		t.Errorf("Dovecot logged %d logins of user crypt, want 16", logins)
	}
	// What Usher refuses never gets to a backend.
	before := ""
	for _, d := range servers {
		before += d.Log()
	}
	d := talk(t, s, client.IMAP)
	d.Expect("* OK *")
	for i, attempt := range []string{"plain wrong", "crypt wrong", `plain "nobody knows"`, "nobody secret", `plain*usher "key of the master"`} {
		d.Send(fmt.Sprintf("a%d LOGIN %s", i, attempt))
		d.Expect(fmt.Sprintf("a%d NO [AUTHENTICATIONFAILED] *", i))
	}
	d.Close()
	d = talk(t, s, client.IMAP)
	d.Expect("* OK *")
	d.Send("b LOGIN locked secret")
	d.Expect("b NO *")
	d.Send(`c LOGIN plain "open sesame"`)
	d.ExpectUntil("c OK *")
	d.Send("d LOGOUT")
	d.ExpectUntil("d OK *")
	d.ExpectEOF()
	after := ""
	for _, d := range servers {
		after += d.Log()
	}
	if n := strings.Count(after, "auth failed") - strings.Count(before, "auth failed"); n != 0 {
		t.Errorf("%d wrong passwords went to a backend", n)
	}
	noErrors(t, s)
}
