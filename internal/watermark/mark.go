package watermark

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"raftkv/internal/durable"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

// Mark says how far the log must at least reach, and what was promised to
// others. etcd's WAL cannot tell a log that lost its last segment, or a frame
// length, from a shorter log; the mark, which is synced on its own, can.
//
// Index, Term and Vote are lower bounds: an old value makes the check weaker,
// never wrong. Boot is not: it counts the starts of this node, and two starts
// with one number would be taken for one. So it changes only through
// (*File).writeBoth.
type Mark struct{ Boot, Index, Term, Vote uint64 }

// The mark file is two slots of one sector each, written in turn and in place:
// the write that tears one slot leaves the other, which holds the value that
// was durable before. Nobody relied on the torn value, for its write never
// returned.
//
// Slot, integers little-endian: 8 bytes magic, u32 version, u32 zero, u64
// sequence, u64 boot, u64 index, u64 term, u64 vote, zeros, and in the last
// four bytes a CRC-32C of all before them. The slot with the higher sequence
// counts. In a file that is whole the two sequences are neighbours.
//
// What the slots cannot tell: a bit that flipped in the newer slot looks like
// a torn write, and the older value is used. For the lower bounds that is
// sound, and Boot is the same in both slots once writeBoth has returned.
const (
	markMagic   = "RKVMARK\n"
	markVersion = 1
	SlotSize    = 512 // bytes: one sector
	markFields  = 56  // bytes of a slot in use, without the checksum
)

// errBadMark: the mark file is damaged in a way no torn write explains.
var errBadMark = errors.New("bad mark file")

// errMarkBoot: a write would have changed the boot counter in one slot only,
// or set it back.
var errMarkBoot = errors.New("boot counter may only rise, and in both slots")

// File is an open mark file. Not safe for concurrent use.
type File struct {
	f    *os.File
	Last Mark   // the newest value
	seq  uint64 // sequence of Last
	slot int    // the slot that holds it
	err  error  // a failed write sticks: what is on the disk is not known
}

// Create durably creates the file at path. A file that is there is an
// error (os.ErrExist): to replace one would set Boot back.
func Create(path string, m Mark) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("create mark file %s: %w", path, os.ErrExist)
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("create mark file: %w", err)
	}
	return durable.WriteFile(path, func(w io.Writer) error {
		_, err := w.Write(append(encodeSlot(1, m), encodeSlot(2, m)...))
		return err
	})
}

// Peek reads a mark file that it may not be allowed to write.
func Peek(path string) (Mark, error) {
	f, err := os.Open(path)
	if err != nil {
		return Mark{}, err
	}
	defer func() { _ = f.Close() }() // only read from
	mf, err := Read(f)
	if err != nil {
		return Mark{}, fmt.Errorf("mark file %s: %w", path, err)
	}
	return mf.Last, nil
}

// RemoveTemps removes what a crash left in dir of making the mark.
func RemoveTemps(dir string) error {
	files, err := os.ReadDir(dir)
	for _, f := range files {
		if durable.IsTemp(f.Name(), "mark") {
			err = errors.Join(err, os.Remove(filepath.Join(dir, f.Name())))
		}
	}
	return err
}

// OpenFile opens the file at path and returns its newest value. A missing file
// is os.ErrNotExist, a newer format durable.ErrNewer, and damage that no torn
// write explains errBadMark.
func OpenFile(path string) (*File, Mark, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, Mark{}, fmt.Errorf("open mark file: %w", err)
	}
	mf, err := Read(f)
	if err != nil {
		return nil, Mark{}, errors.Join(fmt.Errorf("mark file %s: %w", path, err), f.Close())
	}
	return mf, mf.Last, nil
}

// Read reads both slots. A slot is written in place, so the file never
// changes its size.
func Read(f *os.File) (*File, error) {
	var buf [2*SlotSize + 1]byte
	n, err := io.ReadFull(f, buf[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	if n != 2*SlotSize {
		return nil, fmt.Errorf("%w: it is not %d bytes long", errBadMark, 2*SlotSize)
	}
	a, err := decodeSlot(buf[:SlotSize])
	if err != nil {
		return nil, fmt.Errorf("slot 0: %w", err)
	}
	b, err := decodeSlot(buf[SlotSize : 2*SlotSize])
	if err != nil {
		return nil, fmt.Errorf("slot 1: %w", err)
	}
	slot, err := newerSlot(a, b)
	if err != nil {
		return nil, err
	}
	newest := [2]markSlot{a, b}[slot]
	return &File{f: f, Last: newest.mark, seq: newest.seq, slot: slot}, nil
}

// newerSlot says which slot counts.
func newerSlot(a, b markSlot) (int, error) {
	switch {
	case a.torn && b.torn:
		return 0, fmt.Errorf("%w: both slots have a wrong checksum", errBadMark)
	case a.torn:
		return 1, nil
	case b.torn:
		return 0, nil
	}
	older, newer, slot := a, b, 1
	if a.seq > b.seq {
		older, newer, slot = b, a, 0
	}
	if newer.seq != older.seq+1 || newer.mark.Boot < older.mark.Boot {
		return 0, fmt.Errorf("%w: slots of sequence %d (boot %d) and %d (boot %d) do not follow each other",
			errBadMark, older.seq, older.mark.Boot, newer.seq, newer.mark.Boot)
	}
	return slot, nil
}

// write makes m the newest value; it is durable when write returns nil. It
// goes over the older slot. m.Boot must be the current one: in one slot only,
// a new boot counter would not survive damage to that slot.
func (mf *File) write(m Mark) error {
	if mf.err == nil && m.Boot != mf.Last.Boot {
		return fmt.Errorf("mark file %s: boot %d after %d: %w", mf.f.Name(), m.Boot, mf.Last.Boot, errMarkBoot)
	}
	return mf.WriteSlot(m)
}

// writeBoth is write for both slots, one after the other, each synced before
// the next: there is a whole slot at every moment, and after it m.Boot is safe
// against damage to either.
func (mf *File) writeBoth(m Mark) error {
	if mf.err == nil && m.Boot < mf.Last.Boot {
		return fmt.Errorf("mark file %s: boot %d after %d: %w", mf.f.Name(), m.Boot, mf.Last.Boot, errMarkBoot)
	}
	if err := mf.WriteSlot(m); err != nil {
		return err
	}
	return mf.WriteSlot(m)
}

// WriteSlot writes m over the older slot, and waits until the disk has it. It does not
// look at m.Boot. After a failure every later call returns the same error.
func (mf *File) WriteSlot(m Mark) error {
	if mf.err != nil {
		return mf.err
	}
	slot, seq := 1-mf.slot, mf.seq+1
	_, err := mf.f.WriteAt(encodeSlot(seq, m), int64(slot)*SlotSize)
	if err == nil {
		err = fileutil.Fdatasync(mf.f)
	}
	if err != nil {
		// A sync that failed once may succeed later without having written
		// anything, so there is no retry.
		mf.err = fmt.Errorf("write mark file %s: %w", mf.f.Name(), err)
		return mf.err
	}
	mf.Last, mf.seq, mf.slot = m, seq, slot
	return nil
}

// Close closes the file. There is nothing to flush.
func (mf *File) Close() error {
	if err := mf.f.Close(); err != nil {
		return fmt.Errorf("close mark file: %w", err)
	}
	return nil
}

// markSlot is a decoded slot.
type markSlot struct {
	torn bool // the checksum is wrong, and a torn write can be the reason
	seq  uint64
	mark Mark
}

func encodeSlot(seq uint64, m Mark) []byte {
	b := make([]byte, 0, SlotSize)
	b = append(b, markMagic...)
	b = binary.LittleEndian.AppendUint32(b, markVersion)
	b = binary.LittleEndian.AppendUint32(b, 0)
	for _, v := range [...]uint64{seq, m.Boot, m.Index, m.Term, m.Vote} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = b[:SlotSize-4] // what append has not touched is zero
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, durable.CRC))
}

// decodeSlot reads a slot. With a wrong checksum it is torn only if the bytes
// that every write leaves the same are as they must be: a torn write mixes old
// and new, and cannot change those.
func decodeSlot(b []byte) (markSlot, error) {
	sumAt := SlotSize - 4
	whole := crc32.Checksum(b[:sumAt], durable.CRC) == binary.LittleEndian.Uint32(b[sumAt:])
	version := binary.LittleEndian.Uint32(b[8:])
	switch {
	case string(b[:8]) != markMagic:
		return markSlot{}, fmt.Errorf("%w: wrong magic %q", errBadMark, b[:8])
	case whole && version > markVersion:
		return markSlot{}, fmt.Errorf("%w: version %d, this program knows %d", durable.ErrNewer, version, markVersion)
	case version != markVersion || !AllZero(b[12:16]) || !AllZero(b[markFields:sumAt]):
		return markSlot{}, fmt.Errorf("%w: bytes changed that no write changes", errBadMark)
	case !whole:
		return markSlot{torn: true}, nil
	}
	u := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	return markSlot{seq: u(16), mark: Mark{Boot: u(24), Index: u(32), Term: u(40), Vote: u(48)}}, nil
}

// AllZero reports whether every byte is zero. It is true of no bytes.
func AllZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
