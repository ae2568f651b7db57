package config

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestHostSpec(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int    // addresses
		want string // String(), or a part of the error
	}{
		{"10.2.0.11", 1, "10.2.0.11"},
		{"::ffff:10.2.0.11", 1, "10.2.0.11"},
		{"10.2.0.11-10.2.0.30", 20, "10.2.0.11-10.2.0.30"},
		{"10.2.0.0-10.2.0.255", 256, "10.2.0.0-10.2.0.255"},
		{"10.2.0.255-10.2.1.0", -1, "only the last 8 bits may differ"},
		{"10.2.0.30-10.2.0.11", -1, `reversed, write "10.2.0.11-10.2.0.30"`},
		{"10.2.0.1-fd00::1", -1, "mixes IPv4 and IPv6"},
		{"10.2.0.1-10.2.0", -1, "is no range"},
		{"fd00::10-fd00::12", 3, "fd00::10-fd00::12"},
		{"fd00::-fd00::ffff", 65536, "fd00::-fd00::ffff"},
		{"fd00::ffff-fd00::1:0", -1, "only the last 16 bits may differ"},
		{"mail1.example", 0, "mail1.example"},
		{"mail-1.example", 0, "mail-1.example"},
		{"Mail_1", 0, "mail_1"},
		{"10.2.0.11@tag", -1, `write hosts = ["10.2.0.11"] and tag = "tag"`},
		{"10.2.0.11:143", -1, "has a port"},
		{"mail:143", -1, "has a port"},
		{"10.2.0.300", -1, "no address, range or host name"},
		{"10.2.0", -1, "no address, range or host name"},
		{"", -1, "no address, range or host name"},
		{"-x.example", -1, "no address, range or host name"},
		{"a..b", -1, "no address, range or host name"},
		{strings.Repeat("a", 64), -1, "no address, range or host name"},
		{"fe80::1%eth0", -1, "has a zone"},
		{"0.0.0.0", -1, "not the address of a host"},
		{"224.0.0.1-224.0.0.2", -1, "not the address of a host"},
	} {
		var h HostSpec
		err := h.UnmarshalText([]byte(c.text))
		if c.n < 0 {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q: got %v and error %v, want %q", c.text, h, err, c.want)
			}
			continue
		}
		if n := len(slices.Collect(h.Addrs())); err != nil || h.String() != c.want || n != c.n {
			t.Errorf("%q: got %v with %d addresses, error %v", c.text, h, n, err)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "4096": 4096, "512K": 512 << 10, "10M": 10 << 20, "10 MB": 10 << 20, "1g": 1 << 30, "1T": 1 << 40,
		"": -1, "M": -1, "-1": -1, "10X": -1, "1.5M": -1, "9999999999T": -1, "9000000T": -1,
	} {
		s := Size(-1)
		if err := s.UnmarshalText([]byte(text)); (err != nil) != (want < 0) || s != want {
			t.Errorf("%q: got %d, error %v, want %d", text, s, err, want)
		}
	}
}

func TestRingServer(t *testing.T) {
	for text, want := range map[string]RingServer{
		"10.1.0.2": {"10.1.0.2", 0}, "10.1.0.3:9090": {"10.1.0.3", 9090}, "[fd00::3]:9090": {"fd00::3", 9090},
		"fd00::1": {"fd00::1", 0}, "[fd00::1]": {"fd00::1", 0}, "dir.example": {"dir.example", 0}, "dir.example:9090": {"dir.example", 9090},
		"": {}, "dir:x": {}, "10.1.0.2:0": {}, "10.1.0.2:99999": {},
	} {
		var r RingServer
		if err := r.UnmarshalText([]byte(text)); r != want || (err != nil) != (want == RingServer{}) {
			t.Errorf("%q: got %v, error %v", text, r, err)
		}
	}
}

func TestListenCovers(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"10.0.0.1:1", "10.0.0.1:1", true},
		{"10.0.0.1:1", "10.0.0.1:2", false},
		{"10.0.0.1:1", "10.0.0.2:1", false},
		{"0.0.0.0:1", "10.0.0.2:1", true},
		{"0.0.0.0:1", "[fd00::1]:1", false},
		{"[::]:1", "10.0.0.2:1", true},
		{"[::]:1", "[fd00::1]:1", true},
		{"127.0.0.1:0", "127.0.0.1:0", false},
		{"systemd:a", "systemd:a", true},
		{"systemd:a", "systemd:b", false},
		{"systemd:a", "[::]:1", false},
	} {
		var a, b Listen
		if err := errors.Join(a.UnmarshalText([]byte(c.a)), b.UnmarshalText([]byte(c.b))); err != nil {
			t.Fatal(err)
		}
		if got := a.covers(b); got != c.want {
			t.Errorf("%v covers %v: %v", a, b, got)
		}
	}
}

func TestDurationString(t *testing.T) {
	for _, s := range []string{"15m", "5ms", "1h", "1h30m", "1m30s", "1h0m5s", "0s", "2h0m10s", "20m", "10s"} {
		var d Duration
		if err := d.UnmarshalText([]byte(s)); err != nil || d.String() != s {
			t.Errorf("%q becomes %q, error %v", s, d, err)
		}
	}
}

// fakeResolver answers from a map.
type fakeResolver map[string][]string

func (r fakeResolver) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	if network != "ip" {
		return nil, fmt.Errorf("network %q", network)
	}
	list, ok := r[host]
	if !ok {
		return nil, errors.New("no such host")
	}
	var addrs []netip.Addr
	for _, s := range list {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs, nil
}

func TestHosts(t *testing.T) {
	const text = good + `[[backend]]
hosts = ["mail.example", "mail2.example", "fd00::1"]
weight = 50
tag = "eu"
`
	cfg := parse(t, text)
	r := fakeResolver{"mail.example": {"::ffff:10.3.0.1", "fd00::5"}, "mail2.example": {"10.3.0.1"}}
	hosts, err := cfg.Hosts(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{10.2.0.11   100} {10.2.0.12   100} {10.2.0.13   100} ` +
		`{10.3.0.1 mail.example eu 50} {fd00::5 mail.example eu 50} {fd00::1  eu 50}`
	if got := strings.Trim(fmt.Sprint(hosts), "[]"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	for _, c := range []struct {
		r    fakeResolver
		want string
	}{
		{fakeResolver{"mail.example": {"10.3.0.1"}}, "resolve backend mail2.example: no such host"},
		{fakeResolver{"mail.example": {}, "mail2.example": {"10.3.0.1"}}, "resolve backend mail.example: it has no address"},
		{fakeResolver{"mail.example": {"10.2.0.11"}, "mail2.example": {"10.3.0.1"}}, "host 10.2.0.11 (mail.example) is also listed by its address with another tag or weight"},
	} {
		if _, err := cfg.Hosts(t.Context(), c.r); err == nil || err.Error() != c.want {
			t.Errorf("got error %v, want %s", err, c.want)
		}
	}
}
