package walfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"raftkv/internal/durable"
	"syscall"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

// A sync that fails leaves the kernel with pages that it counts as clean and that
// the disk does not have: the next sync succeeds and writes nothing, also after a
// restart, and the log reads as if it were whole until the power goes. The same
// holds of a directory that was not synced. So a start believes only what the mark
// vouches for, and writes all that lies behind it again: the log of the last tenth
// of a second.
//
// The bytes are the same, so a crash in the midst of it changes nothing: each
// sector holds what it held before, or what it should hold.

// Rewrite makes what lies in the log behind a place durable, though it may seem
// to be. The last segment is in use up to end.
func Rewrite(walDir string, from Place, end int64) error {
	segments, _, err := Segments(walDir)
	if err != nil {
		return err
	}
	for i, s := range segments {
		path := s.Path
		used := int64(-1) // to the end of the file
		if i == len(segments)-1 {
			used = end
		}
		switch {
		case i == from.Segment:
			err = rewriteFile(path, from.Offset, used)
		case i > from.Segment:
			err = replaceFile(path, used)
			if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
				err = rewriteFile(path, 0, used) // there is no room for a copy; its name must do as it is
			}
		}
		if err != nil {
			return err
		}
	}
	if from.Segment < len(segments)-1 {
		return durable.SyncDir(walDir)
	}
	return nil
}

// rewriteFile writes a file's bytes again in their place, from one offset to
// another, and syncs it.
func rewriteFile(path string, from, to int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(rewriteRange(f, from, to), f.Sync(), f.Close())
}

func rewriteRange(f *os.File, from, to int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if to < 0 {
		to = info.Size()
	}
	buf := make([]byte, min(max(to-from, 0), walZeroChunk))
	for from < to {
		b := buf[:min(int64(len(buf)), to-from)]
		if _, err := f.ReadAt(b, from); err != nil {
			return fmt.Errorf("read %s again: %w", f.Name(), err)
		}
		if _, err := f.WriteAt(b, from); err != nil {
			return err
		}
		from += int64(len(b))
	}
	return nil
}

// replaceFile puts a synced copy in the place of a file: its name, too, may not
// be durable. A crash leaves the file or the copy, and a file that a start
// removes. The caller syncs the directory.
func replaceFile(path string, used int64) error {
	old, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = old.Close() }() // only read from
	info, err := old.Stat()
	if err != nil {
		return err
	}
	if used < 0 {
		used = info.Size()
	}
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.LimitReader(old, used))
	if err == nil {
		err = fileutil.Preallocate(f, info.Size(), true) // the rest is zeros
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, durable.RemoveTemp(f.Name()))
	}
	return nil
}
