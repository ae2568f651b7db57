package health

import (
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestVote: each ballot is written as what a director says of the hosts 1 to 4: u, d, - (nothing), and in
// capital letters what it has said too long ago. The vote is about host 1.
func TestVote(t *testing.T) {
	for _, tt := range []struct {
		name    string
		ballots string
		want    Verdict
		down    int
		counted int
		leader  int // number of the ballot; 0: none
	}{
		{"nobody has checked", "---- -uuu", Unknown, 0, 0, 0},
		{"alone, up", "uuuu", Up, 0, 1, 1},
		{"alone, down", "duuu", Down, 1, 1, 1},
		{"alone, no host answers", "dddd", Unknown, 0, 0, 0},
		{"alone, the last host that is up", "uddd", Up, 0, 1, 1},
		{"alone, nothing is known of the others", "d---", Unknown, 0, 0, 0},
		{"alone, the only proof of a way out is too old", "dU--", Unknown, 0, 0, 0},
		{"alone, too old itself", "Duuu", Unknown, 0, 0, 0},
		{"one of two", "duuu uuuu", Up, 1, 2, 1},
		{"both of two", "duuu duuu", Down, 2, 2, 1},
		{"one of three", "duuu uuuu uuuu", Up, 1, 3, 1},
		{"two of three", "uuuu duuu duuu", Down, 2, 3, 1},
		{"two of four", "uuuu uuuu duuu duuu", Up, 2, 4, 1},
		{"three of four", "uuuu duuu duuu duuu", Down, 3, 4, 1},
		{"one of three has not checked it", "-uuu duuu duuu", Down, 2, 2, 2},
		{"one of three cannot be reached any more", "Uuuu duuu duuu", Down, 2, 2, 2},
		{"two of three cannot be reached any more", "UUUU UUUU duuu", Down, 1, 1, 3},
		{"two of three have a broken uplink", "dddd duuu dddd", Down, 1, 1, 2},
		{"two of three have a broken uplink, and disagree with the third", "dddd uuuu dddd", Up, 0, 1, 2},
		{"everybody's uplink is broken", "dddd dddd dddd", Unknown, 0, 0, 0},
		{"the hosts are split between two directors", "dduu uudd", Up, 1, 2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			ballots := map[netip.AddrPort]Ballot{}
			for i, text := range strings.Fields(tt.ballots) {
				b := Ballot{}
				for j, c := range text {
					s := Say{Up: c == 'u' || c == 'U', Until: now.Add(1)}
					if c < 'a' {
						s.Until = now
					}
					if c != '-' {
						b[address(j+1)] = s
					}
				}
				ballots[director(i+1)] = b
			}
			got := Vote(now, address(1), maps.All(ballots))
			want := Tally{Down: tt.down, Counted: tt.counted}
			if tt.leader > 0 {
				want.Leader = director(tt.leader)
			}
			if got != want || got.Verdict() != tt.want {
				t.Errorf("got %+v, %v, want %+v, %v", got, got.Verdict(), want, tt.want)
			}
		})
	}
}

func address(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 2, 0, byte(n)}) }

func director(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(n)}), 9090)
}
