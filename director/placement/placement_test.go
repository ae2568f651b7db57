package placement

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
)

// rows returns the lines of a vector file, split into columns, without comments.
func rows(t *testing.T, name string, columns int) [][]string {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]string
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "# ") {
			continue
		}
		row := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(row) > columns || len(row) < 3 {
			t.Fatalf("%s: row %q has %d columns", name, line, len(row))
		}
		for len(row) < columns {
			row = append(row, "")
		}
		out = append(out, row)
	}
	return out
}

func ring(weights map[string]int) *Ring {
	var nodes []Node
	for addr, weight := range weights {
		nodes = append(nodes, Node{netip.MustParseAddr(addr), weight})
	}
	return NewRing(nodes)
}

var (
	mixed = ring(map[string]int{"10.1.0.1": 100, "10.1.0.2": 50, "10.1.0.3": 200, "10.1.0.4": 1})
	equal = ring(map[string]int{"10.1.0.1": 100, "10.1.0.2": 100, "10.1.0.3": 100, "10.1.0.4": 100})
)

// TestUserHashVectors checks every row that a real Dovecot 2.3.19.1 printed.
func TestUserHashVectors(t *testing.T) {
	vectors := rows(t, "user-hash-vectors.tsv", 5)
	if len(vectors) != 420 {
		t.Fatalf("got %d vectors, want 420", len(vectors))
	}
	for _, row := range vectors {
		format, err := ParseFormat(row[0])
		if err != nil {
			t.Fatal(err)
		}
		hash := format.Hash(row[1])
		if got := strconv.FormatUint(uint64(hash), 10); got != row[2] {
			t.Errorf("%s of %q = %s, want %s", row[0], row[1], got, row[2])
		}
		for i, r := range []*Ring{mixed, equal} {
			// No host is given for names that Dovecot's admin command takes as hashes.
			if want := row[3+i]; want == "" {
				if _, ok := ParseHash(row[1]); !ok {
					t.Errorf("%s of %q: no host in the vector", row[0], row[1])
				}
			} else if got, _ := r.Lookup(hash); got.String() != want {
				t.Errorf("host of %q (%s, ring %d) = %s, want %s", row[1], row[0], i, got, want)
			}
		}
	}
}

// TestTagVectors checks the rings of six tags over IPv4 and IPv6 hosts, some down, some with weight 0.
func TestTagVectors(t *testing.T) {
	hosts := map[string]map[string]int{ // those that are up
		"":    {"10.1.0.9": 100, "fd00::2": 0, "fd00::10": 37, "fd00::11": 100, "fd00::12": 100},
		"a":   {"10.1.0.1": 100},
		"b":   {"10.1.0.3": 100, "fd00::1": 100, "fd00::5": 10},
		"r":   {"10.1.0.20": 100, "10.1.0.21": 100, "10.1.0.22": 100, "10.1.0.23": 100},
		"loc": {"127.0.0.1": 100},
	}
	format, err := ParseFormat(DefaultFormat)
	if err != nil {
		t.Fatal(err)
	}
	vectors := rows(t, "tag-ipv6-vectors.tsv", 3)
	if len(vectors) != 96 {
		t.Fatalf("got %d vectors, want 96", len(vectors))
	}
	for _, row := range vectors {
		got := ""
		if addr, ok := ring(hosts[row[1]]).Lookup(format.Hash(row[0])); ok {
			got = addr.String()
		}
		if got != row[2] {
			t.Errorf("host of %q in tag %q = %q, want %q", row[0], row[1], got, row[2])
		}
	}
}

// TestLiteralHashes: the table "Looking up literal hash values" of user-hash.md.
func TestLiteralHashes(t *testing.T) {
	for _, tt := range []struct{ argument, mixed, equal string }{
		{"0", "10.1.0.1", "10.1.0.4"},
		{"123456", "10.1.0.1", "10.1.0.4"},
		{"1234567890", "10.1.0.1", "10.1.0.1"},
		{"4294967295", "10.1.0.1", "10.1.0.4"},
	} {
		hash, ok := ParseHash(tt.argument)
		if !ok {
			t.Fatalf("ParseHash(%q) is not a hash", tt.argument)
		}
		if got, _ := mixed.Lookup(hash); got.String() != tt.mixed {
			t.Errorf("mixed ring, hash %s: %s, want %s", tt.argument, got, tt.mixed)
		}
		if got, _ := equal.Lookup(hash); got.String() != tt.equal {
			t.Errorf("equal ring, hash %s: %s, want %s", tt.argument, got, tt.equal)
		}
	}
	for _, name := range []string{"4294967296", "-1", "+1", "1 ", "0x10", "1_0", "", "user"} {
		if _, ok := ParseHash(name); ok {
			t.Errorf("ParseHash(%q) is a hash, want a name", name)
		}
	}
}

// TestFormats: the table "Hash values under further formats" of user-hash.md.
func TestFormats(t *testing.T) {
	for _, tt := range []struct {
		format string
		want   uint32
	}{
		{"%Uu", 173161300},
		{"%Hu", 3830863909},
		{"%5u", 1804635000},
		{"%.5Mu", 2745510166},
		{"%{md5:user}", 138119041},
		{"", 3558706393},
		{"const", 1719720864},
	} {
		f, err := ParseFormat(tt.format)
		if err != nil {
			t.Errorf("ParseFormat(%q): %v", tt.format, err)
			continue
		}
		if got := f.Hash("User1@x.test"); got != tt.want {
			t.Errorf("%q hashes User1@x.test to %d, want %d", tt.format, got, tt.want)
		}
	}
}

// TestExpansion: the key before it is hashed, for the general rules of variable expansion.
func TestExpansion(t *testing.T) {
	for _, tt := range []struct{ format, want string }{
		{"%u", "User1@x.test"},
		{"%{user}|%{username}|%{domain}", "User1@x.test|User1|x.test"},
		{"100%% %d", "100% x.test"},
		{"%u%", "User1@x.test"},
		{"%2.3u", "er1"},
		{"%-4.u", "test"},
		{"%-4.2u", "te"},
		{"%-99.2u", "Us"},
		{"%99.u", ""},
		{"%.-5u", "User1@x"},
		{"%.-12u", ""},
		{"%.-13u", "User1@x.test"},
		{"%-5u", "User1"},
		{"%08n", "000User1"},
		{"%02n", "User1"},
		{"%LUn", "USER1"},
		{"%ULn", "user1"},
		{"%256Hu", "f4"},
		{"%4.256Hu", "00f4"},
		{"%Mn", "6b908b785fdba05a6446347dae08d8c5"},
		{"%{sha1:domain}", "88870ddc91f96a28c6dbfe1f4f1d96b1159fd175"},
	} {
		f, err := ParseFormat(tt.format)
		if err != nil {
			t.Errorf("ParseFormat(%q): %v", tt.format, err)
			continue
		}
		if got := string(f.Append(nil, "User1@x.test")); got != tt.want {
			t.Errorf("%q expands to %q, want %q", tt.format, got, tt.want)
		}
	}
}

func TestFormatErrors(t *testing.T) {
	for _, tt := range []struct{ format, want string }{
		{"%{bogus}", "unknown variable '%bogus'"},
		{"%Lq", "unknown variable '%q'"},
		{"x%Ru", "modifier 'R' is not supported"},
		{"%{crc99:user}", `unknown variable '%crc99:user' (hash method "crc99")`},
		{"%{md5:bogus}", "unknown variable '%md5:bogus'"},
		{"%{user", "variable '%{user' lacks its closing brace"},
		{"%L", `modifier "L" without a variable`},
		{"%0999999999u", `number "099999" is too large, at most 65536`},
		{"%.-3Hu", "modifiers H and N need a positive width, not -3"},
	} {
		_, err := ParseFormat(tt.format)
		if want := fmt.Sprintf("username hash format %q: %s", tt.format, tt.want); err == nil || err.Error() != want {
			t.Errorf("ParseFormat(%q) = %v, want %s", tt.format, err, want)
		}
	}
}

func TestEmptyRing(t *testing.T) {
	for _, r := range []*Ring{NewRing(nil), ring(map[string]int{"10.1.0.1": 0, "10.1.0.2": -1})} {
		if addr, ok := r.Lookup(1); ok {
			t.Errorf("a ring without points has host %s", addr)
		}
	}
}

// FuzzFormat: whatever parses can be expanded, and no hash is 0.
func FuzzFormat(f *testing.F) {
	for _, seed := range []string{"%Lu", "%Ln@%Ld", "%-3.02Mu", "%{md5:user}", "%3.17Nd", "%%%"} {
		f.Add(seed, "User@X.test")
	}
	f.Fuzz(func(t *testing.T, text, user string) {
		format, err := ParseFormat(text)
		if err != nil {
			return
		}
		if format.Hash(user) == 0 {
			t.Errorf("%q hashes %q to 0", text, user)
		}
	})
}

func BenchmarkHash(b *testing.B) {
	format, _ := ParseFormat(DefaultFormat)
	b.ReportAllocs()
	for b.Loop() {
		format.Hash("Some.User@Example.com")
	}
}

func BenchmarkRingLookup(b *testing.B) {
	var hash uint32
	for b.Loop() {
		hash += 2654435761
		equal.Lookup(hash)
	}
}

func BenchmarkNewRing(b *testing.B) {
	for b.Loop() {
		ring(map[string]int{"10.1.0.1": 1000, "10.1.0.2": 1000})
	}
}
