package client

import (
	"context"
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"
	"time"
)

// Direction is where bulk data goes.
type Direction int

// The directions, seen from the client.
const (
	Download Direction = iota
	Upload
)

// Result is what a load generator measured.
type Result struct {
	Sessions      int
	Elapsed       time.Duration
	Requests      uint64 // rounds completed (bulk: none)
	Bytes         uint64 // payload, both directions together
	P50, P99, Max time.Duration
}

// PerSecond returns the rounds per second.
func (r Result) PerSecond() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// Gbps returns the payload in 10^9 bits per second.
func (r Result) Gbps() float64 { return float64(r.Bytes) * 8 / 1e9 / r.Elapsed.Seconds() }

// PingPong does rounds of request bytes answered by reply bytes, one after the other on each session, for
// some time. The sessions can be used afterwards.
func PingPong(ctx context.Context, sessions []*Session, request, reply int, d time.Duration) (Result, error) {
	var stop atomic.Bool
	var h histogram
	r, err := load(ctx, sessions, d, &stop, func(s *Session) error {
		command := fmt.Sprintf("X-PINGPONG %d %d", request, reply)
		return s.do(command, func() error {
			s.conn.SetDeadline(time.Now().Add(d + s.cfg.Timeout))
			if err := s.send(command); err != nil {
				return err
			}
			out, in := make([]byte, request), make([]byte, reply)
			for !stop.Load() {
				begin := time.Now()
				if _, err := s.conn.Write(out); err != nil {
					return err
				}
				if _, err := io.ReadFull(s.r, in); err != nil {
					return err
				}
				h.add(time.Since(begin))
			}
			out[0] = 'Q'
			if _, err := s.wire.Write(out); err != nil {
				return err
			}
			_, err := s.final(nil)
			return err
		})
	})
	r.Requests = h.count()
	r.Bytes = r.Requests * uint64(request+reply)
	r.P50, r.P99, r.Max = h.quantile(0.5), h.quantile(0.99), h.quantile(1)
	return r, err
}

// bulkChunk is how much one bulk command moves. The next command is always under way before one is finished,
// so the round trip between two does not show, and a test of 32 sessions still ends soon after its time.
const bulkChunk = 4 << 20

// Bulk moves data as fast as it goes, on all sessions at the same time. Bytes are counted while they
// come (Download) or are accepted by the kernel (Upload), up to the moment when the time is over. The sessions can be
// used afterwards.
func Bulk(ctx context.Context, sessions []*Session, dir Direction, d time.Duration) (Result, error) {
	var stop atomic.Bool
	var total atomic.Uint64
	r, err := load(ctx, sessions, d, &stop, func(s *Session) error {
		b := &bulk{s: s, dir: dir, stop: &stop, total: &total, buf: make([]byte, 256<<10)}
		return s.do("bulk", b.run)
	})
	r.Bytes = total.Load()
	return r, err
}

type bulk struct {
	s     *Session
	dir   Direction
	stop  *atomic.Bool
	total *atomic.Uint64
	buf   []byte
}

func (b *bulk) run() error {
	tag, err := b.begin()
	for err == nil {
		last := b.stop.Load()
		next := ""
		if !last {
			if next, err = b.begin(); err != nil {
				return err
			}
		}
		if err = b.finish(tag); last {
			return err
		}
		tag = next
	}
	return err
}

// begin sends a command, and in an upload all of its data.
func (b *bulk) begin() (tag string, err error) {
	b.s.conn.SetDeadline(time.Now().Add(b.s.cfg.Timeout))
	if b.dir == Download {
		err = b.s.send(fmt.Sprintf("X-SOURCE %d 0", bulkChunk))
	} else if err = b.s.send(fmt.Sprintf("X-DISCARD %d", bulkChunk)); err == nil {
		err = b.move(b.s.conn.Write)
	}
	return b.s.tag, err
}

// finish reads the answer to an earlier command, and in a download all of its data.
func (b *bulk) finish(tag string) error {
	if b.dir == Download {
		if err := b.move(b.s.r.Read); err != nil {
			return err
		}
	}
	b.s.tag = tag
	_, err := b.s.final(nil)
	return err
}

func (b *bulk) move(f func([]byte) (int, error)) error {
	for left := bulkChunk; left > 0; {
		n, err := f(b.buf[:min(left, len(b.buf))])
		left -= n
		if !b.stop.Load() {
			b.total.Add(uint64(n))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// load runs f on all sessions and sets stop when the time is over.
func load(ctx context.Context, sessions []*Session, d time.Duration, stop *atomic.Bool, f func(*Session) error) (Result, error) {
	r := Result{Sessions: len(sessions)}
	begin := time.Now()
	timed := make(chan struct{})
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	go func() {
		<-ctx.Done()
		stop.Store(true)
		r.Elapsed = time.Since(begin)
		close(timed)
	}()
	report := Each(sessions, func(_ int, s *Session) error { return f(s) })
	cancel() // all have failed
	<-timed
	return r, report.Err()
}

// histogram counts durations in buckets of at most 1/16 relative width.
type histogram [16 * 44]atomic.Uint64

func bucket(d time.Duration) int {
	n := uint64(max(d, 0))
	if n < 32 {
		return int(n)
	}
	e := bits.Len64(n) - 5
	return min(16*e+int(n>>e), 16*44-1)
}

// upper is the largest duration that falls into a bucket.
func upper(i int) time.Duration {
	if i < 32 {
		return time.Duration(i)
	}
	e := i/16 - 1
	return time.Duration((i-16*e+1)<<e - 1)
}

func (h *histogram) add(d time.Duration) { h[bucket(d)].Add(1) }

func (h *histogram) count() (n uint64) {
	for i := range h {
		n += h[i].Load()
	}
	return n
}

// quantile returns the duration that a share q of all stayed below.
func (h *histogram) quantile(q float64) time.Duration {
	want := uint64(q * float64(h.count()))
	var n uint64
	last := 0
	for i := range h {
		if c := h[i].Load(); c > 0 {
			last = i
			if n += c; n >= max(want, 1) {
				break
			}
		}
	}
	return upper(last)
}
