package testkit

import (
	"encoding/binary"
	"testing"
)

// Frame is where a record lies in a segment of a write-ahead log.
type Frame struct{ Off, End int64 }

// Frames returns the frames of an undamaged segment. Each begins with eight bytes,
// little-endian: the length of the record, and in the last byte how it is padded.
func Frames(t testing.TB, segment []byte) []Frame {
	t.Helper()
	var frames []Frame
	for off := int64(0); off+8 <= int64(len(segment)); {
		head := binary.LittleEndian.Uint64(segment[off:])
		if head == 0 {
			break
		}
		length, pad := int64(head&(1<<56-1)), int64(0)
		if head>>63 == 1 {
			pad = int64(head >> 56 & 7)
		}
		end := off + 8 + length + pad
		if end > int64(len(segment)) {
			break
		}
		frames = append(frames, Frame{off, end})
		off = end
	}
	if len(frames) == 0 {
		t.Fatal("the log that was written cannot be read")
	}
	return frames
}
