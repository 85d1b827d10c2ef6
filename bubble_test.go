package main

import (
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// inBubble runs a test in a bubble of testing/synctest: with virtual time, and
// failed by a goroutine that does not end. Tests that use it are not parallel.
//
// Under the race detector a bubble has one processor. Whoever finds a timer's
// channel due runs that timer, and all timers of a bubble share one context of
// the race detector, which dies ("ThreadSanitizer: CHECK failed") when two
// threads use it at once (golang/go 78156; Go 1.26.8 still does). No race is
// missed for it: the detector goes by what is ordered, not by what ran at once,
// and its scheduler shuffles goroutines with one processor too.
func inBubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if raceDetector() {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	synctest.Test(t, test)
}

// raceDetector reports whether this binary was built with -race.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// Guarantee: timers of a bubble that fall due together do not end the race
// detector. Without the one processor it dies.
func TestBubbleTimersUnderRace(t *testing.T) {
	for range 20 {
		inBubble(t, func(t *testing.T) {
			var wg sync.WaitGroup
			for range 32 {
				wg.Go(func() {
					ticks := time.NewTicker(time.Millisecond)
					defer ticks.Stop()
					for range 500 {
						time.Sleep(time.Millisecond)
						select {
						case <-ticks.C:
						default:
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
