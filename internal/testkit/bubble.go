// Package testkit has what tests of several packages need: bubbles of fake time
// whose timers fire in random order, and checks that stop a test.
package testkit

import (
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"testing/synctest"
)

// InBubble runs a test in a bubble of testing/synctest: with virtual time, and
// failed by a goroutine that does not end. Tests that use it are not parallel.
//
// Under the race detector a bubble has one processor. Whoever finds a timer's
// channel due runs that timer, and all timers of a bubble share one context of
// the race detector, which dies ("ThreadSanitizer: CHECK failed") when two
// threads use it at once (golang/go 78156; Go 1.26.8 still does). No race is
// missed for it: the detector goes by what is ordered, not by what ran at once,
// and its scheduler shuffles goroutines with one processor too.
func InBubble(t *testing.T, test func(t *testing.T)) {
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
