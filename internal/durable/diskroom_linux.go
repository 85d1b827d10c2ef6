package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// DiskOf measures the file system that dir is on. What is kept for root does
// not count as free.
func DiskOf(dir string) (Disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Disk{}, os.NewSyscallError("statfs", err)
	}
	return Disk{Free: int64(st.Bavail) * st.Bsize, Total: int64(st.Blocks) * st.Bsize}, nil
}

// AllocateBeyond reserves the blocks of a range of a file, which may lie behind
// its end, and leaves its size as it is.
func AllocateBeyond(f *os.File, from, length int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, from, length)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return errors.ErrUnsupported
	}
	return os.NewSyscallError("fallocate", err)
}

// Allocated returns how many bytes of the disk a file has.
func Allocated(f *os.File) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Blocks * 512, nil
}
