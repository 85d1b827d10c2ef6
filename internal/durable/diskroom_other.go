//go:build !linux

package durable

import (
	"errors"
	"os"
)

// What this program does about full disks it does on Linux only.

func DiskOf(string) (Disk, error) { return Disk{}, errors.ErrUnsupported }

func AllocateBeyond(*os.File, int64, int64) error { return errors.ErrUnsupported }

func Allocated(*os.File) (int64, error) { return 0, nil }
