package walfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"raftkv/internal/durable"

	"go.uber.org/zap"
)

const (
	// ZeroPiece is how much is written after a save at most. Saves that are larger on
	// average find only a part of the blocks written. They are what the disk's
	// bandwidth limits, and that is not spent on zeros.
	ZeroPiece = 64 << 10
	// ZeroLead is how far before the log's end the zeros reach in the segment in use,
	// where they have to be written there.
	ZeroLead = 1 << 20
	// zeroMargin is the part of a segment that is left when the next one is zeroed.
	zeroMargin = 16
	// zeroRatio bounds the zeros in the next segment for each byte of log. It matters
	// when little of the segment in use is left at a start.
	zeroRatio = 2
)

// Zeroer writes zeros to the blocks of the log's segments before the WAL appends to
// them: to the next segment while one is in use, and to what was not done of that
// when its turn came, just before the end of the log.
//
// The WAL reserves the blocks of its segments (fallocate), and the file system
// notes of each that nothing was written to it. The sync of an append to such
// blocks has to write that note anew, through the file system's journal if it has
// one, which takes as long as the append or longer. Blocks that hold zeros have
// no such note.
//
// The work is spread: the next segment is zeroed in the proportion in which the one
// in use is filled, which is about a byte for each byte of log. What is left when it
// is used, and the rest of the segment that is in use at a start, which the WAL has
// reserved anew, are zeroed a little before the log gets there.
//
// Nothing of the log can be lost by it:
//
//   - Only the persist loop calls Save, Sync and Step, one after the other. So
//     nobody writes to a segment during a step.
//   - The WAL makes the next segment as 0.tmp or 1.tmp, in a goroutine of its own
//     which does nothing more to it when it has its full size. Only wal.Save
//     puts records into it, syncs it, and then gives it its name. So at a step, a
//     file with such a name is empty. (After a Save that failed it may not be, and
//     the node ends.)
//   - In the segment in use, zeros are written only to blocks to which the file system
//     knows nothing to have been written. They read as zeros before, so whatever is
//     wrong about where the log ends, and whenever a crash comes, nothing changes of
//     what the file holds, or of what is said of the end of a log (waltail.go).
//   - They end at the size of a segment: no file becomes longer.
//   - The sync before the next segment gets its name covers the zeros in it. What a
//     crash leaves of a .tmp goes at the next start.
type Zeroer struct {
	Log  *zap.Logger
	Dir  string // of the log
	Size int64  // of a segment that is ready

	Next zeroed // the segment after the one in use
	Use  zeroed // the one in use, as long as it is not zeroed to its end
	from int64  // where the log ended in the segment in use when Next was found
	path string // of the segment in use
	Off  bool   // it does not pay, or an error has ended it

	Written int64 // zeros so far, in bytes
}

// zeroed is a file that is being zeroed.
type zeroed struct {
	File *os.File    // nil: none
	Info fs.FileInfo // of File
	At   int64       // the zeros reach up to here
}

// NewZeroer makes one for segments of a size in dir. It does nothing where
// it does not pay.
func NewZeroer(log *zap.Logger, dir string, size int64) *Zeroer {
	return &Zeroer{Log: log, Dir: dir, Size: size, Off: !durable.ZeroingPays(dir)}
}

// Step writes at most a piece, and does not wait until the disk has it. The persist
// loop calls it after a save that succeeded, with the segment in use and about where
// the log ends in it. An error ends the zeroing, and not the node, as nothing depends
// on the zeros: the blocks are reserved, so a full disk should be none, and on a disk
// that fails it is best to write little. What that means for the log, the WAL hears
// from its own writes and syncs.
func (z *Zeroer) Step(path string, end int64) {
	if z.Off {
		return
	}
	if err := z.step(path, end); err != nil {
		z.Log.Warn("cannot write zeros to segments of the log; going on without", zap.Error(err))
		z.Off = true
		z.Close()
	}
}

func (z *Zeroer) step(path string, end int64) error {
	if path != z.path {
		if err := z.use(path, end); err != nil {
			return err
		}
	}
	if z.Next.File == nil {
		if err := z.find(end); err != nil {
			return err
		}
	}
	if z.Use.File != nil {
		// A piece away from the end, as that is not known to the byte.
		z.Use.At = max(z.Use.At, (end/ZeroPiece+2)*ZeroPiece)
		if z.Use.At >= z.Size {
			z.Use.close() // zeroed, or full
		} else if z.Use.At < end+ZeroLead {
			return z.writeAhead()
		}
	}
	if z.Next.File == nil {
		return nil
	}
	goal := z.goal(end)
	if goal <= z.Next.At || goal != z.Size && goal-z.Next.At < ZeroPiece || !z.ready() {
		return nil
	}
	return z.write(&z.Next, goal)
}

// ready reports whether Next still has the name that it was found by. If not, the WAL has
// taken it into use meanwhile.
func (z *Zeroer) ready() bool {
	info, err := os.Stat(z.Next.File.Name())
	return err == nil && os.SameFile(info, z.Next.Info)
}

// goal is up to where the next segment is to be zeroed when the log ends somewhere in
// the one in use.
func (z *Zeroer) goal(end int64) int64 {
	grown, full := end-z.from, z.Size-z.Size/zeroMargin
	if end >= full {
		return min(z.Size, zeroRatio*grown)
	}
	return min(z.Size*grown/(full-z.from), zeroRatio*grown)
}

// use notes that another segment is in use.
func (z *Zeroer) use(path string, end int64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	z.Use.close()
	if z.Next.File != nil && os.SameFile(info, z.Next.Info) {
		z.Use, z.Next = z.Next, zeroed{}
	} else {
		z.Next.close()
		if z.Use, err = openZeroed(path, end); err != nil {
			return err
		}
	}
	if info.Size() < z.Size {
		z.Use.close() // of a smaller size: no file becomes longer
	}
	z.path = path
	return nil
}

// find makes Next the next segment, if that is ready.
func (z *Zeroer) find(end int64) error {
	for _, name := range []string{"0.tmp", "1.tmp"} {
		next, err := openZeroed(filepath.Join(z.Dir, name), 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if next.Info.Size() == z.Size {
			z.Next, z.from = next, end
			return nil
		}
		next.close() // it is being made, or held back (package walroom)
	}
	return nil
}

func openZeroed(path string, at int64) (zeroed, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return zeroed{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return zeroed{}, errors.Join(err, f.Close())
	}
	return zeroed{File: f, Info: info, At: at}, nil
}

// write writes the next piece, up to an offset at most, page by page: what is written
// at once is kept as one in the page cache, and large pieces make the syncs of small
// appends slower.
func (z *Zeroer) write(s *zeroed, limit int64) error {
	from, to := s.At, min(s.At+ZeroPiece, limit)
	for s.At < to {
		n := min(to-s.At, int64(len(durable.ZeroPage)))
		if _, err := s.File.WriteAt(durable.ZeroPage[:n], s.At); err != nil {
			return err
		}
		s.At += n
	}
	z.Written += to - from
	return durable.StartWriteBack(s.File, from, to-from)
}

// writeAhead writes the next piece of the segment in use, if nothing was written there.
func (z *Zeroer) writeAhead() error {
	s := &z.Use
	to := min(s.At+ZeroPiece, z.Size)
	first, err := durable.FirstWritten(s.File, s.At)
	if err != nil {
		return err
	}
	if first < to {
		s.At = to
		return nil
	}
	return z.write(s, to)
}

func (s *zeroed) close() {
	if s.File != nil {
		_ = s.File.Close() // an error of the disk, the WAL's own sync reports
		*s = zeroed{}
	}
}

// Close closes the files at work. The next Step, unless z is off, opens them again.
func (z *Zeroer) Close() {
	z.Next.close()
	z.Use.close()
	z.path = ""
}
