package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/cilium/ebpf"

	"usher/cmd/internal/site"
	"usher/loader/netns"
	"usher/testenv/client"
	"usher/testenv/lab"
)

// Round and length of each measurement: short ones, in turns, since the machine is
// never quite quiet. What counts are the ratios within one run.
const (
	benchRounds   = 7
	benchDuration = time.Second
)

// variant is one way from a client to a backend.
type variant struct {
	name   string
	mode   string // of the daemon; empty: the director forwards IP packets, without a proxy
	xdpSet bool   // the interfaces are set up for native XDP, which costs bulk on veth
	site   *site.Site
}

func (v *variant) config(i int) client.Config {
	c := v.site.Client(fmt.Sprintf("user%d", i))
	if v.mode == "" {
		c.Server = netip.AddrPortFrom(v.site.Hosts[i%len(v.site.Hosts)], 143)
	}
	return c
}

func (v *variant) open(b *testing.B) {
	o := site.Options{Mode: v.mode, Env: []string{asCommand + "=1"}}
	o.Lab = lab.Options{Family: 4, Clients: 4}
	s, err := site.New(o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	v.site = s
	if v.xdpSet {
		if err := s.Lab.XDPReady(true); err != nil {
			b.Fatal(err)
		}
	}
	if v.mode == "" {
		err = s.Lab.SetForwarding(true)
	} else {
		err = s.Start(context.Background())
	}
	if err != nil {
		b.Fatal(err)
	}
}

// sessions logs in n of them and waits until they are where they belong.
func (v *variant) sessions(b *testing.B, n int) []*client.Session {
	all, report := client.DialAll(context.Background(), n, 32, v.config)
	if err := report.Err(); err != nil {
		b.Fatalf("%s: %v", v.name, err)
	}
	for deadline := time.Now().Add(20 * time.Second); v.mode == "tc" || v.mode == "xdp"; {
		st, err := v.site.Admin.Status(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		if st.Sessions.TC+st.Sessions.XDP >= n {
			break
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s: %+v after 20 s, want %d sessions in the kernel", v.name, st.Sessions, n)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return all
}

// busy returns the machine's CPU time that was not idle.
func busy() time.Duration {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	var ticks time.Duration
	for i, f := range strings.Fields(line)[1:] {
		if n, err := strconv.Atoi(f); err == nil && i != 3 && i != 4 && i < 8 { // idle, iowait; guest counts in user
			ticks += time.Duration(n)
		}
	}
	return ticks * time.Second / 100
}

// processCPU returns the CPU time of a process, user and system.
func processCPU(pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * time.Second / 100
}

// shuffled: what runs behind a costly neighbour must not always be the same one.
func shuffled(variants []*variant) []*variant {
	s := slices.Clone(variants)
	rand.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// BenchmarkSite measures whole sites side by side: make bench.
func BenchmarkSite(b *testing.B) {
	if err := netns.Available(); err != nil {
		b.Skip(err)
	}
	variants := []*variant{
		{name: "direct"},
		{name: "tc", mode: "tc"},
		{name: "splice", mode: "splice"},
		{name: "copy", mode: "copy"},
		{name: "direct, XDP settings", xdpSet: true},
		{name: "xdp", mode: "xdp", xdpSet: true},
	}
	for _, v := range variants {
		v.open(b)
	}
	b.Run("Traffic", func(b *testing.B) { benchTraffic(b, variants) })
	b.Run("Logins", func(b *testing.B) { benchLogins(b, variants[1:4]) })
	b.Run("Memory", func(b *testing.B) { benchMemory(b, variants[1]) })
}

func benchTraffic(b *testing.B, variants []*variant) {
	type load struct {
		name     string
		sessions int
		run      func([]*client.Session) (client.Result, error)
		bulk     bool
	}
	ctx := context.Background()
	ping := func(req, rep int) func([]*client.Session) (client.Result, error) {
		return func(s []*client.Session) (client.Result, error) {
			return client.PingPong(ctx, s, req, rep, benchDuration)
		}
	}
	bulk := func(s []*client.Session) (client.Result, error) {
		return client.Bulk(ctx, s, client.Download, benchDuration)
	}
	loads := []load{
		{"1 B round trips, 64 sessions", 64, ping(1, 1), false},
		{"1 B round trips, 256 sessions", 256, ping(1, 1), false},
		{"64 B -> 1 KiB, 64 sessions", 64, ping(64, 1024), false},
		{"bulk, 1 session", 1, bulk, true},
		{"bulk, 32 sessions", 32, bulk, true},
	}
	w := table()
	fmt.Fprintln(w, "load\tway\trate\tp50\tp99\tCPU\tto direct\tto copy\t")
	for _, l := range loads {
		rates := map[*variant][]float64{}
		cpus := map[*variant][]float64{}
		last := map[*variant]client.Result{}
		open := map[*variant][]*client.Session{}
		for _, v := range variants {
			open[v] = v.sessions(b, l.sessions)
		}
		for range benchRounds {
			for _, v := range shuffled(variants) {
				before := busy()
				r, err := l.run(open[v])
				if err != nil {
					b.Fatalf("%s: %s: %v", l.name, v.name, err)
				}
				rate, units := r.PerSecond(), float64(r.Requests)
				if l.bulk {
					rate, units = r.Gbps(), float64(r.Bytes)/1e9
				}
				rates[v] = append(rates[v], rate)
				cpus[v] = append(cpus[v], (busy()-before).Seconds()/units)
				last[v] = r
			}
		}
		base := map[bool]float64{variants[0].xdpSet: median(rates[variants[0]]), variants[4].xdpSet: median(rates[variants[4]])}
		for _, v := range variants {
			rate, cpu := median(rates[v]), median(cpus[v])
			text := fmt.Sprintf("%.0f/s\t%v\t%v\t%.1f us", rate, last[v].P50, last[v].P99, cpu*1e6)
			if l.bulk {
				text = fmt.Sprintf("%.2f Gb/s\t\t\t%.2f s/GB", rate, cpu)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t%.2f\t\n", l.name, v.name, text, rate/base[v.xdpSet], rate/median(rates[variants[3]]))
			client.CloseAll(open[v])
		}
	}
	w.Flush()
}

// benchLogins compares the whole life of a short session with and without hand-over.
func benchLogins(b *testing.B, variants []*variant) {
	const workers, stay = 80, 90 * time.Millisecond // long enough to be handed over
	cpu := map[*variant][]float64{}
	own := map[*variant][]float64{}
	rate := map[*variant][]float64{}
	for range benchRounds {
		for _, v := range shuffled(variants) {
			var n atomic.Int64
			var next atomic.Int64
			before, ownBefore, begin := busy(), processCPU(v.site.Pid()), time.Now()
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					for time.Since(begin) < 2*time.Second {
						s, err := client.Dial(context.Background(), v.config(int(next.Add(1))%1000))
						if err != nil {
							b.Errorf("%s: %v", v.name, err)
							return
						}
						time.Sleep(stay)
						if err := s.Logout(); err != nil {
							b.Errorf("%s: %v", v.name, err)
						}
						n.Add(1)
					}
				})
			}
			wg.Wait()
			cpu[v] = append(cpu[v], (busy()-before).Seconds()/float64(n.Load()))
			own[v] = append(own[v], (processCPU(v.site.Pid())-ownBefore).Seconds()/float64(n.Load()))
			rate[v] = append(rate[v], float64(n.Load())/time.Since(begin).Seconds())
		}
	}
	w := table()
	fmt.Fprintln(w, "logins\trate\tmachine CPU per login\tto splice\tdaemon's CPU\t")
	for _, v := range variants {
		fmt.Fprintf(w, "%s\t%.0f/s\t%.0f us\t%.2f\t%.0f us\t\n", v.name, median(rate[v]), median(cpu[v])*1e6,
			median(cpu[v])/median(cpu[variants[1]]), median(own[v])*1e6)
	}
	w.Flush()
}

// benchMemory measures what an idle session in the kernel costs: the growth between
// two numbers of sessions, so that what the daemon has anyway does not count.
func benchMemory(b *testing.B, v *variant) {
	const few, many = 2000, 8000
	idle := v.sessions(b, few)
	time.Sleep(time.Second)
	rss, maps := resident(v.site.Pid()), mapMemory(b, v.site.PinPath)
	more, report := client.DialAll(context.Background(), many-few, 32, func(i int) client.Config { return v.config(few + i) })
	if err := report.Err(); err != nil {
		b.Fatal(err)
	}
	defer func() { client.CloseAll(idle); client.CloseAll(more) }()
	for {
		st, err := v.site.Admin.Status(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		if st.Sessions.TC >= many {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(time.Second)
	w := table()
	per := func(grown float64) float64 { return grown / (many - few) }
	fmt.Fprintf(w, "memory per idle session in the kernel, each of another user\tbytes\t\n")
	fmt.Fprintf(w, "user space (RSS)\t%.0f\t\n", per(resident(v.site.Pid())-rss))
	for name, now := range mapMemory(b, v.site.PinPath) {
		fmt.Fprintf(w, "map %s\t%.0f\t\n", name, per(now-maps[name]))
	}
	w.Flush()
}

func resident(pid int) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseFloat(f[1], 64)
	return pages * float64(os.Getpagesize())
}

// mapMemory is what the kernel accounts for each map (from Linux 6.4 on by entries);
// its slabs round an element of the flow map up from 248 to 256 bytes.
func mapMemory(b *testing.B, pinPath string) map[string]float64 {
	all := map[string]float64{}
	for _, name := range []string{"flows", "users", "names"} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pinPath, "layout-1", name), &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			b.Fatal(err)
		}
		info, err := m.Info()
		if err != nil {
			b.Fatal(err)
		}
		n, _ := info.Memlock()
		all[name] = float64(n)
		m.Close()
	}
	return all
}

func table() *tabwriter.Writer {
	fmt.Fprintln(os.Stdout)
	return tabwriter.NewWriter(io.Writer(os.Stdout), 0, 0, 2, ' ', 0)
}
