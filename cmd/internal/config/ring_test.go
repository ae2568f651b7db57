package config

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// TestRing: who are the members, and which of them are we?
func TestRing(t *testing.T) {
	names := fakeResolver{"dir.example": {"10.1.0.3", "::ffff:10.1.0.2", "fd00::2"}, "empty.example": {}}
	for _, c := range []struct {
		name, servers, listen string
		local                 []string // addresses of this machine
		self, members         string   // or "" and the error
	}{
		{"a specific listener is us", `"10.1.0.3", "10.1.0.2"`, "10.1.0.2:9090", nil, "10.1.0.2:9090", "[10.1.0.2:9090 10.1.0.3:9090]"},
		{"ports", `"10.1.0.2", "10.1.0.3:9091", "[fd00::3]:9092"`, "10.1.0.2:9090", nil, "10.1.0.2:9090", "[10.1.0.2:9090 10.1.0.3:9091 [fd00::3]:9092]"},
		{"a name is all its addresses, once", `"dir.example", "10.1.0.3"`, "10.1.0.3:9090", nil, "10.1.0.3:9090", "[10.1.0.2:9090 10.1.0.3:9090 [fd00::2]:9090]"},
		{"any address: the first local one", `"10.1.0.3", "10.1.0.4", "10.1.0.2"`, "0.0.0.0:9090", []string{"10.1.0.4", "10.1.0.3"}, "10.1.0.3:9090", "[10.1.0.2:9090 10.1.0.3:9090 10.1.0.4:9090]"},
		{"any IPv4 address is no IPv6 address", `"10.1.0.3", "fd00::2"`, "0.0.0.0:9090", []string{"fd00::2"}, "",
			"usher.toml:8: director.servers: does not list this director: none of 10.1.0.3:9090, [fd00::2]:9090 is an address of this machine"},
		{"any IPv6 address is IPv4, too", `"10.1.0.3", "fd00::2"`, "[::]:9090", []string{"fd00::2", "10.1.0.3"}, "10.1.0.3:9090", "[10.1.0.3:9090 [fd00::2]:9090]"},
		{"two directors on a machine", `"10.1.0.3:9091", "10.1.0.3:9092"`, "10.1.0.3:9092", nil, "10.1.0.3:9092", "[10.1.0.3:9091 10.1.0.3:9092]"},
		{"we have another port there", `"10.1.0.3:9091", "10.1.0.2"`, "10.1.0.3:9090", nil, "", "usher.toml:8: director.servers: lists this director as 10.1.0.3:9091, but ring_listen is 10.1.0.3:9090"},
		{"not listed", `"10.1.0.3", "10.1.0.2"`, "10.1.0.4:9090", nil, "", "usher.toml:8: director.servers: does not list this director: ring_listen is 10.1.0.4:9090, and there are 10.1.0.2:9090, 10.1.0.3:9090"},
		{"nothing is local", `"10.1.0.3"`, "[::]:9090", nil, "", "usher.toml:8: director.servers: does not list this director: none of 10.1.0.3:9090 is an address of this machine"},
		{"names that are none", `"nobody.example", "empty.example"`, "10.1.0.3:9090", nil, "",
			"usher.toml:8: director.servers[0]: resolve nobody.example: no such host\nusher.toml:8: director.servers[1]: resolve empty.example: it has no address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := parse(t, good+
				fmt.Sprintf("[director]\nservers = [%s]\nring_listen = %q\n", c.servers, c.listen))
			local := func(a netip.Addr) bool { return slices.Contains(c.local, a.String()) }
			self, members, err := cfg.Ring(t.Context(), names, local)
			if c.self == "" {
				if want := c.members; err == nil || err.Error() != want {
					t.Errorf("got error %v\nwant %s", err, want)
				}
				return
			}
			if err != nil || self.String() != c.self || fmt.Sprint(members) != c.members {
				t.Errorf("got %v of %v, error %v", self, members, err)
			}
		})
	}
	self, members, err := parse(t, good).Ring(t.Context(), names, nil)
	if self.IsValid() || members != nil || err != nil {
		t.Errorf("without servers: %v of %v, error %v", self, members, err)
	}
}

func TestMayBind(t *testing.T) {
	if !MayBind(netip.MustParseAddr("127.0.0.1")) || MayBind(netip.MustParseAddr("192.0.2.1")) {
		t.Error("127.0.0.1 is ours, 192.0.2.1 (for documentation) is not")
	}
}
