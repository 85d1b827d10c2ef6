package main

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// liveInterval is how often each loop is asked for a sign of life.
	liveInterval = time.Second
	// stuckAfter is how many times in a row a loop may owe one before /livez
	// fails, so that the process is started again. It is counted, and not timed,
	// so that a process that was stopped for a while, or its machine, is none
	// that hangs.
	stuckAfter = 60
)

// pulse shows whether a loop makes steps: the loop takes from asked whenever it
// comes round. Without one, as in tests of its own, a loop is not watched.
type pulse struct {
	loop   string
	asked  chan struct{} // buffered: asking never waits
	owed   atomic.Int64  // how many times in a row it was asked in vain
	excuse atomic.Int32  // what it is waiting for
}

// What a loop may wait for as long as it takes. A new process would wait for the
// same, so /livez has no objection; /readyz has.
const (
	noExcuse        int32 = iota
	waitsForDisk          // on which a log or a vote is to be written
	loadingSnapshot       // from the leader, which replaces the state
)

func newPulse(loop string) *pulse { return &pulse{loop: loop, asked: make(chan struct{}, 1)} }

// comes returns the channel from which the loop takes; of no pulse it is nil.
func (p *pulse) comes() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.asked
}

// excused runs f, in which the loop may take its time for a reason.
func (p *pulse) excused(reason int32, f func() error) error {
	if p == nil {
		return f()
	}
	set := func(reason int32) {
		p.owed.Store(0) // it has made a step
		p.excuse.Store(reason)
	}
	set(reason)
	defer set(noExcuse)
	return f()
}

// ask asks for a sign of life.
func (p *pulse) ask() {
	select {
	case p.asked <- struct{}{}:
		p.owed.Store(0)
	default:
		p.owed.Add(1)
	}
}

func (p *pulse) stuck() bool { return p.excuse.Load() == noExcuse && p.owed.Load() >= stuckAfter }

// loading reports whether the loop has been loading a snapshot for longer than a
// moment.
func (p *pulse) loading() bool { return p.excuse.Load() == loadingSnapshot && p.owed.Load() > 0 }

// liveness watches the loops without which a node does nothing.
type liveness struct {
	loops []*pulse
}

func newLiveness(loops ...*pulse) *liveness { return &liveness{loops} }

// run asks all loops until ctx ends.
func (l *liveness) run(ctx context.Context) error {
	every := time.NewTicker(liveInterval)
	defer every.Stop()
	for {
		select {
		case <-every.C:
			for _, p := range l.loops {
				p.ask()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// check returns an error that names the loops that are stuck. One may be stuck
// because another is.
func (l *liveness) check() error {
	stuck := ""
	for _, p := range l.loops {
		if p.stuck() {
			stuck += fmt.Sprintf("; the %s loop for %v", p.loop, time.Duration(p.owed.Load())*liveInterval)
		}
	}
	if stuck == "" {
		return nil
	}
	return fmt.Errorf("%w%s", errStuck, stuck)
}

func (l *liveness) serve(w http.ResponseWriter, _ *http.Request) error {
	if err := l.check(); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprintln(w, "ok") // a client that hangs up is no fault
	return nil
}
