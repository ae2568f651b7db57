package state

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// disk notes what is written, and when.
type disk struct {
	begin  time.Time
	writes []time.Duration
	err    error
}

func (d *disk) write(string, []byte) error {
	d.writes = append(d.writes, time.Since(d.begin))
	return d.err
}

// TestWhenItIsWritten: soon after an order, not for each of many, and never for nothing.
func TestWhenItIsWritten(t *testing.T) {
	for _, c := range []struct {
		name   string
		orders []time.Duration // when they are given
		every  time.Duration   // or one every so often
		for_   time.Duration
		err    error
		want   []time.Duration // the last one is that of the end
	}{
		{"no order", nil, 0, time.Hour, nil, nil},
		{"one order", []time.Duration{5 * time.Second}, 0, time.Hour, nil, []time.Duration{5200 * time.Millisecond}},
		{"two orders together", []time.Duration{0, 100 * time.Millisecond}, 0, time.Hour, nil, []time.Duration{200 * time.Millisecond}},
		{"two orders in a second", []time.Duration{0, 300 * time.Millisecond}, 0, time.Hour, nil, []time.Duration{200 * time.Millisecond, 1200 * time.Millisecond}},
		{"orders without end", nil, 50 * time.Millisecond, 3100 * time.Millisecond, nil,
			[]time.Duration{250 * time.Millisecond, 1250 * time.Millisecond, 2250 * time.Millisecond, 3100 * time.Millisecond}},
		{"an order just before the end", []time.Duration{time.Second}, 0, 1100 * time.Millisecond, nil, []time.Duration{1100 * time.Millisecond}},
		{"a full disk", []time.Duration{0}, 0, 15 * time.Second, errors.New("no space"),
			[]time.Duration{200 * time.Millisecond, 10200 * time.Millisecond, 15 * time.Second}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var orders atomic.Int64
				var log bytes.Buffer
				w := NewWriter("/nowhere/state.toml", func() State { return State{Drains: make([]Drain, orders.Load())} }, zerolog.New(&log))
				d := &disk{begin: time.Now(), err: c.err}
				w.write = d.write
				ctx, cancel := context.WithTimeout(t.Context(), c.for_)
				defer cancel()
				order := func() { orders.Add(1); w.Changed() }
				for _, at := range c.orders {
					time.AfterFunc(at, order)
				}
				var operator sync.WaitGroup
				defer operator.Wait()
				if c.every > 0 {
					operator.Go(func() {
						for ctx.Err() == nil {
							time.Sleep(c.every)
							order()
						}
					})
				}
				if err := w.Run(ctx); !errors.Is(err, c.err) {
					t.Errorf("Run: %v", err)
				}
				if len(d.writes) != len(c.want) {
					t.Fatalf("written at %v, want %v", d.writes, c.want)
				}
				for i, want := range c.want {
					if d.writes[i] != want {
						t.Errorf("written at %v, want %v", d.writes, c.want)
					}
				}
				if n := strings.Count(log.String(), "orders would be forgotten"); c.err != nil && n != 1 {
					t.Errorf("%d complaints: %s", n, &log)
				}
			})
		})
	}
}

// What changes without an order is seen within a minute.
func TestWrittenNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		w := NewWriter("/nowhere/state.toml", func() State { return State{Drains: make([]Drain, int(time.Since(begin)/(150*time.Second)))} }, zerolog.Nop())
		d := &disk{begin: begin}
		w.write = d.write
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Second)
		defer cancel()
		if err := w.Run(ctx); err != nil || len(d.writes) != 1 || d.writes[0] != 180*time.Second {
			t.Errorf("written at %v, error %v", d.writes, err)
		}
	})
}

// TestFileIsReplacedAsAWhole: a reader never sees half of it, and nothing else is left behind.
func TestFileIsReplacedAsAWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lib")
	path := filepath.Join(dir, "state.toml")
	w := NewWriter(path, full, zerolog.Nop())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for i := range 15 {
			s := full()
			s.Drains = make([]Drain, 100*i)
			data, _ := encode(s)
			if err := replace(path, data); err != nil {
				t.Error(err)
			}
		}
	}()
	for reading := true; reading; {
		select {
		case <-stop:
			reading = false
		default:
		}
		data, err := os.ReadFile(path)
		if err == nil {
			_, err = decode(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the file: %v, error %v", entries, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
}

func TestWriteFailureLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.toml")
	if err := os.Mkdir(path, 0o755); err != nil { // a directory cannot be replaced by a file
		t.Fatal(err)
	}
	if err := replace(path, []byte("x")); err == nil {
		t.Error("no error")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

// TestStore: what was stored is in the file when Store returns, and callers at the same time share a write.
func TestStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.toml")
	var drains atomic.Int64
	get := func() State {
		s := State{}
		for i := range drains.Load() {
			s.Drains = append(s.Drains, Drain{Host: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
		}
		return s
	}
	w := NewWriter(path, get, zerolog.Nop())
	writes := 0
	real := w.write
	w.write = func(path string, data []byte) error {
		writes++
		time.Sleep(time.Millisecond)
		return real(path, data)
	}
	const callers = 100
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			n := int(drains.Add(1))
			w.Store()
			if s, err := Load(path, zerolog.Nop()); err != nil || len(s.Drains) < n {
				t.Errorf("the file has %d drains, %v, want at least %d", len(s.Drains), err, n)
			}
		})
	}
	all.Wait()
	if writes == 0 || writes == callers {
		t.Errorf("%d writes for %d callers at the same time", writes, callers)
	}
}

// TestStoreFails: Run tries again what Store could not write.
func TestStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWriter("/nowhere/state.toml", func() State { return State{Drains: make([]Drain, 1)} }, zerolog.Nop())
		d := &disk{begin: time.Now(), err: errors.New("no space")}
		w.write = d.write
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.Run(ctx) }()
		w.Store()
		w.mu.Lock()
		d.err = nil
		w.mu.Unlock()
		time.Sleep(5 * time.Second)
		w.mu.Lock()
		if len(d.writes) != 2 {
			t.Errorf("written at %v, want one more write after the one that failed", d.writes)
		}
		w.mu.Unlock()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
