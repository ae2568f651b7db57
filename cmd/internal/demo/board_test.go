package demo

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"usher/cmd/internal/cli"
)

func TestVerdict(t *testing.T) {
	play := func(f func(b *board)) *board {
		b := newBoard(time.Now(), cli.DemoOptions{})
		b.program([]step{{name: "a"}, {name: "b"}})
		f(b)
		return b
	}
	good := func(b *board) {
		for i := range 2 {
			b.start(i)
			b.done(i, "fine", nil)
		}
	}
	for _, tc := range []struct {
		name      string
		do        func(b *board)
		interrupt error
		want      []string // parts of the error; none: nil
	}{
		{"good", good, nil, nil},
		{"an act failed", func(b *board) { good(b); b.done(1, "", errors.New("cold\nand more")) }, nil, []string{"b: cold\nand more"}},
		{"an act is missing", func(b *board) { b.start(0); b.done(0, "", nil) }, nil, []string{"b: was left out"}},
		{"not even built", func(b *board) { b.fail(errors.New("no wood")) }, nil, []string{"no wood"}},
		{"interrupted", func(b *board) { b.start(0); b.cut(0) }, context.Canceled, []string{"did not come to its end", "signal"}},
		{"interrupted and dirty", func(b *board) { b.fail(errors.New("crumbs")) }, errors.New("no reader"), []string{"no reader", "crumbs"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := play(tc.do)
			err := b.verdict(tc.interrupt)
			if (err == nil) != (tc.want == nil) {
				t.Fatalf("verdict: %v", err)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("verdict %q, want %q in it", err, part)
				}
			}
			s := b.snapshot()
			if ok := s.summary().OK; ok != (tc.want == nil) {
				t.Errorf("summary says ok: %t", ok)
			}
		})
	}
}

func TestParseUsage(t *testing.T) {
	const stat = "17 (a ) b (c) S 1 17 17 0 -1 4194560 2153 0 0 0 123 77 0 0 20 0 9 0 5000 1000000 2560 18446744073709551615 1 1"
	u, err := parseUsage([]byte(stat))
	if want := (usage{cpu: 2 * time.Second, rss: 2560 * uint64(os.Getpagesize())}); err != nil || u != want {
		t.Errorf("%+v, %v; want %+v", u, err, want)
	}
	for _, bad := range []string{"", "17 (a) S 1", strings.Replace(stat, "123", "x", 1)} {
		if u, err := parseUsage([]byte(bad)); err == nil {
			t.Errorf("%q gives %+v", bad, u)
		}
	}
	if u, err := readUsage(os.Getpid()); err != nil || u.rss == 0 {
		t.Errorf("of this process: %+v, %v", u, err)
	}
}

// What is left is found.
func TestInventory(t *testing.T) {
	v, err := takeInventory()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "gone")
	v.addDir(dir)
	if err := v.check(); err != nil {
		t.Errorf("nothing is left, but: %v", err)
	}
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		v    inventory
		want string
	}{
		{inventory{dirs: []string{t.TempDir()}, sockets: 1000}, "directory /"},
		{inventory{dirs: []string{""}, sockets: 1000}, "mount below "},
		{inventory{processes: []int{os.Getpid()}, sockets: 1000}, "process "},
		{inventory{namespaces: []string{ns}, sockets: 1000}, "namespace net:["},
		{inventory{sockets: -1}, "open sockets"},
	} {
		if left := strings.Join(tc.v.find(), ", "); !strings.Contains(left, tc.want) {
			t.Errorf("found %q, want %q in it", left, tc.want)
		}
	}
}

func TestSits(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	all := seats{"anna": {a: 3}, "bert": {a: 1, b: 2}, "carl": {}}
	for _, tc := range []struct {
		name string
		at   netip.Addr
		n    int
		ok   bool
	}{
		{"anna", netip.Addr{}, 3, true}, {"anna", a, 3, true}, {"anna", b, 3, false}, {"anna", a, 2, false},
		{"bert", netip.Addr{}, 3, false}, {"carl", netip.Addr{}, 1, false}, {"nobody", a, 1, false},
	} {
		if err := sits(all, tc.name, tc.at, tc.n); (err == nil) != tc.ok {
			t.Errorf("%s with %d sessions on %v: %v", tc.name, tc.n, tc.at, err)
		}
	}
}
