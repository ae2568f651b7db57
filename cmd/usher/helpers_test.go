package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"usher/bpf"
	"usher/cmd/internal/site"
)

// within is eventually for what takes its time.
func within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen within %v: %s", limit, what)
		}
	}
}

// metrics reads /metrics from the admin socket: values by name with labels, as they are written.
func metrics(t testing.TB, s *site.Site) map[string]float64 {
	t.Helper()
	c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(s.Dir, "admin.sock"))
		},
		DisableKeepAlives: true,
	}}
	r, err := c.Get("http://usher/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	values := map[string]float64{}
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		name, value, ok := cutLast(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(name, "#") {
			values[name] = v
		}
	}
	if len(values) == 0 {
		t.Fatalf("no metrics, status %s: %v", r.Status, lines.Err())
	}
	return values
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// flowStates counts the entries of the pinned flow map by state, past the daemon.
func flowStates(t testing.TB, s *site.Site) map[bpf.SpliceFlowState]int {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(s.PinPath, "layout-1", "flows"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for {
		states := map[bpf.SpliceFlowState]int{}
		var key bpf.SpliceFlowKey
		var flow bpf.SpliceFlow
		it := m.Iterate()
		for it.Next(&key, &flow) {
			states[bpf.SpliceFlowState(flow.State)]++
		}
		if err := it.Err(); err == nil {
			return states
		} else if !errors.Is(err, ebpf.ErrIterationAborted) { // it changed too fast: again
			t.Fatal(err)
		}
	}
}

func sum[K comparable](m map[K]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// ending is the line that the daemon logs at the end of a session.
type ending struct {
	Message  string `json:"message"`
	User     string `json:"user"`
	Protocol string `json:"protocol"`
	Client   string `json:"client"`
	Mode     string `json:"mode"`
	Reason   string `json:"reason"`
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	End      string `json:"end"`
}

// endings reads those lines.
func endings(t testing.TB, s *site.Site) (all []ending) {
	t.Helper()
	f, err := os.Open(s.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var e ending
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.Message == "session ended" {
			all = append(all, e)
		}
	}
	return all
}

// noErrors checks that the daemon logged none.
func noErrors(t testing.TB, s *site.Site) {
	t.Helper()
	b, err := os.ReadFile(s.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, `"level":"error"`) || !strings.HasPrefix(line, "{") {
			t.Errorf("in the daemon's log: %s", line)
		}
	}
}
