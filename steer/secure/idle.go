package secure

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"sync"
	"unsafe"
)

// A tls.Conn keeps the buffer of the largest record that it has read, up to 40 KiB, for as long as it lives, and the library
// has no way to take it back. So the buffer is lent to it: put in when there is something to read, and taken out when
// nothing is left in it. Only the goroutine that reads a connection touches these fields, inside Read, which we are not.
//
// Where the library looks different one day, the buffers stay where they are; TestIdleTLS of package steer notices.
var (
	rawInputAt, lendable = field("rawInput", reflect.TypeFor[bytes.Buffer]())
	inputAt, _           = field("input", reflect.TypeFor[bytes.Reader]())
	handAt, _            = field("hand", reflect.TypeFor[bytes.Buffer]())
)

// field is where a tls.Conn has a field; ok is false when any of them is not what we know.
func field(name string, want reflect.Type) (at uintptr, ok bool) {
	f, ok := reflect.TypeFor[tls.Conn]().FieldByName(name)
	return f.Offset, ok && f.Type == want
}

func init() {
	_, input := field("input", reflect.TypeFor[bytes.Reader]())
	_, hand := field("hand", reflect.TypeFor[bytes.Buffer]())
	lendable = lendable && input && hand
}

// recordSize holds the largest record (RFC 8446 section 5.2: 5 + 2^14 + 256; 2^14 + 2048 before) and what
// bytes.Buffer wants to have free behind it.
const recordSize = 5 + 1<<14 + 2048 + bytes.MinRead

var records = sync.Pool{New: func() any { b := make([]byte, 0, recordSize); return &b }}

func part[T any](c *tls.Conn, at uintptr) *T { return (*T)(unsafe.Add(unsafe.Pointer(c), at)) }

// lend gives c a buffer, unless it has one. It returns it, for takeBack.
func lend(c *tls.Conn) *[]byte {
	if !lendable {
		return nil
	}
	raw := part[bytes.Buffer](c, rawInputAt)
	if raw.Cap() > 0 {
		return nil
	}
	b := records.Get().(*[]byte)
	*raw = *bytes.NewBuffer((*b)[:0])
	return b
}

// takeBack takes what lend gave, or the library made, unless bytes are in it. It returns whether it did.
func takeBack(c *tls.Conn, lent *[]byte) bool {
	if !lendable {
		return true
	}
	raw, input, hand := part[bytes.Buffer](c, rawInputAt), part[bytes.Reader](c, inputAt), part[bytes.Buffer](c, handAt)
	if raw.Len() > 0 || input.Len() > 0 || hand.Len() > 0 {
		return false
	}
	*raw, *input, *hand = bytes.Buffer{}, bytes.Reader{}, bytes.Buffer{}
	if lent != nil {
		records.Put(lent)
	}
	return true
}
