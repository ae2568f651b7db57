package main

import (
	"context"
	"fmt"
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

// The protocols that people do not speak: LMTP and doveadm.
const (
	mailServices = `
protocols = imap pop3 lmtp
service lmtp {
  inet_listener lmtp {
    port = 24
  }
}
postmaster_address = postmaster@example.com
doveadm_password = doveadm's secret
service doveadm {
  inet_listener {
    port = 24245
  }
}
`
	lmtpd = "/usr/lib/dovecot/lmtp"
)

// TestDropInMail: LMTP and doveadm of a real Dovecot 2.3 ask Usher through director-userdb, and end at the backend where the
// user's sessions are.
func TestDropInMail(t *testing.T) {
	t.Parallel()
	testDropInMail(t, dovecot.ProxyOptions{DoveadmPort: 24245, DoveadmPassword: "doveadm's secret"})
}

// TestDropInMail24 is the same for the LMTP of Dovecot 2.4, before backends with 2.3.
func TestDropInMail24(t *testing.T) {
	t.Parallel()
	testDropInMail(t, dovecot.ProxyOptions{Root: dovecot24(t)})
}

func testDropInMail(t *testing.T, o dovecot.ProxyOptions) {
	if err := dovecot.Available(); err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat(lmtpd); err != nil {
		t.Skipf("real Dovecot's LMTP needs the package dovecot-lmtpd: %v", err)
	}
	link := filepath.Join(t.TempDir(), "dovecot")
	s := newSite(t, site.Options{
		NoBackends: true, KickDelay: 500 * time.Millisecond, Lab: lab.Options{Family: 4}, Tables: fmt.Sprintf("[dovecot]\nbase_dir = %q", link),
	})
	backends := dovecots(t, s, dovecot.Options{Password: "s3cret", Extra: mailServices})
	o.Address, o.IMAPPort, o.POP3Port, o.LMTPPort = s.Service(client.IMAP).Addr(), 1143, 1110, 24
	p := newProxyPlace(t, s.Lab.Director, link, o)
	start(t, s)
	p.start(t)
	p.served(t)

	// deliver sends one mail to several users.
	deliver := func(text string, users ...string) {
		t.Helper()
		c, err := s.Lab.Client.Dial(t.Context(), "tcp", nil, p.Port("lmtp").String())
		if err != nil {
			t.Fatal(err)
		}
		d := dialogue.New(t, c)
		defer d.Close()
		d.Expect("220 *")
		d.Send("LHLO client.example.com")
		d.ExpectUntil("250 *")
		d.Send("MAIL FROM:<sender@example.com>")
		d.Expect("250 *")
		for _, u := range users {
			d.Send("RCPT TO:<" + u + ">")
			d.Expect("250 *")
		}
		d.Send("DATA")
		d.Expect("354 *")
		d.Send("Subject: " + text)
		d.Send("")
		d.Send(text)
		d.Send(".")
		for range users {
			d.Expect("250 *")
		}
		d.Send("QUIT")
		d.Expect("221 *")
	}
	// mailOf returns which backends have mail of a user with this text.
	mailOf := func(user, text string) (at []int) {
		for i, b := range backends {
			files, _ := filepath.Glob(filepath.Join(b.Dir, "mail", user, "Maildir", "new", "*"))
			cur, _ := filepath.Glob(filepath.Join(b.Dir, "mail", user, "Maildir", "cur", "*"))
			for _, f := range append(files, cur...) {
				if content, err := os.ReadFile(f); err == nil && strings.Contains(string(content), "Subject: "+text) {
					at = append(at, i)
				}
			}
		}
		return at
	}
	hostAt := func(name string) int { return slices.Index(s.Hosts, user(t, s, name).Host) }

	var users []string
	for i := range 8 {
		users = append(users, fmt.Sprintf("user%d@example.com", i))
	}
	deliver("first", users...)
	used := map[int]bool{}
	for _, u := range users {
		host := hostAt(u)
		used[host] = true
		if at := mailOf(u, "first"); !slices.Equal(at, []int{host}) {
			t.Errorf("the mail of %s is at backends %v, want %d", u, at, host)
		}
	}
	if len(used) < 2 {
		t.Errorf("all users are on one backend: this shows nothing")
	}

	// A reader sees what was delivered.
	c := real(s, users[0], "s3cret")
	c.Server = p.Port("imap")
	reader, err := client.Dial(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if u := user(t, s, users[0]); u.Host != s.Hosts[hostAt(users[0])] {
		t.Errorf("reader is on %v", u.Host)
	}

	// doveadm, as an operator would: over the network to the proxy, and on to the backend.
	ask := func(u string, args []string, command ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := p.Doveadm(ctx, slices.Concat(command, []string{"-S", p.Port("doveadm").String(), "-u", u}, args)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if o.DoveadmPort != 0 {
		ask(users[1], []string{"Made"}, "mailbox", "create")
		if out := ask(users[1], nil, "mailbox", "list"); !strings.Contains(out, "Made") || !strings.Contains(out, "INBOX") {
			t.Errorf("doveadm mailbox list: %q", out)
		}
		for i, b := range backends {
			_, err := os.Stat(filepath.Join(b.Dir, "mail", users[1], "Maildir", ".Made"))
			if has, want := err == nil, i == hostAt(users[1]); has != want {
				t.Errorf("the mailbox is at backend %d: %v, want %v", i, has, want)
			}
		}
	}

	// After a move all of them go to the new host.
	to := (hostAt(users[0]) + 1) % len(s.Hosts)
	time.Sleep(settled)
	if _, err := s.Admin.UserMove(t.Context(), users[0], s.Hosts[to].String(), true); err != nil {
		t.Fatal(err)
	}
	gone(t, "moved", []*client.Session{reader})
	deliver("second", users[0])
	if at := mailOf(users[0], "second"); !slices.Equal(at, []int{to}) {
		t.Errorf("after the move the mail is at backends %v, want %d", at, to)
	}
	if o.DoveadmPort != 0 {
		if out := ask(users[0], []string{"messages", "INBOX"}, "mailbox", "status"); !strings.Contains(out, "messages=1") {
			t.Errorf("doveadm after the move: %q, want the one message of the new host", out)
		}
	}
	noErrors(t, s)
}

// settled is when a login is old enough to be kicked only once.
const settled = 1200 * time.Millisecond
