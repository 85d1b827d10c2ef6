package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// underOurHand has the kernel kill a child when the benchmark dies, and keeps
// Ctrl-C, which goes to a whole process group, from it: servers that begin to
// stop by themselves leave the requests that are under way waiting for a
// majority until their time is up, and the benchmark with them.
func underOurHand() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// pause sleeps precisely, with the whole thread, unless a signal wakes it.
func pause(d time.Duration) {
	ts := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&ts, nil) // its only error is the signal
}

// reserve gives a file its blocks beforehand, as a write-ahead log does, so
// that a sync writes data and no size.
func reserve(f *os.File, size int64) error {
	return syscall.Fallocate(int(f.Fd()), 0, 0, size)
}

// syncData makes what was written to a file durable.
func syncData(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }

// fileLimit returns how many files a process may have open: a Go program, and
// Redis, raise what they have to that.
func fileLimit() (uint64, error) {
	var limit syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	return limit.Max, err
}

// checkOnDisk refuses a directory in memory, where a sync costs nothing.
func checkOnDisk(dir string) error {
	const tmpfs = 0x01021994
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return err
	}
	if int64(st.Type) == tmpfs {
		return fmt.Errorf("%s is in memory: name a directory on a disk with -dir", dir)
	}
	return nil
}
