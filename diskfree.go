package main

import (
	"math"
	"sync/atomic"
	"time"
)

// freeWait is how long a question for the room on the disk may take.
const freeWait = 100 * time.Millisecond

// diskFree tells how much room the data directory's file system has for this
// process. A disk that hangs must not hold up who asks, so the question is a
// goroutine's of its own, one at a time, which ends when the kernel answers.
type diskFree struct {
	dir    string
	asking atomic.Bool
	last   atomic.Pointer[uint64] // nil: never known
}

// bytes returns the room there is, or was when the disk last answered; NaN if it
// never has.
func (d *diskFree) bytes() float64 {
	if d.asking.CompareAndSwap(false, true) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer d.asking.Store(false)
			if free, err := freeBytes(d.dir); err == nil {
				d.last.Store(&free)
			}
		}()
		select {
		case <-done:
		case <-time.After(freeWait):
		}
	}
	if free := d.last.Load(); free != nil {
		return float64(*free)
	}
	return math.NaN()
}
