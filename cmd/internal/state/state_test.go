package state

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rs/zerolog"

	"usher/director"
)

var update = flag.Bool("update", false, "write the golden files anew")

var sameAddr = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// full has something of everything.
func full() State {
	return State{
		Orders: director.Orders{
			Hosts: []director.HostOrder{
				{Host: director.Host{Addr: addr("10.2.0.11"), Weight: 50}, Ordered: 1795434882},
				{Host: director.Host{Addr: addr("10.2.0.12"), Weight: 100}, Down: true, Changed: 1795434890},
				{Host: director.Host{Addr: addr("10.2.0.13")}, Removed: true, Ordered: 1795434891},
				{Host: director.Host{Addr: addr("fd00::19"), Name: "new.example", Tag: "eu", Weight: 0}, Ordered: 1795434892},
			},
			Moved: []director.MoveOrder{
				{Key: director.Key{Hash: 704933450}, Host: addr("10.2.0.11"), Ordered: 1795434900, Expires: 1795435800},
				{Key: director.Key{Hash: 4294967295, Tag: "eu"}, Host: addr("fd00::19"), Ordered: 1795434901, Expires: 1795435801},
			},
		},
		Configured:       map[netip.Addr]int{addr("10.2.0.11"): 100, addr("10.2.0.12"): 100, addr("10.2.0.13"): 0},
		DirectorsAdded:   []netip.AddrPort{netip.MustParseAddrPort("[fd00::9]:9090")},
		DirectorsRemoved: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.3:9090")},
		Drains:           []Drain{{Host: addr("10.2.0.11"), Rate: 2.5}, {Parallel: 7}},
	}
}

// TestFormat keeps the format of version 1: a file that was written must be read for ever.
func TestFormat(t *testing.T) {
	s := full()
	s.Names = map[director.Key]string{{Hash: 704933450}: "user1@x.test"}
	got, err := encode(s)
	if err != nil {
		t.Fatal(err)
	}
	const path = "testdata/state.toml"
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
	back, err := Load(path, zerolog.Nop())
	if diff := cmp.Diff(full(), back, sameAddr); err != nil || diff != "" {
		t.Errorf("read again: error %v (-want +got):\n%s", err, diff)
	}
}

func TestNoFileIsNoOrders(t *testing.T) {
	s, err := Load(filepath.Join(t.TempDir(), "state.toml"), zerolog.Nop())
	if diff := cmp.Diff(State{}, s, sameAddr); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
}

// Another version may mean anything: the file is left alone, and the daemon does not start.
func TestOtherVersionIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.toml")
	const text = "version = 2\nhosts = \"as nobody here knows them\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path, zerolog.Nop())
	if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "it is 2, this program knows 1") {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(path); string(data) != text {
		t.Errorf("the file is %q now, error %v", data, err)
	}
}

// A broken file is kept for people, logged, and does not keep users from being served.
func TestBrokenFileIsKeptAside(t *testing.T) {
	for _, text := range []string{
		"", "version", "version = 1\n[[host]]\naddress = \"10.2.0.300\"\n", "version = 1\n[[host]]\nweight = 5\n",
		"version = 1\n[[user]]\nhash = 5\n", "version = 1\n[[user]]\nhash = -1\nhost = \"10.2.0.11\"\n", "version = 1\nmode = \"x\"\n",
		"version = 1\n[[drain]]\nhost = \"x\"\n", "version = 1\n[[host]]\naddress = \"10.2.0.11\"\nordered = \"yesterday\"\n", "\x00\x01\x02",
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "state.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		s, err := Load(path, zerolog.New(&log))
		if diff := cmp.Diff(State{}, s, sameAddr); err != nil || diff != "" {
			t.Errorf("%q: error %v (-want +got):\n%s", text, err, diff)
		}
		kept, _ := filepath.Glob(path + ".broken-*")
		if len(kept) != 1 || !strings.Contains(log.String(), kept[0]) {
			t.Fatalf("%q: kept %v, log %s", text, kept, &log)
		}
		if data, err := os.ReadFile(kept[0]); string(data) != text {
			t.Errorf("%q became %q, error %v", text, data, err)
		}
	}
}

// TestReconcile has a row per way in which the configuration file and an order can meet.
func TestReconcile(t *testing.T) {
	const at = 1795434882
	weight := func(w int) *int { return &w }
	order := func(w int) director.HostOrder {
		return director.HostOrder{Host: director.Host{Addr: addr("10.2.0.11"), Weight: w}, Ordered: at}
	}
	down := func(o director.HostOrder) director.HostOrder { o.Down, o.Changed = true, at; return o }
	removed := func(o director.HostOrder) director.HostOrder { o.Removed = true; return o }
	fromFile := func(o director.HostOrder, w int) *director.HostOrder { o.Ordered, o.Host.Weight = 0, w; return &o }
	same := func(o director.HostOrder) *director.HostOrder { return &o }
	for _, c := range []struct {
		name    string
		was, is *int // weight in the file, then and now; nil: not in it
		order   director.HostOrder
		want    *director.HostOrder
	}{
		{"the file is the same", weight(100), weight(100), order(50), same(order(50))},
		{"the file has another weight", weight(100), weight(80), order(50), fromFile(order(50), 80)},
		{"down holds with another weight", weight(100), weight(80), down(order(50)), fromFile(down(order(50)), 80)},
		{"taken out of the file", weight(100), nil, down(order(50)), nil},
		{"added at run time", nil, nil, order(30), same(order(30))},
		{"added at run time, then put into the file", nil, weight(100), order(30), fromFile(order(30), 100)},
		{"removed", weight(100), weight(100), removed(order(0)), same(removed(order(0)))},
		{"removed, then taken out of the file", weight(100), nil, removed(order(0)), nil},
		{"removed, then another weight in the file", weight(100), weight(50), removed(order(0)), nil},
		{"an added host removed, then put into the file", nil, weight(50), removed(order(0)), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := State{Orders: director.Orders{Hosts: []director.HostOrder{c.order}}, Configured: map[netip.Addr]int{}}
			if c.was != nil {
				s.Configured[addr("10.2.0.11")] = *c.was
			}
			hosts := []director.Host{{Addr: addr("10.2.0.99"), Weight: 7}}
			if c.is != nil {
				hosts = append(hosts, director.Host{Addr: addr("10.2.0.11"), Weight: *c.is})
			}
			s.Reconcile(hosts)
			var want []director.HostOrder
			if c.want != nil {
				want = append(want, *c.want)
			}
			if diff := cmp.Diff(want, s.Orders.Hosts, sameAddr); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(s.Configured) != len(hosts) || s.Configured[addr("10.2.0.99")] != 7 {
				t.Errorf("configured: %v", s.Configured)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	data, err := os.ReadFile("testdata/state.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("version = 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decode(data)
		if err != nil {
			return
		}
		again, err := encode(s)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decode(again)
		if err != nil {
			t.Fatalf("what was written is broken: %v\n%s", err, again)
		}
		if a, b := fmt.Sprint(s), fmt.Sprint(back); a != b {
			t.Errorf("%s became %s", a, b)
		}
	})
}
