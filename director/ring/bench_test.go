package ring

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"usher/director"
)

// BenchmarkLogins: users log in at the members of a ring of four, each at one of them, and all must hear
// of it. All members share one core here, and the network costs nothing: the figure is what the codec, the
// state machines and the directors need together.
func BenchmarkLogins(b *testing.B) {
	w := newRealNetwork(b, 4)
	for i := range w.nodes {
		w.start(i + 1)
	}
	const batch = 100 // logins that are on their way at a time, per member
	users := make([]string, 200_000)
	for i := range users {
		users[i] = fmt.Sprintf("user%d@example.com", i)
	}
	n := 0
	for b.Loop() {
		node := w.nodes[n/batch%4]
		node.ring.Step(w.now, director.Lookup{Request: uint64(n), User: users[n%len(users)]})
		if n++; n%batch == 0 {
			w.carry(node, nil)
			w.settle()
		}
		if n%len(users) == 0 {
			w.now = w.now.Add(time.Second) // so that each is news again
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "logins/s")
}

// BenchmarkJoin: a director joins a ring in which there are a million users.
func BenchmarkJoin(b *testing.B) {
	const users = 1_000_000
	for b.Loop() {
		b.StopTimer()
		w := newRealNetwork(b, 3)
		w.start(1)
		w.start(2)
		for i := range users {
			node := w.nodes[0]
			node.ring.Step(w.now, director.Lookup{Request: uint64(i), User: fmt.Sprintf("user%d@example.com", i)})
			if i%10000 == 0 {
				w.carry(node, nil)
				w.settle()
			}
		}
		w.wait(10 * time.Second)
		runtime.GC()
		b.StartTimer()
		began := time.Now()
		w.start(3)
		took := time.Since(began)
		b.StopTimer()
		if r := w.nodes[2].ring; !r.synced || r.left == nil || r.left.users < users*999/1000 { // some have the same hash
			b.Fatalf("not in, %d users: %v", w.nodes[2].ring.left.users, w)
		}
		b.ReportMetric(took.Seconds(), "s/join")
		b.StartTimer()
	}
}

// BenchmarkHearUser: one USER line that is news, at one director with two neighbours.
func BenchmarkHearUser(b *testing.B) {
	w := newRealNetwork(b, 3)
	for i := range w.nodes {
		w.start(i + 1)
	}
	node := w.nodes[0]
	left := node.ring.left.id
	var block []byte
	const lines = 1000
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		if n%lines == 0 {
			b.StopTimer()
			w.now = w.now.Add(time.Second)
			block = block[:0]
			for i := range lines {
				block = fmt.Appendf(block, "USER\t%d\t127.0.2.%d\t%d\n", (n+i)%200_000*7919, 1+i%2, w.now.Unix())
			}
			for _, c := range node.ring.conns {
				c.lastRead = w.now // nobody shall be missed
				c.queue, c.queued = nil, 0
			}
			b.StartTimer()
			node.ring.Hear(w.now, Received{Conn: left, Data: block})
			node.ring.Actions()
		}
		n++
	}
}
