package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Clients that nobody here wrote log in at real backends, with every form of login and every use of TLS, do what they are
// made for, and their sessions end in the mode that is right for them.
func TestClients(t *testing.T) {
	x := newClientSite(t)
	t.Run("group", func(t *testing.T) { // so that the check below comes after all of them
		t.Run("python", x.python)
		t.Run("curl", x.curl)
		t.Run("mbsync", x.mbsync)
		t.Run("swaks", x.swaks)
		t.Run("sieve-connect", x.sieveConnect)
	})
	t.Run("reload", x.reload)
	// The checks speak every protocol, and TLS, with the backends as the listeners do.
	eventually(t, "all backends have been found well", func() bool {
		for _, h := range x.Hosts {
			m := metrics(t, x.Site)
			if m[fmt.Sprintf(`usher_health_opinion{host="%v",opinion="up"}`, h)] != 1 {
				return false
			}
		}
		return true
	})
	for _, h := range status(t, x.Site).Hosts {
		if h.Health != "up" || h.HealthReason != "" {
			t.Errorf("host %v is %s: %s", h.Address, h.Health, h.HealthReason)
		}
	}
	noErrors(t, x.Site)
	eventually(t, "no session left", func() bool { return status(t, x.Site).Sessions.Total == 0 })
}

// script is the path of a program for Python, which runs in another directory.
func script(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", "clients", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// python: imaplib, poplib, smtplib.
func (x *clientSite) python(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		protocol, program string
		forms             []string
	}{
		{"imap", "imap.py", []string{"login", "literal", "plain"}},
		{"pop3", "pop3.py", []string{"user", "plain"}},
		{"submission", "smtp.py", []string{"plain", "login"}},
	} {
		for _, tls := range []string{"none", "starttls", "implicit"} {
			for _, form := range c.forms {
				t.Run(fmt.Sprint(c.protocol, "-", form, "-", tls), func(t *testing.T) {
					t.Parallel()
					name := fmt.Sprintf("py-%s-%s-%s@example.org", c.protocol, form, tls)
					r := x.command(t, nil, "python3", script(t, c.program), x.host, fmt.Sprint(port(t, c.protocol, tls)), tls, form, name, password, x.ca)
					r.ready(t)
					wanted := "copy"
					if tls == "none" {
						wanted = "kernel"
					}
					x.session(t, name, c.protocol, wanted)
					r.end(t)
					x.ended(t, name, wanted)
					switch c.protocol {
					case "imap":
						if n := x.mails(t, name); n != 1 {
							t.Errorf("%d mails, want the one that was stored", n)
						}
					case "submission":
						eventually(t, "two mails have left", func() bool { return x.sink.from(name) == 2 })
					}
				})
			}
		}
	}
	// TLS on one leg alone is not for the kernel either.
	for _, d := range doors {
		if d.port != 2143 && d.port != 3143 {
			continue
		}
		t.Run(fmt.Sprintf("imap-%s-backend-%s", d.tls, d.backendTLS), func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("leg-%d@example.org", d.port)
			r := x.command(t, nil, "python3", script(t, "imap.py"), x.host, fmt.Sprint(d.port), d.tls, "login", name, password, x.ca)
			r.ready(t)
			x.session(t, name, "imap", "copy")
			r.end(t)
		})
	}
	for program, tls := range map[string]string{"refused.py": "none", "plaintext.py": "starttls"} {
		t.Run(strings.TrimSuffix(program, ".py"), func(t *testing.T) {
			t.Parallel()
			args := []string{script(t, program), x.host}
			for _, protocol := range []string{"imap", "pop3", "submission"} {
				args = append(args, fmt.Sprint(port(t, protocol, tls)))
			}
			r := x.command(t, strings.NewReader(""), "python3", append(args, "refused@example.org", password, x.ca)...)
			r.end(t)
		})
	}
}

// curl: a PROXY header, and imap, imaps, pop3, pop3s, smtp, smtps. With --rate there is a pause between its commands, in which the session is
// handed over.
func (x *clientSite) curl(t *testing.T) {
	t.Parallel()
	mail := x.file("curl.eml")
	if err := os.WriteFile(mail, []byte("Subject: by curl\r\n\r\nHello\r\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("proxy-header", func(t *testing.T) {
		t.Parallel()
		const name = "curl-proxied@example.org"
		args := []string{
			"-sS", "--rate", "3/s", "--max-time", "30", "--user", name + ":" + password, "-X", "NOOP",
			fmt.Sprintf("imap://%s:%d/", x.host, proxyPort), fmt.Sprintf("imap://%s:%d/", x.host, proxyPort),
		}
		// It waits for a greeting, and the proxy for the header.
		if err := x.command(t, strings.NewReader(""), "curl", append(args[:len(args)-1:len(args)-1], "--max-time", "1")...).Wait(); err == nil {
			t.Error("a client that must send a PROXY header logged in without one")
		}
		x.command(t, strings.NewReader(""), "curl", append(args, "--haproxy-protocol")...).end(t)
		x.ended(t, name, "kernel")
	})
	for _, c := range []struct {
		protocol, form string
		args           []string
		says           string
	}{
		{"imap", "LOGIN", []string{"-X", "STATUS INBOX (MESSAGES)"}, "* STATUS INBOX (MESSAGES 0)"},
		{"imap", "PLAIN", []string{"-X", "STATUS INBOX (MESSAGES)"}, "* STATUS INBOX (MESSAGES 0)"},
		{"pop3", "", nil, ""}, // what curl likes best
		{"pop3", "PLAIN", nil, ""},
		{"submission", "PLAIN", nil, ""},
		{"submission", "LOGIN", nil, ""},
	} {
		for _, tls := range []string{"none", "starttls", "implicit"} {
			t.Run(fmt.Sprint(c.protocol, "-", c.form, "-", tls), func(t *testing.T) {
				t.Parallel()
				name := strings.ToLower(fmt.Sprintf("curl-%s-%s-%s@example.org", c.protocol, c.form, tls))
				scheme := c.protocol
				if scheme == "submission" {
					scheme = "smtp"
				}
				if tls == "implicit" {
					scheme += "s"
				}
				url := fmt.Sprintf("%s://mail.example:%d/", scheme, port(t, c.protocol, tls))
				args := []string{
					"-sS", "--rate", "3/s", "--cacert", x.ca, "--user", name + ":" + password, "--max-time", "30",
					"--resolve", fmt.Sprintf("mail.example:%d:%s", port(t, c.protocol, tls), x.host),
				}
				if c.form != "" && (c.form != "LOGIN" || c.protocol != "imap") { // LOGIN is IMAP's command, too
					args = append(args, "--login-options", "AUTH="+c.form)
				}
				if tls == "starttls" {
					args = append(args, "--ssl-reqd")
				}
				args = append(args, c.args...)
				for range 3 {
					if c.protocol == "submission" {
						args = append(args, "--mail-from", name, "--mail-rcpt", "anna@example.org", "-T", mail)
					}
					args = append(args, url)
				}
				out := x.command(t, strings.NewReader(""), "curl", args...).end(t)
				if n := strings.Count(out, c.says); c.says != "" && n != 3 {
					t.Errorf("curl said:\n%s\nwant %q three times", out, c.says)
				}
				wanted := "copy"
				if tls == "none" {
					wanted = "kernel"
				}
				x.ended(t, name, wanted)
				if c.protocol == "submission" {
					eventually(t, "three mails have left", func() bool { return x.sink.from(name) == 3 })
				}
			})
		}
	}
}

// reload gives the daemon a new certificate while somebody is connected with the old one.
func (x *clientSite) reload(t *testing.T) {
	const name, metric = "reload@example.org", "usher_tls_certificate_expiry_seconds"
	arguments := []string{script(t, "imap.py"), x.host, fmt.Sprint(port(t, "imap", "implicit")), "implicit", "login", name, password, x.ca}
	r := x.command(t, nil, "python3", arguments...)
	r.ready(t)
	x.session(t, name, "imap", "copy")
	before := metrics(t, x.Site)[metric]
	until := time.Now().Add(240 * time.Hour).Truncate(time.Second)
	certificate, key, err := x.pki.Issue(until, x.host, "mail.example")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(x.file("usher.pem"), certificate, 0o644), os.WriteFile(x.file("usher.key"), key, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(x.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new certificate is used", func() bool { return metrics(t, x.Site)[metric] == float64(until.Unix()) })
	if before >= float64(until.Unix()) {
		t.Errorf("%s was %v before, and is %v", metric, before, until.Unix())
	}
	if log, err := os.ReadFile(x.LogFile()); err != nil || !strings.Contains(string(log), "certificates loaded after SIGHUP") {
		t.Errorf("no word of the signal in the log, %v", err)
	}
	r.end(t)
	x.ended(t, name, "copy")
}

// mbsync, of the package isync: many commands at once.
func (x *clientSite) mbsync(t *testing.T) {
	t.Parallel()
	const mails = 30
	for _, tls := range []string{"None", "STARTTLS", "IMAPS"} {
		t.Run(tls, func(t *testing.T) {
			t.Parallel()
			name := strings.ToLower("mbsync-" + tls + "@example.org")
			// mbsync fills the mailbox from a folder, and what comes back into another one has to be the same.
			dir := filepath.Join(x.dir, name)
			for _, folder := range []string{"from/INBOX", "to/INBOX"} {
				for _, sub := range []string{"cur", "new", "tmp"} {
					if err := os.MkdirAll(filepath.Join(dir, folder, sub), 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			for i := range mails {
				text := fmt.Sprintf("Message-ID: <%d@example.org>\nSubject: mail %d\n\n%s", i, i, strings.Repeat("one line\n", i*40))
				if err := os.WriteFile(filepath.Join(dir, "from/INBOX/new", fmt.Sprintf("%d.x.y", 1000+i)), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			mode := map[string]string{"None": "none", "STARTTLS": "starttls", "IMAPS": "implicit"}[tls]
			wanted := "copy"
			if mode == "none" {
				wanted = "kernel"
			}
			rc := filepath.Join(dir, "mbsyncrc")
			text := fmt.Sprintf(`IMAPAccount usher
Host %s
Port %d
User %s
PassCmd "cat %s"
SSLType %s
CertificateFile %s
AuthMechs *

IMAPStore far
Account usher
`, x.host, port(t, "imap", mode), name, filepath.Join(dir, "password"), tls, x.ca)
			for _, folder := range []string{"from", "to"} {
				text += fmt.Sprintf("\nMaildirStore %[1]s\nPath %[2]s/%[1]s/\nInbox %[2]s/%[1]s/INBOX\n\nChannel %[1]s\nFar :far:\nNear :%[1]s:\nPatterns INBOX\nCreate Both\nSync All\nSyncState *\n", folder, dir)
			}
			for path, content := range map[string]string{rc: text, filepath.Join(dir, "password"): password + "\n"} {
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, channel := range []string{"from", "to"} {
				x.command(t, strings.NewReader(""), "mbsync", "-c", rc, channel).end(t)
			}
			if n := x.mails(t, name); n != mails {
				t.Errorf("%d mails at the backend, want %d", n, mails)
			}
			back := 0
			for _, sub := range []string{"cur", "new"} {
				files, err := os.ReadDir(filepath.Join(dir, "to/INBOX", sub))
				if err != nil {
					t.Fatal(err)
				}
				back += len(files)
			}
			if back != mails {
				t.Errorf("%d mails came back, want %d", back, mails)
			}
			x.ended(t, name, wanted)
		})
	}
}

// swaks: submission with each mechanism, and LMTP with several recipients.
func (x *clientSite) swaks(t *testing.T) {
	t.Parallel()
	for _, tls := range []string{"none", "starttls", "implicit"} {
		options := map[string][]string{
			"none": nil, "starttls": {"--tls", "--tls-verify", "--tls-ca-path", x.ca},
			"implicit": {"--tls-on-connect", "--tls-verify", "--tls-ca-path", x.ca},
		}[tls]
		for _, form := range []string{"PLAIN", "LOGIN"} {
			t.Run(fmt.Sprint("submission-", form, "-", tls), func(t *testing.T) {
				t.Parallel()
				name := strings.ToLower(fmt.Sprintf("swaks-%s-%s@example.org", form, tls))
				args := append([]string{
					"--server", x.host, "--port", fmt.Sprint(port(t, "submission", tls)), "--protocol", "ESMTP", "--helo", "client.example",
					"--auth", form, "--auth-user", name, "--auth-password", password, "--from", name, "--to", "anna@example.org",
				}, options...)
				x.command(t, strings.NewReader(""), "swaks", args...).end(t)
				eventually(t, "the mail has left", func() bool { return x.sink.from(name) == 1 })
				wanted := "copy"
				if tls == "none" {
					wanted = "kernel"
				}
				x.ended(t, name, wanted)
			})
		}
		if tls == "implicit" {
			continue
		}
		t.Run("lmtp-"+tls, func(t *testing.T) {
			t.Parallel()
			var users, to []string
			for i := range 8 {
				users = append(users, fmt.Sprintf("lmtp-%s-%d@example.org", tls, i))
				to = append(to, fmt.Sprintf("lmtp-%s-%d+detail@example.org", tls, i))
			}
			args := append([]string{
				"--server", x.host, "--port", fmt.Sprint(port(t, "lmtp", tls)), "--protocol", "LMTP", "--helo", "mx.example",
				"--from", "anna@example.org", "--to", strings.Join(to, ","), "--suppress-data",
			}, options...)
			out := x.command(t, strings.NewReader(""), "swaks", args...).end(t)
			hosts := map[string]bool{}
			for _, name := range users {
				if n := x.mails(t, name); n != 1 {
					t.Errorf("user %s has %d mails, want 1", name, n)
				}
				hosts[user(t, x.Site, name).Host.String()] = true
			}
			if len(hosts) < 2 {
				t.Errorf("all recipients are at %v: that is no test of several backends", hosts)
			}
			if n := strings.Count(out, "Saved"); n != len(users) {
				t.Errorf("%d replies say that the mail was saved, want %d:\n%s", n, len(users), out)
			}
		})
	}
}

// sieve-connect: ManageSieve. It says what it does while it runs, and takes commands like an FTP client.
func (x *clientSite) sieveConnect(t *testing.T) {
	t.Parallel()
	local := x.file("rules.sieve")
	if err := os.WriteFile(local, []byte("require \"fileinto\";\nif header :contains \"subject\" \"x\" { fileinto \"Junk\"; }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ tls, mechanism string }{{"none", "PLAIN"}, {"starttls", "PLAIN"}} {
		t.Run(c.mechanism+"-"+c.tls, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("sieve-%s@example.org", c.tls)
			args := []string{"--nosrv", "--server", x.host, "--port", fmt.Sprint(port(t, "sieve", c.tls)), "--user", name, "--passwordfd", "0", "--authmech", c.mechanism}
			wanted := "copy"
			if c.tls == "none" {
				args = append(args, "--clearchan", "--notlsverify")
				wanted = "kernel"
			} else {
				args = append(args, "--tlscafile", x.ca, "--tlshostname", "mail.example")
			}
			commands := filepath.Join(x.dir, "sieve-"+c.tls)
			if err := os.WriteFile(commands, []byte("put "+local+" rules\nactivate rules\nlist\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			out := x.command(t, strings.NewReader(password), "sieve-connect", append(args, "--exec", commands)...).end(t)
			if !strings.Contains(out, "rules") {
				t.Errorf("sieve-connect said:\n%s", out)
			}
			if b, err := os.ReadFile(filepath.Join(x.home(t, name), "sieve/rules.sieve")); err != nil || !strings.Contains(string(b), "fileinto") {
				t.Errorf("the script at the backend: %q, %v", b, err)
			}
			x.ended(t, name, wanted)
		})
	}
}
