//go:build !linux

package durable

import (
	"errors"
	"os"
)

// What this program does about full disks it does on Linux only.

// DiskOf returns errors.ErrUnsupported: disks are measured on Linux only.
func DiskOf(string) (Disk, error) { return Disk{}, errors.ErrUnsupported }

// AllocateBeyond returns errors.ErrUnsupported: blocks are reserved on Linux only.
func AllocateBeyond(*os.File, int64, int64) error { return errors.ErrUnsupported }

// Allocated returns 0, which says nothing: files are measured on Linux only.
func Allocated(*os.File) (int64, error) { return 0, nil }
