package storage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"syscall"
)

// POSIX promises nothing of a name whose directory was not synced: not that of a
// directory in its parent, and not that of a file in a directory that got its own
// name later. This file sees to the names above a data directory; those in it are
// synced where they are made.

// makeDirAll makes a directory and those above it, and makes their names durable.
//
// A process that ended between the two would leave directories whose names
// nobody syncs, so they are synced whether this call made them or not. Once the
// directory has a log, all names above it are durable but the last, which
// raftkv recover renames.
func makeDirAll(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path, err := RealDir(dir) // a link is its maker's business
	if err != nil {
		return err
	}
	old, err := Booted(path)
	if err != nil {
		return err
	}
	for parent := filepath.Dir(path); parent != path; path, parent = parent, filepath.Dir(parent) {
		if err := syncAbove(parent); err != nil || old {
			return err
		}
	}
	return nil
}

// syncAbove is durable.SyncDir for a directory that may be anybody's. One that may not be
// read, or is on a file system that cannot be written or synced, has no name in
// it that this program made.
func syncAbove(dir string) error {
	err := durable.SyncDir(dir)
	for _, lawful := range []error{fs.ErrPermission, syscall.EINVAL, syscall.ENOTSUP, syscall.EROFS} {
		if errors.Is(err, lawful) {
			return nil
		}
	}
	return err
}
