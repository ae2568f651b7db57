package penalty

import (
	"encoding/binary"
	"hash/maphash"
	"time"
)

// familiarBits is the size of each of the two bitmaps: 1 MiB. A million addresses at once make one stranger in twenty
// look familiar, which costs nothing worse than that it waits in the other queue.
const familiarBits = 1 << 23

// familiar remembers the addresses from which somebody has logged in, without a place for each: two bits of a bitmap. There
// are two bitmaps, of the present and of the last period, so that an address is remembered for one to two periods.
type familiar struct {
	seed          maphash.Seed
	present, last []uint64
	begun         time.Duration
}

func newFamiliar(seed maphash.Seed) familiar {
	return familiar{seed: seed, present: make([]uint64, familiarBits/64), last: make([]uint64, familiarBits/64)}
}

// turn begins a new period when the present one is over.
func (f *familiar) turn(now, period time.Duration) {
	passed := now - f.begun
	if passed < period {
		return
	}
	f.last, f.present = f.present, f.last
	clear(f.present)
	if passed >= 2*period {
		clear(f.last)
	}
	f.begun = now
}

func (f *familiar) add(k key) {
	a, b := f.bits(k)
	f.present[a/64] |= 1 << (a % 64)
	f.present[b/64] |= 1 << (b % 64)
}

func (f *familiar) has(k key) bool {
	a, b := f.bits(k)
	for _, m := range [...][]uint64{f.present, f.last} {
		if m[a/64]&(1<<(a%64)) != 0 && m[b/64]&(1<<(b%64)) != 0 {
			return true
		}
	}
	return false
}

// bits are those of an address; nobody can choose addresses whose bits are another's.
func (f *familiar) bits(k key) (a, b uint64) {
	var text [9]byte
	binary.BigEndian.PutUint64(text[:], k.bits)
	if k.v6 {
		text[8] = 6
	}
	sum := maphash.Bytes(f.seed, text[:])
	return sum % familiarBits, sum >> 32 % familiarBits
}
