package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeBack returns once the disk has been given a range of a file. That does
// not make it durable. It takes neither a commit of the file system's journal
// nor a flush of the disk's cache, which those who sync other files would have
// to wait for.
func writeBack(f *os.File, offset, length int64) error {
	const flags = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := unix.SyncFileRange(int(f.Fd()), offset, length, flags); err != nil {
		return unix.Fdatasync(int(f.Fd())) // not every kernel that takes itself for Linux has the other
	}
	return nil
}
