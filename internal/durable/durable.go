// Package durable answers: how do bytes and names get onto a disk for good, and
// what is that disk like? It writes whole files so that a crash leaves the old or
// the new one, makes names durable, has pages written back before a sync needs
// them, and tells how much room a disk has. It knows nothing of what is written.
package durable

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrNewer: the file is whole, as far as can be told, but a newer
// version of this program wrote it.
var ErrNewer = errors.New("written in a newer format")

// CRC is never written to; crc32 has fast code for this polynomial.
var CRC = crc32.MakeTable(crc32.Castagnoli)

// WriteFile makes path hold what write writes, or leaves it as it was:
// the bytes go to a temporary file beside it ("<base>.tmp*", which a start may
// remove), which is synced before it is renamed. When it returns nil, file and
// name are durable.
func WriteFile(path string, write func(io.Writer) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".tmp*")
	if err != nil {
		return fmt.Errorf("create temporary file for %s: %w", path, err)
	}
	if err := fillAndClose(f, write); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), RemoveTemp(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), RemoveTemp(f.Name()))
	}
	return SyncDir(dir)
}

// fillAndClose writes and syncs f; it is closed in any case.
func fillAndClose(f *os.File, write func(io.Writer) error) error {
	fill := func() error {
		buf := bufio.NewWriterSize(&steadyFile{File: f}, copySize)
		if err := write(buf); err != nil {
			return err
		}
		if err := buf.Flush(); err != nil {
			return err
		}
		return f.Sync()
	}
	return errors.Join(fill(), f.Close())
}

// steadyFile has what is written to it written to the disk piece by piece, so
// that little is left for the sync at its end: that of a large file would hold
// up the syncs of the log for as long as it takes.
type steadyFile struct {
	*os.File
	behind, size int64 // up to where it is on the disk, and written
}

const (
	steadyPiece = 256 << 10
	copySize    = 64 << 10 // of the buffer before a file that is written
)

func (f *steadyFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	f.size += int64(n)
	if err != nil || f.size-f.behind < steadyPiece {
		return n, err
	}
	err = writeBack(f.File, f.behind, f.size-f.behind)
	f.behind = f.size
	return n, err
}

// RemoveTemp removes a temporary file. That there is none is an error, too.
func RemoveTemp(name string) error {
	if err := Free(context.Background(), name); err != nil {
		return fmt.Errorf("remove temporary file: %w", err)
	}
	return nil
}

// SyncDir makes the names in dir durable: a file that is synced but whose name
// is not can be gone after a power failure.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// IsTemp reports whether a name is that of a temporary file of base.
func IsTemp(name, base string) bool {
	digits, ok := strings.CutPrefix(name, base+".tmp")
	return ok && strings.Trim(digits, "0123456789") == ""
}

// ZeroPage is never written to.
var ZeroPage [4096]byte

// SyncAbove is SyncDir for a directory that may be anybody's. One that may not be
// read, or is on a file system that cannot be written or synced, has no name in
// it that this program made.
func SyncAbove(dir string) error {
	err := SyncDir(dir)
	for _, lawful := range []error{fs.ErrPermission, syscall.EINVAL, syscall.ENOTSUP, syscall.EROFS} {
		if errors.Is(err, lawful) {
			return nil
		}
	}
	return err
}

// Wipe overwrites a file with zeros from an offset on, to its end. Durable on return.
func Wipe(path string, from int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	zeros := make([]byte, 1<<20)
	for err == nil && from < size {
		n := min(int64(len(zeros)), size-from)
		_, err = f.WriteAt(zeros[:n], from)
		from += n
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// RealDir is the directory itself, not a link to it: it is renamed.
func RealDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if to, err := filepath.EvalSymlinks(dir); !errors.Is(err, os.ErrNotExist) {
		return to, err
	}
	return dir, nil
}
