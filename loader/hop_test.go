package loader_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"usher/bpf"
	"usher/director"
	"usher/loader"
	"usher/loader/netns"
	"usher/testenv/lab"
)

// The next hop towards the backend changes, and the old one is dead from then on. Sessions
// find the new one: silent ones with their first packet, busy ones with a retransmission, or with the
// acknowledgement of one when it is only acknowledgements that take this way.
func TestNextHopChanges(t *testing.T) {
	needRoot(t)
	for _, change := range []string{"network card", "gateway"} {
		for _, traffic := range []string{"none", "round trips", "to the backend", "to the client"} {
			for _, family := range []int{4, 6} {
				cfg := loader.Config{Clsact: family == 6} // each way to attach once
				t.Run(fmt.Sprintf("%s/%s/ipv%d", change, traffic, family), func(t *testing.T) {
					l, err := lab.New(lab.Options{Family: family})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() {
						if err := l.Close(); err != nil {
							t.Error(err)
						}
					})
					nextHopChanges(t, l, l.Net(family), cfg, change, traffic)
				})
			}
		}
	}
}

func nextHopChanges(t *testing.T, l *lab.Lab, n lab.Net, cfg loader.Config, change, traffic string) {
	pins := bpffs(t)
	cfg.PinPath = pins
	k := open(t, l, cfg)
	if err := k.PutEntry(director.Key{Hash: 1}, n.Backends[0], 1, true); err != nil {
		t.Fatal(err)
	}
	client, backend, _ := splice(t, l, k, n)
	var moved atomic.Int64
	go flood(client, backend, traffic, &moved)
	time.Sleep(700 * time.Millisecond) // long enough to be a pause, too

	card := net.HardwareAddr{2, 0, 0, 0x55, 0x53, 0x48}
	if hop := learntHop(t, pins); hop.String() == card.String() {
		t.Fatalf("next hop is %v before the change", hop)
	}
	changeHop(t, l, n, change, card)
	if traffic == "none" {
		begin := time.Now()
		if _, err := client.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(backend, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 150*time.Millisecond {
			t.Errorf("the first packet after a pause took %v: it was lost", took)
		}
	}
	begin := time.Now()
	await(t, "the new next hop", func() bool { return learntHop(t, pins).String() == card.String() })
	t.Logf("learnt after %v", time.Since(begin).Round(time.Millisecond))
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the new next hop was learnt after %v only", took)
	}
	if traffic == "none" {
		return
	}
	// Not by one retransmission after the other.
	await(t, "the traffic to go on", func() bool {
		before := moved.Load()
		time.Sleep(500 * time.Millisecond)
		return moved.Load()-before > 500
	})
}

// flood moves bytes between the far ends until they are closed.
func flood(client, backend *net.TCPConn, traffic string, moved *atomic.Int64) {
	count := func(r io.Reader) {
		for b := make([]byte, 64<<10); ; {
			n, err := r.Read(b)
			if moved.Add(int64(n)); err != nil {
				return
			}
		}
	}
	endless := func(w io.Writer) {
		for b := make([]byte, 64<<10); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}
	switch traffic {
	case "round trips":
		go io.Copy(backend, backend)
		for b := make([]byte, 1); ; moved.Add(1) {
			if _, err := client.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(client, b); err != nil {
				return
			}
		}
	case "to the backend":
		go endless(client)
		count(backend)
	case "to the client":
		go endless(backend)
		count(client)
	}
}

// learntHop returns where the client's packets are sent to.
func learntHop(t *testing.T, pins string) net.HardwareAddr {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(pins, "layout-1", "flows"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var key bpf.SpliceFlowKey
	var f bpf.SpliceFlow
	for it := m.Iterate(); it.Next(&key, &f); {
		if bpf.SpliceFlowSide(f.Side) == bpf.SpliceFlowSideSIDE_CLIENT {
			return f.Dmac[:]
		}
	}
	t.Fatal("no flow of the client")
	return nil
}

// changeHop gives the backends' machine another card, so that nobody answers to the old
// address, and tells the director's kernel: as the backend's neighbour entry, or as that of
// a gateway to which a new route leads.
func changeHop(t *testing.T, l *lab.Lab, n lab.Net, change string, card net.HardwareAddr) {
	t.Helper()
	at := n.Backends[0]
	link := func(ns *netns.NS, name string) netlink.Link {
		t.Helper()
		x, err := ns.Netlink().LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	near, far := link(l.Director, l.BackendLink), link(l.Backend, "eth0")
	// Permanent: what one asks for tells the other nothing.
	neighbour := func(ns *netns.NS, x netlink.Link, a netip.Addr, mac net.HardwareAddr) {
		t.Helper()
		if err := ns.Netlink().NeighSet(&netlink.Neigh{
			LinkIndex: x.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac,
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Backend.Netlink().LinkSetHardwareAddr(far, card); err != nil {
		t.Fatal(err)
	}
	neighbour(l.Backend, far, n.DirectorBackend, near.Attrs().HardwareAddr)
	if change == "network card" {
		neighbour(l.Director, near, at, card)
		return
	}
	gateway := n.Backends[1]
	neighbour(l.Director, near, at, far.Attrs().HardwareAddr) // the old one: only the route leads to the new one
	neighbour(l.Director, near, gateway, card)
	if err := l.Director.AddRoute(netip.PrefixFrom(at, at.BitLen()), gateway); err != nil {
		t.Fatal(err)
	}
}
