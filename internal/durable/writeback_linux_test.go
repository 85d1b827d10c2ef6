package durable

import (
	"syscall"
	"testing"
)

// Without this a snapshot that the disk has refused counts as durable: the
// kernel tells of it once, and then fsync succeeds.
func TestWriteBackErrorsAreOfTheDisk(t *testing.T) {
	for errno, lacks := range map[syscall.Errno]bool{
		syscall.EIO: false, syscall.ENOSPC: false, syscall.EDQUOT: false, syscall.EBADF: false, syscall.ESPIPE: false,
		syscall.ENOSYS: true, syscall.EINVAL: true, syscall.EOPNOTSUPP: true,
	} {
		if lacksWriteBack(errno) != lacks {
			t.Errorf("%v: taken for a kernel without the call: %t", errno, !lacks)
		}
	}
	if lacksWriteBack(nil) {
		t.Error("success is taken for a kernel without the call")
	}
}
