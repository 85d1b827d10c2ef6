package walfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"raftkv/internal/durable"

	"go.uber.org/zap"
)

// ZeroPiece is how much of the next segment is written after a save. Saves that
// are larger on average find only its beginning written. They are what the disk's
// bandwidth limits, and that is not spent on zeros.
const ZeroPiece = 64 << 10

// Zeroer writes zeros into the segment that the WAL is to use next, while
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
type Zeroer struct {
	Log  *zap.Logger
	Dir  string // of the log
	Size int64  // of a segment that is ready

	File *os.File    // the one at work; nil: none
	Info fs.FileInfo // of File
	At   int64       // the zeros written
	Off  bool        // it does not pay, or an error has ended it
}

// NewZeroer makes one for segments of a size in dir. It does nothing where
// it does not pay.
func NewZeroer(log *zap.Logger, dir string, size int64) *Zeroer {
	return &Zeroer{Log: log, Dir: dir, Size: size, Off: !durable.ZeroingPays(dir)}
}

// Step writes a piece, and does not wait until the disk has it. The persist loop
// calls it after a save that succeeded. An error ends the zeroing, and not the
// node, as nothing depends on the zeros: the blocks are reserved, so a full disk
// should be none, and on a disk that fails it is best to write little. What that
// means for the log, the WAL hears from its own writes and syncs.
func (z *Zeroer) Step() {
	if z.Off {
		return
	}
	if err := z.writePiece(); err != nil {
		z.Log.Warn("cannot write zeros to the next segment of the log; going on without", zap.Error(err))
		z.Off = true
		z.Close()
	}
}

func (z *Zeroer) writePiece() error {
	if err := z.find(); err != nil || z.File == nil {
		return err
	}
	from, to := z.At, min(z.At+ZeroPiece, z.Size)
	if from == to {
		return nil
	}
	// Page by page: what is written at once is kept as one in the page cache,
	// and large pieces make the syncs of small appends slower.
	for z.At < to {
		n := min(to-z.At, int64(len(durable.ZeroPage)))
		if _, err := z.File.WriteAt(durable.ZeroPage[:n], z.At); err != nil {
			return err
		}
		z.At += n
	}
	return durable.StartWriteBack(z.File, from, to-from)
}

// find makes File the next segment, or nil if that is not ready.
func (z *Zeroer) find() error {
	if z.File != nil {
		if info, err := os.Stat(z.File.Name()); err == nil && os.SameFile(info, z.Info) {
			return nil
		}
		z.Close() // it is in use now
	}
	for _, name := range []string{"0.tmp", "1.tmp"} {
		f, err := os.OpenFile(filepath.Join(z.Dir, name), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		z.File, z.At = f, 0
		if z.Info, err = f.Stat(); err == nil && z.Info.Size() == z.Size {
			return nil
		}
		z.Close() // it is being made, or held back (package walroom)
		if err != nil {
			return err
		}
	}
	return nil
}

// Close closes the file at work, if there is one. The next Step, unless z is off, opens
// it again and starts from its beginning.
func (z *Zeroer) Close() {
	if z.File != nil {
		_ = z.File.Close() // an error of the disk, the WAL's own sync reports
		z.File = nil
	}
}
