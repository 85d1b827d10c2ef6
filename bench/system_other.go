//go:build !linux

package main

import (
	"math"
	"os"
	"syscall"
	"time"
)

// The benchmark needs /proc: elsewhere it compiles, and says so when it runs.

func underOurHand() *syscall.SysProcAttr { return nil }

func pause(d time.Duration) { time.Sleep(d) }

func reserve(f *os.File, size int64) error { return f.Truncate(size) }

func syncData(f *os.File) error { return f.Sync() }

func fileLimit() (uint64, error) { return math.MaxUint64, nil }

func checkOnDisk(string) error { return nil }
