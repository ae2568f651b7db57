package demo

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// usage is what a process has used; from proc_pid_stat(5).
type usage struct {
	cpu time.Duration // user and system time of all threads
	rss uint64        // bytes
}

// userHz is the unit of times in /proc, the same on every architecture that Go knows.
const userHz = 100

func readUsage(pid int) (usage, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	return parseUsage(b)
}

// parseUsage takes a stat line apart. The second field, the name, may contain blanks and parentheses.
func parseUsage(stat []byte) (usage, error) {
	// Fields by their number in the manual page, less those up to the name.
	const (
		utime = 14 - 3
		stime = 15 - 3
		rss   = 24 - 3
	)
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) <= rss {
		return usage{}, fmt.Errorf("process state %q: %d fields behind the name", stat, len(f))
	}
	var n [3]uint64
	for i, field := range []int{utime, stime, rss} {
		var err error
		if n[i], err = strconv.ParseUint(string(f[field]), 10, 64); err != nil {
			return usage{}, fmt.Errorf("process state %q: %w", stat, err)
		}
	}
	return usage{
		cpu: time.Duration(n[0]+n[1]) * (time.Second / userHz),
		rss: n[2] * uint64(os.Getpagesize()),
	}, nil
}
