package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"raftkv/internal/durable"

	"go.uber.org/zap"
)

// zeroPiece is how much of the next segment is written after a save. Saves that
// are larger on average find only its beginning written. They are what the disk's
// bandwidth limits, and that is not spent on zeros.
const zeroPiece = 64 << 10

// segmentZeroer writes zeros into the segment that the WAL is to use next, while
// this one is in use.
//
// The WAL reserves the blocks of its segments (fallocate), and the file system
// notes of each that nothing was written to it. The sync of an append to such
// blocks has to write that note anew, through the file system's journal if it has
// one, which takes as long as the append or longer. Blocks that hold zeros have
// no such note.
//
// Nothing of the log can be lost by it:
//
//   - The WAL makes the next segment as 0.tmp or 1.tmp, in a goroutine of its own
//     which does nothing more to it when it has its full size. Only wal.Save
//     puts records into it, syncs it, and then gives it its name. The persist
//     loop calls both Save and step: at a step, a file with such a name is empty.
//     (After a Save that failed it may not be, and the node ends.)
//   - Before each piece the file must still be the one that has the name, and
//     the pieces end at its full size: they never get into a segment.
//   - The sync before it gets its name covers our zeros too. In use, it is as
//     durable as any, and what a crash leaves of a .tmp goes at the next start.
//
// The rest of the segment that is in use at a start stays reserved only. It could
// be written just before the WAL appends to it, but every start would wait for up
// to 64 MB.
type segmentZeroer struct {
	log  *zap.Logger
	dir  string
	size int64 // of a segment that is ready

	file *os.File // the one at work; nil: none
	info fs.FileInfo
	at   int64 // the zeros written
	off  bool
}

// newSegmentZeroer makes one for segments of a size in dir. It does nothing where
// it does not pay.
func newSegmentZeroer(log *zap.Logger, dir string, size int64) *segmentZeroer {
	return &segmentZeroer{log: log, dir: dir, size: size, off: !durable.ZeroingPays(dir)}
}

// step writes a piece, and does not wait until the disk has it. The persist loop
// calls it after a save that succeeded. An error ends the zeroing, and not the
// node, as nothing depends on the zeros: the blocks are reserved, so a full disk
// should be none, and on a disk that fails it is best to write little. What that
// means for the log, the WAL hears from its own writes and syncs.
func (z *segmentZeroer) step() {
	if z.off {
		return
	}
	if err := z.writePiece(); err != nil {
		z.log.Warn("cannot write zeros to the next segment of the log; going on without", zap.Error(err))
		z.off = true
		z.close()
	}
}

func (z *segmentZeroer) writePiece() error {
	if err := z.find(); err != nil || z.file == nil {
		return err
	}
	from, to := z.at, min(z.at+zeroPiece, z.size)
	if from == to {
		return nil
	}
	// Page by page: what is written at once is kept as one in the page cache,
	// and large pieces make the syncs of small appends slower.
	for z.at < to {
		n := min(to-z.at, int64(len(durable.ZeroPage)))
		if _, err := z.file.WriteAt(durable.ZeroPage[:n], z.at); err != nil {
			return err
		}
		z.at += n
	}
	return durable.StartWriteBack(z.file, from, to-from)
}

// find makes file the next segment, or nil if that is not ready.
func (z *segmentZeroer) find() error {
	if z.file != nil {
		if info, err := os.Stat(z.file.Name()); err == nil && os.SameFile(info, z.info) {
			return nil
		}
		z.close() // it is in use now
	}
	for _, name := range []string{"0.tmp", "1.tmp"} {
		f, err := os.OpenFile(filepath.Join(z.dir, name), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		z.file, z.at = f, 0
		if z.info, err = f.Stat(); err == nil && z.info.Size() == z.size {
			return nil
		}
		z.close() // it is being made, or held back (walroom.go)
		if err != nil {
			return err
		}
	}
	return nil
}

func (z *segmentZeroer) close() {
	if z.file != nil {
		_ = z.file.Close() // an error of the disk, the WAL's own sync reports
		z.file = nil
	}
}
