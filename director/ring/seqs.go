package ring

import "usher/director"

// window is how many of a director's last commands are remembered one by one.
const window = 1024

// seqs are the sequence numbers that were seen of one director's commands. Dovecot's directors remember the
// highest only: what has a lower number was seen. That is so as long as all connections stay as they are. When a
// new one opens a shorter way, younger commands overtake older ones that are still on the long way, and those
// would be lost: a move that some directors never hear of takes 30 seconds.
type seqs struct {
	last uint32
	seen [window / 64]uint64 // by number modulo window: of last and those before it
}

// A seqState is what a number says about its command.
type seqState uint8

const (
	fresh seqState = iota // higher than all
	late                  // it was overtaken
	seen
)

func (s *seqs) mark(seq uint32)     { s.seen[seq%window/64] |= 1 << (seq % 64) }
func (s *seqs) clear(seq uint32)    { s.seen[seq%window/64] &^= 1 << (seq % 64) }
func (s *seqs) has(seq uint32) bool { return s.seen[seq%window/64]&(1<<(seq%64)) != 0 }

// see notes a number.
func (s *seqs) see(seq uint32) seqState {
	switch {
	case seq > s.last:
		if s.last == 0 || seq-s.last >= window {
			s.seen = [window / 64]uint64{}
		} else {
			for n := s.last + 1; n != seq; n++ {
				s.clear(n)
			}
		}
	case s.last-seq >= window || s.has(seq):
		return seen
	default:
		s.mark(seq)
		return late
	}
	s.last = seq
	s.mark(seq)
	return fresh
}

// mayBeLate: the command means the same when a younger one of the same director was heard before. What changes
// hosts does not, nor a move of which nobody says when it was ordered.
func mayBeLate(m director.Message) bool {
	switch m := m.(type) {
	case director.UserMove:
		return m.Ordered != 0
	case director.UserWeak, director.UserKick, director.UserKickAlt, director.UserKickHash, director.UserKilledEverywhere:
		return true
	}
	return false
}
