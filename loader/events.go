package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/ringbuf"

	"usher/bpf"
	"usher/steer/handover"
)

// eventInterval is how often events are read. Nobody waits for one: an RST or a stop
// has had its effect on the packets already. Read in batches they cost nothing;
// woken up for each, a busy site would spend as much on the end of a session as on
// its hand-over.
const eventInterval = 50 * time.Millisecond

// Run calls f for each tuple about which the program has something to tell: its
// flow saw a FIN, a RST, a SYN or a newer epoch. Which one is in the flow. It returns
// nil when ctx ends.
func (k *Kernel) Run(ctx context.Context, f func(handover.Tuple)) error {
	ticker := time.NewTicker(eventInterval)
	defer ticker.Stop()
	var rec ringbuf.Record
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		k.events.SetDeadline(time.Unix(1, 0)) // do not wait
		for {
			err := k.events.ReadInto(&rec)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if errors.Is(err, os.ErrClosed) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("read events: %w", err)
			}
			if len(rec.RawSample) < int(unsafe.Sizeof(bpf.SpliceEvent{})) {
				continue
			}
			f(tupleOf((*bpf.SpliceEvent)(unsafe.Pointer(&rec.RawSample[0])).Key))
		}
	}
}

// Counters returns packets and bytes per verdict since the maps were made; the
// names are those of enum verdict in bpf/usher.h, in lower case.
func (k *Kernel) Counters() (map[string]Counter, error) {
	all := map[string]Counter{}
	for i, name := range k.verdicts {
		var perCPU []bpf.SpliceCounter
		if err := k.objs.Counters.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("read counters: %w", err)
		}
		var sum Counter
		for _, c := range perCPU {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		all[name] = sum
	}
	return all, nil
}

// Counter counts packets and the bytes of their frames.
type Counter struct{ Packets, Bytes uint64 }

// verdictNames reads the names of enum verdict from the object's own type information.
func verdictNames(types *btf.Spec) ([]string, error) {
	var e *btf.Enum
	if err := types.TypeByName("verdict", &e); err != nil {
		return nil, fmt.Errorf("read names of verdicts: %w", err)
	}
	names := make([]string, bpf.SpliceVerdictVERDICT_MAX)
	for _, v := range e.Values {
		if v.Value < uint64(len(names)) {
			names[v.Value] = strings.ToLower(strings.TrimPrefix(v.Name, "VERDICT_"))
		}
	}
	return names, nil
}
