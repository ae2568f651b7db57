package secure

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"usher/steer/handover"
	"usher/testenv/pki"
)

// pair is a TCP connection, with TLS or without, of which one end is given to Relay.
func pair(t *testing.T, server *tls.Config, pool *tls.Config, farIsClient bool) (far, near net.Conn, tcp *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { c.Close() })
	}
	if server == nil {
		return a, b, b.(*net.TCPConn)
	}
	client := func(c net.Conn) *Conn {
		x, err := newConn(c.(*net.TCPConn))
		if err != nil {
			t.Error(err)
		}
		x.Conn = tls.Client(x.wire, pool)
		return x
	}
	shaken := make(chan *Conn, 1)
	if farIsClient {
		go func() {
			x := client(a)
			_ = x.Handshake()
			shaken <- x
		}()
		s, err := Server(b.(*net.TCPConn), server)
		if err != nil {
			t.Fatal(err)
		}
		return <-shaken, s, b.(*net.TCPConn)
	}
	go func() {
		s, err := Server(a.(*net.TCPConn), server)
		if err != nil {
			t.Error(err)
		}
		shaken <- s
	}()
	x := client(b)
	if err := x.Handshake(); err != nil {
		t.Fatal(err)
	}
	return <-shaken, x, b.(*net.TCPConn)
}

// The end of a direction arrives as it was sent: said, or only seen.
func TestEnds(t *testing.T) {
	ca, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Certificate("x.test")
	if err != nil {
		t.Fatal(err)
	}
	server := &tls.Config{Certificates: []tls.Certificate{cert}}
	client := &tls.Config{RootCAs: ca.Pool, ServerName: "x.test"}
	for _, tt := range []struct {
		name      string
		clientTLS bool
		end       func(c net.Conn) error
		said      bool // the backend hears close_notify
	}{
		{"close_notify", true, func(c net.Conn) error { return c.(*Conn).CloseWrite() }, true},
		{"FIN alone", true, func(c net.Conn) error { return c.(*Conn).wire.CloseWrite() }, false},
		{"FIN in plaintext", false, func(c net.Conn) error { return c.(*net.TCPConn).CloseWrite() }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var leg *tls.Config
			if tt.clientTLS {
				leg = server
			}
			farClient, nearClient, tcpClient := pair(t, leg, client, true)
			farBackend, nearBackend, tcpBackend := pair(t, server, client, false)
			p := &handover.Pair{
				Client: tcpClient, Backend: tcpBackend, ClientReadAhead: []byte("ahead "), BackendReadAhead: []byte("welcome "),
			}
			done := make(chan error, 1)
			go func() { done <- Relay(context.Background(), p, nearClient, nearBackend) }()
			if _, err := io.WriteString(farClient, "question"); err != nil {
				t.Fatal(err)
			}
			if err := tt.end(farClient); err != nil {
				t.Fatal(err)
			}
			question, err := io.ReadAll(farBackend)
			if err != nil || string(question) != "ahead question" {
				t.Errorf("the backend got %q, %v", question, err)
			}
			if said := !farBackend.(*Conn).wire.fin; said != tt.said {
				t.Errorf("close_notify at the backend: %v, want %v", said, tt.said)
			}
			// The other direction is still open.
			if _, err := io.WriteString(farBackend, "answer"); err != nil {
				t.Fatal(err)
			}
			if err := farBackend.(*Conn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(farClient)
			if err != nil || string(answer) != "welcome answer" {
				t.Errorf("the client got %q, %v", answer, err)
			}
			if c, ok := farClient.(*Conn); ok && c.wire.fin {
				t.Error("the client heard no close_notify")
			}
			farBackend.(*Conn).wire.CloseWrite()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if a, b := p.ToBackend.Load(), p.ToClient.Load(); a != 14 || b != 14 {
				t.Errorf("counted %d and %d bytes", a, b)
			}
		})
	}
}

// A record that is cut off is an error, and the other side hears of it by a reset.
func TestCutOff(t *testing.T) {
	ca, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Certificate("x.test")
	if err != nil {
		t.Fatal(err)
	}
	farClient, nearClient, tcpClient := pair(t, &tls.Config{Certificates: []tls.Certificate{cert}}, &tls.Config{RootCAs: ca.Pool, ServerName: "x.test"}, true)
	farBackend, nearBackend, tcpBackend := pair(t, nil, nil, true)
	p := &handover.Pair{Client: tcpClient, Backend: tcpBackend}
	done := make(chan error, 1)
	go func() { done <- Relay(context.Background(), p, nearClient, nearBackend) }()
	raw := farClient.(*Conn).wire.TCPConn
	if _, err := raw.Write([]byte{23, 3, 3, 0, 100, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	raw.CloseWrite()
	if err := <-done; err == nil {
		t.Error("no error")
	}
	if b, err := io.ReadAll(farBackend); err == nil || len(b) > 0 {
		t.Errorf("the backend got %q, %v", b, err)
	}
}
