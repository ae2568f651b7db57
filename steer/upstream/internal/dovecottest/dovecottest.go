// Package dovecottest starts a Dovecot of its own for one test, on loopback ports and with everything it writes in the
// test's temporary directory.
package dovecottest

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Who may log in: each of Users with Password, and Master with MasterPassword for any of them, as authzid or as
// user + Separator + Master.
const (
	Password       = `s3cret "with" \ and ü`
	Master         = "usher"
	MasterPassword = "m4ster"
	Separator      = "*"
)

// Users are those that exist.
var Users = [...]string{"fred", "frëd@example.org"}

// Server is a running Dovecot.
type Server struct {
	IMAP, POP3 string // host:port
}

// Start runs Dovecot until the test ends. It skips the test when Dovecot is not installed or the test does not run as root.
func Start(t *testing.T) Server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: Dovecot's master process starts its services under other users")
	}
	binary, err := exec.LookPath("dovecot")
	if err != nil {
		binary = "/usr/sbin/dovecot" // not in every user's path
	}
	if _, err := os.Stat(binary); err != nil {
		t.Skip("needs Dovecot 2.3: packages dovecot-imapd and dovecot-pop3d")
	}

	dir := t.TempDir()
	// Mail processes run under another user, and the testing package's directory above is for its owner alone.
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const mailUser = 65534
	mail := filepath.Join(dir, "mail")
	if err := os.Mkdir(mail, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(mail, mailUser, mailUser); err != nil {
		t.Fatal(err)
	}

	imap, pop3 := freePort(t), freePort(t)
	write(t, filepath.Join(dir, "masters"), Master+":{PLAIN}"+MasterPassword+"\n")
	write(t, filepath.Join(dir, "users"), fmt.Sprintf("%s:{PLAIN}%[3]s\n%[2]s:{PLAIN}%[3]s\n", Users[0], Users[1], Password))
	conf := filepath.Join(dir, "dovecot.conf")
	write(t, conf, fmt.Sprintf(config, dir, mailUser, Separator, imap, pop3))

	cmd := exec.Command(binary, "-F", "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start dovecot: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // a master that ends by a signal reports that as an error
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("dovecot's log:\n%s", log)
		}
	})
	s := Server{IMAP: fmt.Sprintf("127.0.0.1:%d", imap), POP3: fmt.Sprintf("127.0.0.1:%d", pop3)}
	for _, addr := range []string{s.IMAP, s.POP3} {
		awaitGreeting(t, addr)
	}
	return s
}

// awaitGreeting returns as soon as the service greets. Dovecot tells nobody that it is ready, so one has to ask again.
func awaitGreeting(t *testing.T, addr string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.SetDeadline(deadline)
			_, err = bufio.NewReader(conn).ReadString('\n')
			_ = conn.Close()
		}
		if err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("dovecot does not greet on %s", addr)
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// config has its failures at once: no delay of the auth process, no penalty of anvil.
const config = `
base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[1]s/log
protocols = imap pop3
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
auth_failure_delay = 0
auth_username_chars =
auth_master_user_separator = %[3]s
first_valid_uid = 1
mail_location = maildir:%[1]s/mail/%%u
passdb {
  driver = passwd-file
  master = yes
  args = %[1]s/masters
}
passdb {
  driver = passwd-file
  args = %[1]s/users
}
userdb {
  driver = static
  args = uid=%[2]d gid=%[2]d home=%[1]s/mail/%%u
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
service imap-login {
  inet_listener imap {
    port = %[4]d
  }
  inet_listener imaps {
    port = 0
  }
}
service pop3-login {
  inet_listener pop3 {
    port = %[5]d
  }
  inet_listener pop3s {
    port = 0
  }
}
`
