package walfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"raftkv/internal/durable"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"google.golang.org/protobuf/encoding/protowire"
)

// A log that ends in a bad frame is either torn (the power went while the last
// write was on its way; nothing promised is lost, cut it off) or damaged
// (something that was synced, and may have been acknowledged, is lost; do not
// start). The WAL cannot tell: a flipped length is io.ErrUnexpectedEOF to it,
// a zeroed one a clean end, and whatever lies behind is dropped without a
// word. This file looks at what lies behind.
//
// # The argument
//
// Let b be the offset at which the good frames end. We assume "torn": nothing
// that was synced lies at or behind b. What we then find in the file either
// agrees with that or contradicts it; a contradiction is proof of damage. The
// converse does not hold: damage may look like a tear, and then only the mark
// (package watermark) can tell.
//
// What the assumption implies rests on how the log is written:
//
//   - Each Save writes its entries, then at most one hard state. A Save with an
//     entry, or with a hard state of another term or vote than the one before
//     (raft.MustSync), is synced before the next write begins; so is a snapshot
//     record. Only a hard state that moves nothing but commit may stay unsynced.
//   - A segment gets its name after its head is synced: a CRC record, the
//     metadata, in segment 0 also the empty snapshot. So are by then the zeros
//     that walzero.go writes into it. What it writes into the segment in use are
//     zeros over blocks that are reserved only, which read as zeros: before they
//     are on the disk and after, they are the same bytes.
//   - The WAL is synced (wal.Sync) after ReadAll, before it is written to. So
//     what an earlier process left, and the zeroing of an earlier tear, are
//     durable, and before a sector is written it holds zeros.
//   - Bytes go out in file order, cut at the end of a frame or at a multiple of
//     4096. A sector of 512 bytes is written as a whole or not at all. So a
//     sector that was lost shows what it held before: good bytes up to the end
//     of some frame or page, then zeros to its end.
//
// Hence what lies at or behind b was written, in this order, as
//
//	any number of hard states that move commit only, then at most one of
//	  entries and perhaps a hard state
//	  a hard state of another term or vote
//	  a snapshot record
//
// with any of its sectors lost. What can be read of it is a subsequence. It
// contradicts "torn" if
//
//	(1) anything follows a snapshot record,
//	(2) a snapshot record follows an entry,
//	(3) anything follows a hard state that follows an entry (a hard state ends
//	    its Save, so what follows is of a later one, and the entry is synced),
//	(4) anything follows a hard state of another term or vote than the one read
//	    before it, good part included: between the two there is the write that
//	    made the change, and it is synced,
//	(5) there is a record that only a segment's head has,
//	(6) the good part does not even cover the head.
//
// The bytes at b say something too. A length is 8-byte aligned, so it lies in
// one sector:
//
//	(7) it is zero: then its sector was lost, and the sector must be zero from
//	    b to its end.
//	(8) it is not zero: then it is what was written. It must be one the encoder
//	    can write, and agree with the lengths inside the record. And the frame is
//	    bad because of another of its sectors, which must be zero as a whole. (In
//	    the sector of the length, the frame is there: writes are cut at frames
//	    and pages.) What is inside such a frame is payload, whatever it looks
//	    like: the search goes on behind it.
//
// We do not use the order of indexes: a caller may put overlapping appends of
// raft into one Save.
//
// Behind b the frames are found by trying every 8-byte offset. A frame counts
// if it is followed by one whose checksum continues the first one's, 32 bits
// that do not match by chance. They do match in a value that is itself a piece
// of a WAL: such a value, 8-byte aligned, in a batch torn just before the
// record that holds it, is taken for damage. That refuses a start that
// was possible; it loses nothing.
const (
	Sector       = 512 // bytes
	walFrameHead = 8
	// walRecordMax bounds what the encoder can write: protobuf ends at 2 GiB.
	walRecordMax = math.MaxInt32
	// walRecordHead bounds the bytes of a record before its data: tag and
	// type, tag and checksum, tag and length.
	walRecordHead = 2 + (1 + 5) + (1 + binary.MaxVarintLen64)
	// walZeroChunk is the piece in which zeros are skipped.
	walZeroChunk = 1 << 20
)

// Tail says how the last segment of a log ends.
type Tail struct {
	File string // path of the segment
	End  int64  // offset behind the last good frame
	// lastIndex is the index of the last good entry, or of a snapshot record
	// behind it that is ahead of it. In a segment without either it is what the
	// segment's name says of the one before.
	lastIndex uint64
	NonZero   bool   // something other than zeros lies behind End
	Damaged   bool   // it is proven that synced data lies at or behind End
	Reason    string // why, for a human; set if Damaged
}

// InspectTail reads the last segment in walDir, writes nothing and takes no
// lock. A report with NonZero and not Damaged is a torn tail; one with neither
// is a clean end, or a tear that left nothing. No segment at all is
// os.ErrNotExist.
func InspectTail(walDir string) (Tail, error) {
	last, err := LastSegment(walDir)
	if err != nil {
		return Tail{}, err
	}
	s, err := readSegment(last.Path)
	if err != nil {
		return Tail{}, fmt.Errorf("inspect log segment %s: %w", last.Path, err)
	}
	good := s.goodPart(last.First)
	r := Tail{File: last.Path, End: good.end, lastIndex: good.lastIndex}
	r.NonZero = !s.zero(good.end, s.size)
	r.Reason = s.judge(good, last.Seq)
	r.Damaged = r.Reason != ""
	return r, nil
}

// LastSegment returns the segment with the highest number.
func LastSegment(walDir string) (Segment, error) {
	segments, _, err := Segments(walDir)
	if err != nil {
		return Segment{}, fmt.Errorf("inspect log: %w", err)
	}
	if len(segments) == 0 {
		return Segment{}, fmt.Errorf("inspect log: no segment in %s: %w", walDir, os.ErrNotExist)
	}
	return segments[len(segments)-1], nil
}

// judge returns why the segment is damaged, or "".
func (s *segment) judge(good goodPart, seq uint64) string {
	if head := headFrames(seq); good.frames < head { // (6)
		return fmt.Sprintf("bad frame at offset %d, in the head of the segment, which was synced before the file got its name", good.end)
	}
	if s.zero(good.end, s.size) {
		return ""
	}
	from, reason := s.judgeFrame(good.end)
	if reason != "" {
		return reason
	}
	return s.judgeRest(from, good)
}

// headFrames is how many frames of a segment are synced before it is named.
// A hard state may be a further one, but need not.
func headFrames(seq uint64) int {
	if seq == 0 {
		return 3
	}
	return 2
}

// judgeFrame applies (7) and (8) to the bad frame at off, and returns where the
// search for further frames starts.
func (s *segment) judgeFrame(off int64) (from int64, reason string) {
	if off+walFrameHead > s.size {
		return s.size, "" // cut off in the middle of the length
	}
	sectorEnd := min((off/Sector+1)*Sector, s.size)
	word := s.word(off)
	if word == 0 {
		if !s.zero(off, sectorEnd) {
			return 0, fmt.Sprintf("the frame at offset %d has length 0, but the rest of its sector was written", off)
		}
		return sectorEnd, ""
	}
	recLen, pad, ok := splitFrameLength(word)
	if !ok {
		return 0, fmt.Sprintf("the frame at offset %d has length %#x, which is never written", off, word)
	}
	if !s.headAgrees(off, recLen) {
		return 0, fmt.Sprintf("the frame at offset %d has length %d, which does not agree with the record in it", off, recLen)
	}
	end := off + walFrameHead + recLen + pad
	if !s.sectorLost(sectorEnd, end) {
		return 0, fmt.Sprintf("the frame at offset %d is bad, but all of its sectors were written", off)
	}
	return end, ""
}

// headAgrees reports whether the lengths inside the record at off add up to
// recLen. Where the record's head reaches into a sector that was lost, it
// cannot be known, which counts as agreement.
func (s *segment) headAgrees(off, recLen int64) bool {
	start := off + walFrameHead
	next := (off/Sector + 1) * Sector
	if s.sectorLost(next, min(start+recLen, start+walRecordHead)) {
		return true
	}
	_, ok := s.recordHead(start, recLen)
	return ok
}

// sectorLost reports whether one of the sectors that begin in [from, end) is
// zero as a whole, or missing because the file is too short: its new size is
// lost as a sector is. from is the start of a sector or the end of the file.
func (s *segment) sectorLost(from, end int64) bool {
	if end > s.size {
		return true
	}
	for ; from < end; from += Sector {
		if s.zero(from, min(from+Sector, s.size)) {
			return true
		}
	}
	return false
}

// judgeRest looks for frames from off on and applies (1) to (5) to them.
func (s *segment) judgeRest(off int64, good goodPart) string {
	ev := evidence{hard: good.hard}
	// A file made to look like many long frames would take quadratic time. What
	// is behind this many bytes of checksums is not looked at.
	budget := 16*int64(len(s.data)) + walZeroChunk
	for off < int64(len(s.data)) && budget > 0 {
		prev, ok := s.frame(off)
		if !ok {
			off = s.skipZeros(off + 8)
			continue
		}
		f, ok := s.follows(prev, &budget)
		if !ok {
			off = s.skipZeros(off + 8)
			continue
		}
		// Of the first frame of a chain only the head is verified, by the one
		// behind it, which continues its checksum. Its data is not looked at.
		if reason := ev.add(prev); reason != "" {
			return reason
		}
		for ; ok; f, ok = s.follows(f, &budget) {
			if reason := ev.add(f); reason != "" {
				return reason
			}
			off = f.end
		}
	}
	return ""
}

// evidence is what the frames behind a bad one say so far.
type evidence struct {
	hard  *hardVote // the last hard state whose data is verified
	entry *walFrame // the first entry
	// last is a record that nothing can follow unless something was synced, and
	// why says what.
	last *walFrame
	why  string
}

// add takes the next readable frame, in file order. It returns why the log is
// damaged, or "".
func (e *evidence) add(f walFrame) string {
	switch {
	case f.typ == wal.CrcType || f.typ == wal.MetadataType: // (5)
		return fmt.Sprintf("the record at offset %d belongs to the head of a segment", f.off)
	case e.last != nil: // (1), (3), (4)
		return fmt.Sprintf("the record at offset %d was written after %s (offset %d) was synced", f.off, e.why, e.last.off)
	case f.typ == wal.SnapshotType && e.entry != nil: // (2)
		return fmt.Sprintf("the snapshot record at offset %d was written after the entry at offset %d was synced", f.off, e.entry.off)
	case f.typ == wal.SnapshotType:
		e.last, e.why = &f, "a snapshot record"
	case f.typ == wal.EntryType && e.entry == nil:
		e.entry = &f
	case f.typ == wal.StateType:
		e.addState(f)
	}
	return ""
}

func (e *evidence) addState(f walFrame) {
	if e.entry != nil {
		e.last, e.why = &f, "a batch of entries and its hard state"
	}
	v, ok := parseHardVote(f.data)
	if f.data == nil || !ok {
		return
	}
	if e.hard != nil && *e.hard != v && e.last == nil {
		e.last, e.why = &f, "a hard state of another term or vote"
	}
	e.hard = &v
}

// hardVote is the part of a hard state whose change is synced.
type hardVote struct{ term, vote uint64 }

// goodPart is what the frames from the start of a segment say, up to the first
// bad one.
type goodPart struct {
	end       int64
	frames    int
	lastIndex uint64
	hard      *hardVote
}

// goodPart follows the frames from the start as long as their checksums hold.
// The first one is a CRC record, which says where the checksum of the segments
// before ended.
func (s *segment) goodPart(first uint64) goodPart {
	var g goodPart
	if first > 0 {
		g.lastIndex = first - 1
	}
	f, ok := s.frame(0)
	if !ok || f.typ != wal.CrcType {
		return g
	}
	unbounded := int64(math.MaxInt64)
	for ; ok; f, ok = s.follows(f, &unbounded) {
		if !g.add(f) {
			break // the checksum holds, but the WAL would stumble over it
		}
		g.end = f.end
		g.frames++
	}
	return g
}

// add takes the next good frame; false if its data is not what its type says.
func (g *goodPart) add(f walFrame) bool {
	switch f.typ {
	case wal.EntryType:
		v, ok := uintFields(f.data)
		if ok {
			g.lastIndex = v[3] // raftpb.Entry.Index
		}
		return ok
	case wal.SnapshotType:
		v, ok := uintFields(f.data)
		if ok {
			g.lastIndex = max(g.lastIndex, v[1]) // walpb.Snapshot.index
		}
		return ok
	case wal.StateType:
		v, ok := parseHardVote(f.data)
		if ok {
			g.hard = &v
		}
		return ok
	}
	return true
}

func parseHardVote(data []byte) (hardVote, bool) {
	v, ok := uintFields(data)
	return hardVote{term: v[1], vote: v[2]}, ok
}

// uintFields returns the integer fields 1 to 3 of a protobuf message. It stands
// in for Unmarshal, which copies an entry's data, and here the whole log's.
func uintFields(b []byte) (v [4]uint64, ok bool) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return v, false
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(num, typ, b)
		if size < 0 {
			return v, false
		}
		if typ == protowire.VarintType && int(num) < len(v) {
			v[num], _ = protowire.ConsumeVarint(b)
		}
		b = b[size:]
	}
	return v, true
}

// segment is a segment file in memory. The zeros at its end, most of a
// preallocated file, are not kept.
type segment struct {
	data []byte
	size int64 // of the file, len(data) <= size
}

// readSegment reads the file at path up to its last byte that is not zero.
func readSegment(path string) (*segment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	s, err := readUsed(f)
	return s, errors.Join(err, f.Close())
}

func readUsed(f *os.File) (*segment, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	used, err := usedSize(f, info.Size())
	if err != nil {
		return nil, err
	}
	data := make([]byte, used)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, used), data); err != nil {
		return nil, err
	}
	return &segment{data: data, size: info.Size()}, nil
}

// usedSize looks from the end for a chunk that is not zero, and returns its
// end. More exact it need not be: it only saves memory.
func usedSize(f io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, walZeroChunk)
	zeros := make([]byte, walZeroChunk)
	for end := size; end > 0; {
		start := (end - 1) / walZeroChunk * walZeroChunk
		b := buf[:end-start]
		if _, err := f.ReadAt(b, start); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if !bytes.Equal(b, zeros[:len(b)]) {
			return end, nil
		}
		end = start
	}
	return 0, nil
}

// bytes returns n bytes from off on, the zeros that are not kept included. The
// caller has checked that they lie in the file.
func (s *segment) bytes(off, n int64) []byte {
	kept := int64(len(s.data))
	if off+n <= kept {
		return s.data[off : off+n]
	}
	b := make([]byte, n)
	if off < kept {
		copy(b, s.data[off:])
	}
	return b
}

// word returns the 8 bytes at off, which may reach past the end of the file.
func (s *segment) word(off int64) uint64 {
	var b [8]byte
	if off < int64(len(s.data)) {
		copy(b[:], s.data[off:])
	}
	return binary.LittleEndian.Uint64(b[:])
}

// zero reports whether the bytes in [from, to) are all zero.
func (s *segment) zero(from, to int64) bool {
	to = min(to, int64(len(s.data)))
	for ; from < to && from%8 != 0; from++ {
		if s.data[from] != 0 {
			return false
		}
	}
	return s.skipZeros(from) >= to
}

// skipZeros returns the first offset from off on, in steps of 8, with a word
// that is not zero, or one behind the kept data.
func (s *segment) skipZeros(off int64) int64 {
	for off < int64(len(s.data)) && s.word(off) == 0 {
		if page := off + int64(len(durable.ZeroPage)); page <= int64(len(s.data)) && bytes.Equal(s.data[off:page], durable.ZeroPage[:]) {
			off = page
			continue
		}
		off += 8
	}
	return off
}

// walFrame is a frame that is well-formed; its checksum is another matter.
type walFrame struct {
	off, end int64
	recordHead
	data []byte // set by follows, that is, when it is verified
}

// recordHead is a walpb.Record without its data.
type recordHead struct {
	typ     int64
	crc     uint32 // running, over the data of all records up to this one
	size    int64  // of the head itself
	dataLen int64
}

// frame parses the frame at off, without its data: most offsets that are tried
// are no frames, and must not cost what they announce.
func (s *segment) frame(off int64) (walFrame, bool) {
	recLen, pad, ok := splitFrameLength(s.word(off))
	end := off + walFrameHead + recLen + pad
	if !ok || end > s.size {
		return walFrame{}, false
	}
	h, ok := s.recordHead(off+walFrameHead, recLen)
	if !ok {
		return walFrame{}, false
	}
	return walFrame{off: off, end: end, recordHead: h}, true
}

// follows parses the frame behind f and checks that its checksum continues f's.
// The bytes it looks at are taken off the budget.
func (s *segment) follows(f walFrame, budget *int64) (walFrame, bool) {
	next, ok := s.frame(f.end)
	if !ok {
		return walFrame{}, false
	}
	next.data = s.bytes(next.off+walFrameHead+next.size, next.dataLen)
	*budget -= next.dataLen
	return next, crc32.Update(f.crc, durable.CRC, next.data) == next.crc
}

// splitFrameLength takes the length field of a frame apart: the low 56 bits are
// the length of the record, the highest byte is 0x80 plus the padding to a
// multiple of 8, or 0 without padding. Not ok is a field the encoder never
// writes.
func splitFrameLength(word uint64) (recLen, pad int64, ok bool) {
	recLen = int64(word & (1<<56 - 1))
	pad = (8 - recLen%8) % 8
	var high uint64
	if pad != 0 {
		high = 0x80 | uint64(pad)
	}
	return recLen, pad, word>>56 == high && recLen > 0 && recLen <= walRecordMax
}

// recordHead parses the head of the record at off, which must be recLen bytes
// long in all. Stricter than protobuf: the fields in their order, as the WAL's
// encoder writes them.
func (s *segment) recordHead(off, recLen int64) (h recordHead, ok bool) {
	if off >= s.size {
		return h, false
	}
	b := s.bytes(off, min(recLen, walRecordHead, s.size-off))
	rest, typ, ok := consumeField(b, 1<<3)
	if !ok || typ < uint64(wal.MetadataType) || typ > uint64(wal.SnapshotType) {
		return h, false
	}
	rest, crc, ok := consumeField(rest, 2<<3)
	if !ok || crc > math.MaxUint32 {
		return h, false
	}
	h = recordHead{typ: int64(typ), crc: uint32(crc), size: int64(len(b) - len(rest))}
	if h.size == recLen { // without data, as a CRC record is
		return h, true
	}
	rest, n, ok := consumeField(rest, 3<<3|2)
	if !ok || n > walRecordMax {
		return h, false
	}
	h.size, h.dataLen = int64(len(b)-len(rest)), int64(n)
	return h, h.size+h.dataLen == recLen
}

// consumeField reads a one-byte tag and the integer behind it.
func consumeField(b []byte, tag byte) (rest []byte, v uint64, ok bool) {
	if len(b) == 0 || b[0] != tag {
		return b, 0, false
	}
	v, n := protowire.ConsumeVarint(b[1:])
	if n < 0 {
		return b, 0, false
	}
	return b[1+n:], v, true
}
