// Package record answers: how are fields put into bytes, and read back strictly?
// Commands, membership changes and records of the state are written with it. A
// Reader keeps the first error, refuses what is cut short or left over, and never
// allocates more than it was given.
package record

import (
	"encoding/binary"
	"errors"
)

// Errors of decoding.
var (
	// ErrMalformed: the bytes are not a batch. No version writes such an
	// entry, so every node ignores it in the same way.
	ErrMalformed = errors.New("malformed command")
	// ErrUnknownCommand: a newer version wrote this entry. The node must
	// stop: skipping what others apply would make it diverge.
	ErrUnknownCommand = errors.New("command of a kind that this version does not know")
)

// BoolByte encodes a bool as Reader.Bool reads it: 1 is true, 0 is false.
func BoolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// Reader takes fields off the front of a byte slice. The first short read
// makes it bad for good, so that callers check once, at the end.
type Reader struct {
	B   []byte // what is not read yet
	Bad bool   // a field was cut short or malformed
}

// Byte reads one byte. It returns 0 if r is bad.
func (r *Reader) Byte() byte {
	if r.Bad || len(r.B) == 0 {
		r.Bad = true
		return 0
	}
	c := r.B[0]
	r.B = r.B[1:]
	return c
}

// Uvarint reads a varint of up to 64 bits. It returns 0 if r is bad.
func (r *Reader) Uvarint() uint64 {
	v, n := binary.Uvarint(r.B)
	if r.Bad || n <= 0 {
		r.Bad = true
		return 0
	}
	r.B = r.B[n:]
	return v
}

// Optional reads a uvarint that may be left out at the end, which means 0.
func (r *Reader) Optional() uint64 {
	if len(r.B) == 0 {
		return 0
	}
	return r.Uvarint()
}

// Bool reads a byte that is 0 or 1. Any other makes r bad, and is false.
func (r *Reader) Bool() bool {
	b := r.Byte()
	r.Bad = r.Bad || b > 1
	return b == 1
}

// Uint64 reads 8 bytes, little-endian. It returns 0 if r is bad.
func (r *Reader) Uint64() uint64 {
	if r.Bad || len(r.B) < 8 {
		r.Bad = true
		return 0
	}
	v := binary.LittleEndian.Uint64(r.B)
	r.B = r.B[8:]
	return v
}

// End: nothing may follow.
func (r *Reader) End() { r.Bad = r.Bad || len(r.B) > 0 }

// Bytes reads a length and that many bytes.
func (r *Reader) Bytes() []byte {
	n := r.Uvarint()
	if r.Bad || n > uint64(len(r.B)) {
		r.Bad = true
		return nil
	}
	b := r.B[:n:n]
	r.B = r.B[n:]
	return b
}

// AppendUvarints appends each number as a varint.
func AppendUvarints(b []byte, vs ...uint64) []byte {
	for _, v := range vs {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// AppendOptional appends fields that may be left out at the end of a record:
// zeros with which it would end are.
func AppendOptional(b []byte, vs ...uint64) []byte {
	for len(vs) > 0 && vs[len(vs)-1] == 0 {
		vs = vs[:len(vs)-1]
	}
	return AppendUvarints(b, vs...)
}

// AppendString appends the length of s as a varint, and s. Reader.Bytes reads it.
func AppendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}
