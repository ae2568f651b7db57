package peer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"usher/director"
	"usher/director/ring"

	"github.com/rs/zerolog"
)

// output is a log that may be read while it is written.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// member is a director as the daemon would have it: a Ring under a lock, and its Peers.
type member struct {
	mu       sync.Mutex
	director *director.Director
	ring     *ring.Ring
	peers    *Peers
	log      output
	end      func() error
}

func start(t testing.TB, self netip.AddrPort, members []netip.AddrPort, config Config) *member {
	t.Helper()
	m := &member{director: director.New(director.Config{Ring: true})}
	m.ring = ring.New(ring.Config{Self: self, Members: members, Seq: uint32(time.Now().Unix())}, m.director)
	config.Listen, config.Self = self, self.Addr()
	config.Log = zerolog.New(&m.log)
	peers, err := New(config, func(ev ring.Event) {
		m.do(func(now time.Time) { m.ring.Hear(now, ev) })
	}, func(addr netip.Addr) (ok bool) {
		m.do(func(time.Time) { ok = m.ring.Allowed(addr) })
		return ok
	}, func() (c ring.Conn) {
		m.do(func(time.Time) { c = m.ring.NextConn() })
		return c
	})
	if err != nil {
		t.Fatal(err)
	}
	m.peers = peers
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- peers.Run(ctx) }()
	go func() {
		for ctx.Err() == nil {
			m.do(func(now time.Time) { m.ring.Step(now, director.Tick{}) })
			time.Sleep(10 * time.Millisecond)
		}
	}()
	m.end = sync.OnceValue(func() error {
		m.do(func(now time.Time) { m.ring.Quit(now) })
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := m.end(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("%v:\n%s", self, m.log.String())
		}
	})
	return m
}

func (m *member) do(f func(now time.Time)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(time.Now())
	m.peers.Do(m.ring.Actions())
}

func (m *member) status() (s ring.Status) {
	m.do(func(now time.Time) { s = m.ring.Status(now) })
	return s
}

func within(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

func whole(all ...*member) func() bool {
	return func() bool {
		for _, m := range all {
			s := m.status()
			if !s.Synced || len(s.Conns) != 2 {
				return false
			}
		}
		return true
	}
}

// addresses are those of n members: of this process alone, and with a port that no connection gets by chance.
func addresses(t testing.TB, n int) []netip.AddrPort {
	t.Helper()
	pid := os.Getpid()
	var all []netip.AddrPort
	for i := range n {
		all = append(all, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(64 + pid>>8%64), byte(pid), byte(i + 1)}), 9090))
	}
	return all
}

// TestRing: three members find each other, one leaves and comes back.
func TestRing(t *testing.T) {
	at := addresses(t, 3)
	a, b, c := start(t, at[0], at, Config{}), start(t, at[1], at, Config{}), start(t, at[2], at, Config{})
	within(t, 10*time.Second, "three are whole", whole(a, b, c))
	if err := b.end(); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "two are whole", func() bool {
		for _, conn := range append(a.status().Conns, c.status().Conns...) {
			if conn.Remote == at[1] {
				return false
			}
		}
		return whole(a, c)()
	})
	if log := a.log.String(); !strings.Contains(log, "closed by the peer: Shutting down") {
		t.Errorf("the one that ended did not say so:\n%s", log)
	}
	b = start(t, at[1], at, Config{})
	within(t, 10*time.Second, "three are whole again", whole(a, b, c))
	for _, conn := range a.status().Conns {
		if conn.Sent == 0 || conn.Received == 0 {
			t.Errorf("%+v", conn)
		}
	}
}

// TestStrangers: who is not in the list is not heard and hears nothing.
func TestStrangers(t *testing.T) {
	at := addresses(t, 2)
	m := start(t, at[0], at, Config{})
	for range 3 {
		conn, err := net.Dial("tcp", at[0].String()) // from 127.0.0.1
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if data, _ := io.ReadAll(conn); len(data) > 0 {
			t.Errorf("a stranger heard %q", data)
		}
	}
	within(t, time.Second, "it is logged", func() bool { return strings.Contains(m.log.String(), "it is not a director of the ring") })
	if n := strings.Count(m.log.String(), "ring connection refused"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, m.log.String())
	}
}

// TestQuit: a peer that breaks the protocol hears why before the connection ends.
func TestQuit(t *testing.T) {
	at := addresses(t, 2)
	start(t, at[0], at, Config{})
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: at[1].Addr().AsSlice()}}
	conn, err := dialer.Dial("tcp", at[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "VERSION\tdirector\t1\t9\nFOOBAR\n")
	text, err := io.ReadAll(conn)
	if err != nil || !strings.HasSuffix(string(text), "\nQUIT\tInvalid input: FOOBAR\n") {
		t.Errorf("%q, %v", text, err)
	}
}

// TestBlocked: a peer that reads nothing holds up nobody, and not the end either.
func TestBlocked(t *testing.T) {
	at := addresses(t, 2)
	peers, err := New(Config{Listen: at[0], Self: at[0].Addr(), Log: zerolog.Nop()}, func(ring.Event) {},
		func(netip.Addr) bool { return true }, func() ring.Conn { return 7 })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- peers.Run(ctx) }()
	conn, err := net.Dial("tcp", at[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	within(t, time.Second, "accepted", func() bool { return peers.link(7) != nil })
	for range 64 {
		peers.Do([]ring.Action{ring.Send{Conn: 7, Data: make([]byte, 1<<20)}})
	}
	began := time.Now()
	cancel()
	select {
	case err := <-done:
		if took := time.Since(began); err != nil || took < closeTimeout/2 {
			t.Errorf("it ended after %v with %v", took, err)
		}
	case <-time.After(5 * closeTimeout):
		t.Fatal("it does not end")
	}
}

// TestConnectIsGivenUp: a Close ends an attempt that is not answered.
func TestConnectIsGivenUp(t *testing.T) {
	at := addresses(t, 1)
	var mu sync.Mutex
	var heard []ring.Event
	peers, err := New(Config{Listen: at[0], Self: at[0].Addr(), Log: zerolog.Nop()}, func(ev ring.Event) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, ev)
	}, func(netip.Addr) bool { return true }, func() ring.Conn { return 1 })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- peers.Run(ctx) }()
	defer func() { cancel(); <-done }()
	nobody := netip.MustParseAddrPort("127.64.0.9:1")
	peers.Do([]ring.Action{ring.Connect{Conn: 5, Remote: nobody}})
	within(t, time.Second, "refused", func() bool { mu.Lock(); defer mu.Unlock(); return len(heard) == 1 })
	if closed, ok := heard[0].(ring.Closed); !ok || closed.Conn != 5 || closed.Err == nil {
		t.Errorf("heard %+v", heard[0])
	}
	peers.Do([]ring.Action{ring.Connect{Conn: 6, Remote: nobody}, ring.Close{Conn: 6}})
	if peers.link(6) != nil {
		t.Error("it is still there")
	}
}

// authority signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ring"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.write("ca.pem", "CERTIFICATE", a.sign(a.cert, &a.key.PublicKey))
	return a
}

func (a *authority) sign(c *x509.Certificate, key *ecdsa.PublicKey) []byte {
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

func (a *authority) write(name, kind string, der []byte) string {
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// config is that of a member with a certificate for addr.
func (a *authority) config(addr netip.Addr) *tls.Config {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, _ := x509.MarshalECPrivateKey(key)
	cert := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{addr.AsSlice()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, &key.PublicKey)
	name := addr.String()
	c, err := LoadTLS(a.write(name+".pem", "CERTIFICATE", cert), a.write(name+".key", "EC PRIVATE KEY", der), filepath.Join(a.dir, "ca.pem"))
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// TestTLS: a ring of two that speak TLS and one, listed, that does not.
func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	at := addresses(t, 3)
	plain := []netip.Addr{at[2].Addr()}
	a := start(t, at[0], at, Config{TLS: ca.config(at[0].Addr()), Plain: plain})
	b := start(t, at[1], at, Config{TLS: ca.config(at[1].Addr()), Plain: plain})
	c := start(t, at[2], at, Config{})
	within(t, 10*time.Second, "the three are whole", whole(a, b, c))
	a.peers.mu.Lock()
	defer a.peers.mu.Unlock()
	secured := 0
	for _, l := range a.peers.links {
		if _, ok := l.conn.(*tls.Conn); ok {
			secured++
		}
	}
	if secured != 1 || len(a.peers.links) != 2 {
		t.Errorf("%d of %d connections of the first are TLS, want 1 of 2", secured, len(a.peers.links))
	}
}

// TestTLSRefusals: plain text from who should speak TLS, another's certificate, a certificate of others.
func TestTLSRefusals(t *testing.T) {
	ca, others := newAuthority(t), newAuthority(t)
	at := addresses(t, 3)
	m := start(t, at[0], at, Config{TLS: ca.config(at[0].Addr())})
	dial := func(from netip.Addr) net.Conn {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
		conn, err := dialer.Dial("tcp", at[0].String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	conn := dial(at[1].Addr())
	fmt.Fprintf(conn, "VERSION\tdirector\t1\t9\n")
	if text, _ := io.ReadAll(conn); len(text) > 0 {
		t.Errorf("in plain text it says %q", text)
	}
	for name, config := range map[string]*tls.Config{
		"that of another member": ca.config(at[2].Addr()), "of another authority": others.config(at[1].Addr()), "none": {},
	} {
		config.InsecureSkipVerify = true
		conn := tls.Client(dial(at[1].Addr()), config)
		fmt.Fprintf(conn, "VERSION\tdirector\t1\t9\n")
		if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
			t.Errorf("with a certificate that is %s it says %q", name, line)
		}
	}
	good := ca.config(at[1].Addr())
	good.ServerName = at[0].Addr().String()
	if line, err := bufio.NewReader(tls.Client(dial(at[1].Addr()), good)).ReadString('\n'); err != nil || !strings.HasPrefix(line, "VERSION") {
		t.Errorf("with the right certificate: %q, %v", line, err)
	}
	if !strings.Contains(m.log.String(), "does not speak TLS") {
		t.Errorf("not logged:\n%s", m.log.String())
	}
}

func TestLoadTLSErrors(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ ca, want string }{
		{filepath.Join(dir, "none"), "ring_tls: ca: open "}, {empty, "has no certificate"},
	} {
		if _, err := LoadTLS(empty, empty, row.ca); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", row.ca, err)
		}
	}
}
