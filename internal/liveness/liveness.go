// Package liveness answers: do all loops of this node still make steps? Each loop
// has a Pulse; a Monitor asks them once a second, and /livez fails when one has owed
// an answer too often without an excuse.
package liveness

import (
	"context"
	"fmt"
	"net/http"
	"raftkv/internal/problem"
	"sync/atomic"
	"time"
)

const (
	// LiveInterval is how often each loop is asked for a sign of life.
	LiveInterval = time.Second
	// StuckAfter is how many times in a row a loop may owe one before /livez
	// fails, so that the process is started again. It is counted, and not timed,
	// so that a process that was stopped for a while, or its machine, is none
	// that hangs.
	StuckAfter = 60
)

// Pulse shows whether a loop makes steps: the loop takes from asked whenever it
// comes round. Without one, as in tests of its own, a loop is not watched.
type Pulse struct {
	loop   string
	asked  chan struct{} // buffered: asking never waits
	Owed   atomic.Int64  // how many times in a row it was asked in vain
	Excuse atomic.Int32  // what it is waiting for
}

// What a loop may wait for as long as it takes. A new process would wait for the
// same, so /livez has no objection; /readyz has.
const (
	noExcuse        int32 = iota
	WaitsForDisk          // on which a log or a vote is to be written
	LoadingSnapshot       // from the leader, which replaces the state
)

// NewPulse returns the pulse of a loop that owes nothing. Monitor.Check names the loop
// so in its error.
func NewPulse(loop string) *Pulse { return &Pulse{loop: loop, asked: make(chan struct{}, 1)} }

// Comes returns the channel from which the loop takes; of no pulse it is nil.
func (p *Pulse) Comes() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.asked
}

// Excused runs f, in which the loop may take its time for a reason.
func (p *Pulse) Excused(reason int32, f func() error) error {
	if p == nil {
		return f()
	}
	set := func(reason int32) {
		p.Owed.Store(0) // it has made a step
		p.Excuse.Store(reason)
	}
	set(reason)
	defer set(noExcuse)
	return f()
}

// Ask asks for a sign of life.
func (p *Pulse) Ask() {
	select {
	case p.asked <- struct{}{}:
		p.Owed.Store(0)
	default:
		p.Owed.Add(1)
	}
}

// Stuck reports whether the loop owes a sign of life for StuckAfter times in a row and
// has no excuse.
func (p *Pulse) Stuck() bool { return p.Excuse.Load() == noExcuse && p.Owed.Load() >= StuckAfter }

// Loading reports whether the loop has been loading a snapshot for longer than a
// moment.
func (p *Pulse) Loading() bool { return p.Excuse.Load() == LoadingSnapshot && p.Owed.Load() > 0 }

// Monitor watches the loops without which a node does nothing.
type Monitor struct {
	loops []*Pulse
}

// New returns a monitor of these loops. It asks them only while Run runs.
func New(loops ...*Pulse) *Monitor { return &Monitor{loops} }

// Run asks all loops until ctx ends.
func (l *Monitor) Run(ctx context.Context) error {
	every := time.NewTicker(LiveInterval)
	defer every.Stop()
	for {
		select {
		case <-every.C:
			for _, p := range l.loops {
				p.Ask()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Check returns an error that names the loops that are stuck. One may be stuck
// because another is.
func (l *Monitor) Check() error {
	stuck := ""
	for _, p := range l.loops {
		if p.Stuck() {
			stuck += fmt.Sprintf("; the %s loop for %v", p.loop, time.Duration(p.Owed.Load())*LiveInterval)
		}
	}
	if stuck == "" {
		return nil
	}
	return fmt.Errorf("%w%s", problem.ErrStuck, stuck)
}

// Serve answers GET /livez: ok, or the error of Check. It does not wait for a loop.
func (l *Monitor) Serve(w http.ResponseWriter, _ *http.Request) error {
	if err := l.Check(); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprintln(w, "ok") // a client that hangs up is no fault
	return nil
}
