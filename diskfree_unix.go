//go:build linux || darwin

package main

import "golang.org/x/sys/unix"

// freeBytes returns how many bytes a process without privileges may still write
// to the file system of a directory.
func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}
