package durable

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// writeBack returns once the disk has been given a range of a file. That does
// not make it durable. It takes neither a commit of the file system's journal
// nor a flush of the disk's cache, which those who sync other files would have
// to wait for.
//
// An error of the disk has to end the file: the kernel tells it once, and a
// later fsync of the same file succeeds without the lost pages.
func writeBack(f *os.File, offset, length int64) error {
	const flags = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	err := unix.SyncFileRange(int(f.Fd()), offset, length, flags)
	if lacksWriteBack(err) {
		return os.NewSyscallError("fdatasync", unix.Fdatasync(int(f.Fd())))
	}
	return os.NewSyscallError("sync_file_range", err)
}

// lacksWriteBack reports whether an error of sync_file_range says that there is
// no such call: not every kernel that takes itself for Linux has it.
func lacksWriteBack(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EINVAL)
}

// StartWriteBack has the kernel give a range of a file to the disk, and does not
// wait for that.
func StartWriteBack(f *os.File, offset, length int64) error {
	return os.NewSyscallError("sync_file_range", unix.SyncFileRange(int(f.Fd()), offset, length, unix.SYNC_FILE_RANGE_WRITE))
}

// ZeroingPays reports whether writes to blocks of a file that hold zeros are
// cheaper than to such as are only reserved: where they overwrite what is there.
// A file system that copies on write does not, and would lose the reservation.
func ZeroingPays(dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false
	}
	return st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC
}

// FirstWritten returns the first offset in a file, from one on, at which something
// may have been written: what was only reserved reads as zeros. math.MaxInt64: there
// is none. It moves the file's own offset.
func FirstWritten(f *os.File, from int64) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), from, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return math.MaxInt64, nil
	}
	return at, os.NewSyscallError("lseek", err)
}
