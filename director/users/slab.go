package users

// chunkSize is the number of elements of a chunk: large enough that the chunks' own cost vanishes,
// small enough that an empty directory is small.
const chunkSize = 1024

// slab is an array that grows without moving its elements and reuses dropped ones. Elements are
// referred to by number, which takes half the room of a pointer.
type slab[T any] struct {
	chunks [][]T
	free   []uint32
}

// add returns the number of a zero element.
func (s *slab[T]) add() uint32 {
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		return i
	}
	last := len(s.chunks) - 1
	if last < 0 || len(s.chunks[last]) == chunkSize {
		s.chunks = append(s.chunks, make([]T, 0, chunkSize))
		last++
	}
	s.chunks[last] = s.chunks[last][:len(s.chunks[last])+1]
	return s.len() - 1
}

// at returns the element with a number.
func (s *slab[T]) at(i uint32) *T { return &s.chunks[i/chunkSize][i%chunkSize] }

// drop gives the element back, which the caller has set to zero.
func (s *slab[T]) drop(i uint32) { s.free = append(s.free, i) }

// len returns one more than the highest number ever given out.
func (s *slab[T]) len() uint32 {
	if len(s.chunks) == 0 {
		return 0
	}
	last := len(s.chunks) - 1
	return uint32(last*chunkSize + len(s.chunks[last]))
}
