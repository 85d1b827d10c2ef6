package durable

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// usedElsewhere reports whether a file has another name, or is open a second time.
// The kernel grants a lease for writing only on a file that nobody else has open;
// where it knows no leases, nobody is taken to have.
func usedElsewhere(f *os.File, info fs.FileInfo) bool {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
		return true
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return errors.Is(err, unix.EAGAIN)
	}
	// Given back at once: who opens the file now has found it under its new name.
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	return err != nil
}
