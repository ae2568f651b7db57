// Package dovecottest starts a real Dovecot for one test of the logins at a backend.
package dovecottest

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"usher/loader/netns"
	"usher/testenv/dovecot"
)

// Who may log in: each of Users with Password, and Master with MasterPassword for any of them, as authzid or as
// user + Separator + Master.
const (
	Password       = `s3cret"with"\and-ü`
	Master         = "usher"
	MasterPassword = "m4ster"
	Separator      = "*"
)

// Users are names worth trying: Dovecot takes any.
var Users = [...]string{"fred", "frëd@example.org"}

// Start is Run for a Dovecot without TLS that trusts nobody.
func Start(t *testing.T) func(port uint16) (net.Conn, error) {
	dial, _ := Run(t, "")
	return dial
}

// Run runs Dovecot, in a namespace of its own, until the test ends; extra lines are added to its configuration. The
// functions it returns connect to a port and read its log. It skips the test when Dovecot is not installed or the test
// does not run as root.
func Run(t *testing.T, extra string) (dial func(port uint16) (net.Conn, error), log func() string) {
	t.Helper()
	if err := dovecot.Available(); err != nil {
		t.Skip(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { ns.Close() })
	dir, err := os.MkdirTemp("", "dovecot-") // open to the mail's user, unlike the test's own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("127.0.0.1")
	s, err := dovecot.Start(ns, dir, []netip.Addr{addr}, dovecot.Options{
		Password: Password, Master: Master, MasterPassword: MasterPassword,
		Extra: "auth_username_chars =\n" + extra, // all of them
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("dovecot's log:\n%s", s.Log())
		}
	})
	dial = func(port uint16) (net.Conn, error) {
		return ns.Dial(t.Context(), "tcp", nil, netip.AddrPortFrom(addr, port).String())
	}
	return dial, s.Log
}
