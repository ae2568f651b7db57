package health

import "time"

// Verdict is what somebody says of a host.
type Verdict uint8

// The verdicts.
const (
	Unknown Verdict = iota // not enough checks, or none that mean anything
	Up
	Down
)

func (v Verdict) String() string { return [...]string{"unknown", "up", "down"}[v] }

// Rules are how many checks make an opinion, and how often it may change.
type Rules struct {
	Rise int // good checks in a row before up
	Fall int // bad checks in a row before down

	FlapLimit  int           // times down that are forgiven; 0: no damping
	FlapWindow time.Duration // up for so long: one time down less; and how long the first hold is
}

// holdDoublings bounds the hold of a host that flaps: 8 windows.
const holdDoublings = 3

// opinion is what this director thinks of a host. It has no clock.
type opinion struct {
	Rules
	verdict Verdict
	since   time.Time // of the verdict
	last    time.Time // result

	good, bad int       // in a row; one of them is 0
	proven    int       // of the bad ones: those that are the host's own fault
	pending   time.Time // when the last bad check began, while it is not proven
	running   time.Time // when the present check began; zero: none

	downs int       // times down that are not forgiven yet
	held  time.Time // not up before
}

// begin begins a check.
func (o *opinion) begin(now time.Time) { o.running = now }

// result ends it. What follows says settle.
func (o *opinion) result(now time.Time, good bool) {
	o.last = now
	if good {
		o.good, o.bad, o.proven, o.pending = o.good+1, 0, 0, time.Time{}
	} else {
		o.good, o.bad, o.pending = 0, o.bad+1, o.running
	}
	o.running = time.Time{}
}

// settle changes the verdict if it is time to, and reports that. wayOut is when the latest good check of another
// host began. If that was after our bad one had begun and before the next, the host was to blame; later ones
// prove nothing, as our uplink may have come back in between.
func (o *opinion) settle(now, wayOut time.Time) bool {
	if !o.pending.IsZero() && !wayOut.Before(o.pending) && (o.running.IsZero() || wayOut.Before(o.running)) {
		o.proven, o.pending = o.proven+1, time.Time{}
	}
	switch {
	case o.verdict != Down && o.proven >= o.Fall:
		o.fall(now)
	case o.verdict != Up && o.good >= o.Rise && !now.Before(o.held):
		o.verdict, o.since = Up, now
	default:
		return false
	}
	return true
}

func (o *opinion) fall(now time.Time) {
	// A host that was never up has not flapped.
	if o.verdict == Up && o.FlapLimit > 0 {
		forgiven := int(min(now.Sub(o.since)/o.FlapWindow, time.Duration(o.downs)))
		o.downs = min(o.downs-forgiven+1, o.FlapLimit+1+holdDoublings)
		if extra := o.downs - o.FlapLimit; extra > 0 {
			o.held = now.Add(o.FlapWindow << (extra - 1))
		}
	}
	o.verdict, o.since = Down, now
}

// doubtful: its checks are bad, but nothing shows that it is not our own fault.
func (o *opinion) doubtful() bool { return o.verdict != Down && o.bad >= o.Fall }

// says is the verdict that counts in a vote.
func (o *opinion) says() Verdict {
	if o.doubtful() {
		return Unknown
	}
	return o.verdict
}
