// Package memory answers: how much memory may this process use, and how is the
// collector to use it? It finds the limit that a cgroup, GOMEMLIMIT or the machine
// sets, tunes the collector by what lives, and tells which share of the CPU the
// collector takes.
package memory

import (
	"context"
	"os"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"
)

// How much garbage the process lets gather before it collects. Go's rule, as
// much as there is live data, is wrong at both ends here: a small store would be
// collected many times a second, and a large one take twice its size.

const (
	garbageLeast   = 24 << 20 // bytes, however small the store
	garbagePercent = 60       // of what is live
	garbageMost    = 800      // in percent: what an almost empty store needs for garbageLeast
)

// TuneGC sets the garbage collector by what is live, until ctx ends. It is of
// the process, not of a node: only main starts it. $GOGC has precedence.
func TuneGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for now := 0; ; {
		runtimemetrics.Read(live)
		if p := gcPercent(live[0].Value.Uint64()); p != now {
			debug.SetGCPercent(p)
			now = p
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// gcPercent is the GOGC for so many live bytes, in steps, so that it is not set
// each second.
func gcPercent(live uint64) int {
	for p := garbagePercent; p < garbageMost; p += p / 4 {
		if live*uint64(p)/100 >= garbageLeast {
			return p
		}
	}
	return garbageMost
}
