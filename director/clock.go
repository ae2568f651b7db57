package director

import "time"

// clock turns moments (durations since the first Step) into the unix seconds that directors tell each other
// and back. The monotonic clock and the wall clock drift apart by tiny amounts, and one moment must not be
// one second now and the next one later: every entry near the edge would be told again. So the offset
// between the two is kept until the wall clock has really been set.
type clock struct {
	known bool
	wall  time.Duration // of moment 0, since 1970
}

// clockStep is from when on a difference is taken as the wall clock having been set.
const clockStep = 2 * time.Second

// lastSecond bounds what peers say, so that no sum overflows.
const lastSecond = 1 << 33

func bounded(unix int64) int64 { return min(max(unix, 0), lastSecond) }

func (c *clock) set(now time.Time, at time.Duration) {
	wall := time.Duration(now.UnixNano()) - at
	if off := wall - c.wall; !c.known || off >= clockStep || off <= -clockStep {
		c.known, c.wall = true, wall
	}
}

// unix returns the second of a moment.
func (c *clock) unix(at time.Duration) int64 { return int64((at + c.wall) / time.Second) }

// moment returns the beginning of a second.
func (c *clock) moment(unix int64) time.Duration {
	return time.Duration(bounded(unix))*time.Second - c.wall
}
