package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"usher/director/ring"
)

// start serves src on a socket and a TCP port until the test ends.
func start(t *testing.T, src Source, g prometheus.Gatherer) (c *Client, httpURL, socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "run", "admin.sock")
	s, err := Listen(Config{Socket: socket, HTTP: netip.MustParseAddrPort("127.0.0.1:0"), Source: src, Gatherer: g, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		if _, err := os.Lstat(socket); err == nil {
			t.Error("the socket is still there")
		}
	})
	return NewClient(socket), "http://" + s.HTTPAddr().String(), socket
}

func site() *fakeSource {
	at := time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC)
	return &fakeSource{
		status: Status{
			Director: DirectorStatus{Name: "mail1", UptimeS: 12.5, Users: 1, Version: "v0"},
			Hosts: []HostStatus{{Address: netip.MustParseAddr("10.2.0.11"), Weight: 100, Up: true, Users: 1, Sessions: 1}, {Address: netip.MustParseAddr("fd00::12"), Name: "be2.example"},
				{Address: netip.MustParseAddr("10.2.0.13"), Name: "two.example"}, {Address: netip.MustParseAddr("10.2.0.14"), Name: "two.example"}},
			Sessions: SessionCounts{Total: 1, TC: 1},
			Kernel:   KernelStatus{Mode: "tc", Flows: 2, Packets: 7, Bytes: 700, Program: "usher_tc abc"},
			Ring:     RingSummary{Handshaked: true, Synced: true},
		},
		entries: []MapEntry{{Hash: 704933450, Users: []string{"u"}, Host: netip.MustParseAddr("10.2.0.11"), Sessions: 1}, {Hash: 5, ExpiresAt: &at}},
		users: map[string]User{"a/b&c d": {User: "a/b&c d", Hash: 704933450, Host: netip.MustParseAddr("10.2.0.11"),
			Sessions: []Session{{Client: netip.MustParseAddrPort("10.1.0.5:5000"), Backend: netip.MustParseAddrPort("10.2.0.11:143"),
				Protocol: "imap", Mode: "tc", Since: at, BytesIn: 1, BytesOut: 2}}}},
		flows: []FlowInfo{{User: "u", Mode: "tc", IdleS: 1.5, State: "forward"}, {User: "v"}},
	}
}

func TestReading(t *testing.T) {
	src := site()
	c, _, _ := start(t, src, nil)
	ctx := t.Context()
	opts := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.EquateEmpty()}
	check := func(what string, want, got any, err error) {
		t.Helper()
		if diff := cmp.Diff(want, got, opts); err != nil || diff != "" {
			t.Errorf("%s: error %v (-want +got):\n%s", what, err, diff)
		}
	}
	status, err := c.Status(ctx)
	check("status", src.status, status, err)
	entries, err := c.Map(ctx, "")
	check("map", src.entries, entries, err)
	entries, err = c.Map(ctx, "10.2.0.11")
	check("map of a host", src.entries[:1], entries, err)
	entries, err = c.Map(ctx, "", "nobody", "a/b&c d")
	check("map of users", []MapEntry{{Hash: 704933450, Host: netip.MustParseAddr("10.2.0.11"), Sessions: 1}}, entries, err)
	entries, err = c.Map(ctx, "be2.example", "a/b&c d")
	check("map of users of a host", []MapEntry{}, entries, err)
	if _, err := c.Map(ctx, "be3.example"); !errors.Is(err, ErrUnknownHost) {
		t.Errorf("map of an unknown host: %v", err)
	}
	user, err := c.User(ctx, "a/b&c d")
	check("user", src.users["a/b&c d"], user, err)
	flows, err := c.Flows(ctx)
	check("flows", src.flows, flows, err)
	src.flushes = []Flush{{FlushOrder: FlushOrder{Host: netip.MustParseAddr("10.2.0.11"), Rate: 10}, Total: 7}}
	flushes, err := c.Flushes(ctx)
	check("flushes", src.flushes, flushes, err)
	src.orders = Orders{Gone: []netip.Addr{netip.MustParseAddr("10.2.0.11")}}
	orders, err := c.Orders(ctx)
	check("orders", src.orders, orders, err)
	src.rings = []Ring{NewRing(ring.Status{Self: netip.MustParseAddrPort("10.1.0.1:9090"), Minor: 9})}
	ring, err := c.Ring(ctx)
	check("ring", src.rings[0], ring, err)
}

// TestFields keeps the names of the fields, in their order, which scripts rely on.
func TestFields(t *testing.T) {
	for _, c := range []struct{ value, want any }{
		{Status{Hosts: []HostStatus{{}}}, `{"director":{"name":"","uptime_s":0,"users":0,"version":"","moving":0,"waiting":0,"conflicts":0},` +
			`"hosts":[{"address":"","name":"","tag":"","weight":0,"up":false,"users":0,"sessions":0,` +
			`"operator_up":false,"health":"","health_reason":"","changed_at":null,"configured_weight":null}],` +
			`"sessions":{"total":0,"xdp":0,"tc":0,"splice":0,"copy":0,"prelogin":0},` +
			`"kernel":{"mode":"","reason":"","flows":0,"packets":0,"bytes":0,"program":""},` +
			`"ring":{"directors":0,"handshaked":false,"synced":false,"silent":0}}`},
		{User{Sessions: []Session{{}}}, `{"user":"","hash":0,"host":"","hashed_host":"","expires_at":null,` +
			`"sessions":[{"client":"","backend":"","protocol":"","mode":"","since":"0001-01-01T00:00:00Z","bytes_in":0,"bytes_out":0,"id":"","user":"","state":"","reason":""}],` +
			`"tag":"","names":null,"epoch":0,"moving":false,"last_refresh":"0001-01-01T00:00:00Z",` +
			`"configured_host":"","weak":false,"phase":"","since":null}`},
		{FlowInfo{}, `{"user":"","client":"","backend":"","mode":"","packets":0,"bytes":0,"idle_s":0,"state":"","direction":"","hash":0,"epoch":0}`},
		{Flush{}, `{"host":"","drain":false,"force":false,"rate":0,"parallel":0,"total":0,"done":0,"failed":0,"moving":0,` +
			`"started_at":"0001-01-01T00:00:00Z","ended_at":null,"error":""}`},
		{Ring{Directors: []RingDirector{{Conns: []RingConn{{}}}}}, `{"self":"","handshaked":false,"synced":false,"last_sync":null,"sync_s":0,"minor":0,` +
			`"directors":[{"address":"","self":false,"removed":false,"usher":false,"silent":false,"last_failed":null,"last_error":"","clock_diff_s":0,` +
			`"connections":[{"remote":"","role":"","state":"","users":0,"ping_ms":0,"bytes_received":0,"bytes_sent":0,"bytes_queued":0,"bytes_queued_peak":0,` +
			`"lag_s":0,"last_read":null,"last_write":null}]}],"unknown":null}`},
		{Orders{Hosts: []HostOrders{{}}, Users: []UserOrder{{}}}, `{"hosts":[{"address":"","name":"","tag":"","weight":0,"added":false,"down":false}],"gone":null,` +
			`"users":[{"user":"","hash":0,"host":""}],"drains":null,"directors_added":null,"directors_removed":null}`},
		{Reply{}, `{"state":"","warnings":null}`},
		{MapEntry{}, `{"hash":0,"users":null,"tag":"","host":"","sessions":0,"moving":false,"expires_at":null}`},
	} {
		got, err := json.Marshal(c.value)
		if diff := cmp.Diff(c.want, string(got)); err != nil || diff != "" {
			t.Errorf("%T: error %v (-want +got):\n%s", c.value, err, diff)
		}
	}
}

func TestEmptyListsAreLists(t *testing.T) {
	_, url, _ := start(t, &fakeSource{users: map[string]User{"u": {}}}, nil)
	for path, want := range map[string]string{
		"/api/v1/status": `"hosts":[]`, "/api/v1/map": "[]\n", "/api/v1/flows": "[]\n", "/api/v1/user?name=u": `"sessions":[]`,
	} {
		if _, body := httpGet(t, url+path); !strings.Contains(body, want) {
			t.Errorf("%s: %s", path, body)
		}
	}
}

func httpGet(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestHTTPIsForReading(t *testing.T) {
	src := site()
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "usher_test_total", Help: "x"})
	registry.MustRegister(counter)
	counter.Add(3)
	_, url, _ := start(t, src, registry)
	for path, want := range map[string]string{
		"/healthz": "ok", "/metrics": "usher_test_total 3", "/api/v1/status": `"mail1"`, "/api/v1/flows": `"forward"`,
	} {
		if status, body := httpGet(t, url+path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for _, path := range []string{"user/move", "user/kick", "host/add", "host/up", "host/drain", "flush/stop", "ring/add"} {
		resp, err := http.Post(url+"/api/v1/"+path, "application/json", strings.NewReader(`{"user":"u","host":"h"}`))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("POST %s by TCP: %s", path, resp.Status)
		}
	}
	if len(src.calls) > 0 {
		t.Errorf("commands came through: %v", src.calls)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	_, _, socket := start(t, site(), nil)
	info, err := os.Lstat(socket)
	if err != nil || info.Mode() != fs0600Socket {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(socket))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the socket: %v, error %v", entries, err)
	}
}

const fs0600Socket = os.ModeSocket | 0o600

func TestLiveSocketIsRefused(t *testing.T) {
	c, _, socket := start(t, site(), nil)
	_, err := Listen(Config{Socket: socket, Source: site()})
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), socket) {
		t.Errorf("second daemon: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("the first daemon was hurt: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	s, err := Listen(Config{Socket: socket, Source: site()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is still there after Close")
	}
}

func TestFileInTheWayStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(Config{Socket: path, Source: site()}); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "precious" {
		t.Error("the file was touched")
	}
}

// A taken TCP port must not leave a socket behind.
func TestListenGivesBackWhatItTook(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	_, err = Listen(Config{Socket: socket, HTTP: l.Addr().(*net.TCPAddr).AddrPort(), Source: site()})
	if err == nil || !strings.Contains(err.Error(), "admin.http") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is still there")
	}
}

func TestUnreachable(t *testing.T) {
	for _, c := range []*Client{NewClient(filepath.Join(t.TempDir(), "admin.sock")), NewClient("/" + strings.Repeat("x", 200))} {
		if _, err := c.Status(t.Context()); !errors.Is(err, ErrUnreachable) {
			t.Errorf("got %v", err)
		}
	}
}

// A daemon that ends does not wait for a move that takes long, and the client hears of it.
func TestStopDuringACommand(t *testing.T) {
	src := site()
	src.block = make(chan struct{})
	socket := filepath.Join(t.TempDir(), "admin.sock")
	s, err := Listen(Config{Socket: socket, Source: src, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	moved := make(chan error, 1)
	go func() {
		_, err := NewClient(socket).UserMove(t.Context(), "u", "10.2.0.11", true)
		moved <- err
	}()
	<-src.block
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := <-moved; err == nil || errors.Is(err, ErrUnreachable) {
		t.Errorf("the client got %v", err)
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	c, _, socket := start(t, site(), nil)
	var idle []net.Conn
	for range maxConnections {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connection %d was served: %v", maxConnections+1, err)
	}
	idle[0].Close()
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("after one went away: %v", err)
	}
}
