// Package holding answers: what may run while a name of the cluster is held? It has
// the commands lock and elect: they get a lock or a leadership, run a command under
// it, and end the command before others can get the same. How a lock is got and kept
// is for package client, how a command is ended for package child.
package holding

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"raftkv/client"
	"raftkv/internal/child"
	"syscall"
	"time"
)

// hold is a name that is held.
type hold struct {
	fence   uint64
	held    context.Context                 // ends when it is lost
	until   func() time.Time                // it is held up to then for sure; moves on while it is kept
	release func(ctx context.Context) error // gives it back
}

// times say when a command is ended whose hold is not kept: TERM at grace and margin
// before the hold is over, KILL at margin before that.
type times struct {
	grace  time.Duration
	margin time.Duration
}

const (
	// marginPart is the part of its time that a hold is given up too early, so that a
	// command has ended when it is over, also on a busy machine.
	marginPart = 20
	maxMargin  = 500 * time.Millisecond

	// lookEvery bounds how long nothing is looked at: timers stand still while a
	// machine sleeps.
	lookEvery = 250 * time.Millisecond

	// Giving back what is held takes no longer than that, and no longer than its time: it
	// goes by itself then.
	releaseLimit = 5 * time.Second
	leastRelease = 200 * time.Millisecond
)

func timesOf(ttl, grace time.Duration) times {
	return times{grace: grace, margin: min(ttl/marginPart, maxMargin)}
}

// process is a command that runs; *child.Child is one.
type process interface {
	Done() <-chan struct{}
	Code() int
	Group() int
	Signal(syscall.Signal) error
	Empty() bool
	End(kill time.Time) error
}

// run is a command under a hold.
type run struct {
	hold    hold
	times   times
	start   func() (process, error)
	guard   func(times) (watchman, error) // nil: nobody sees to it beside this process
	signals <-chan os.Signal              // passed on to the command
	say     io.Writer
	name    string // for what is said
}

// watchman ends a command when this process does not.
type watchman interface {
	Until(time.Time) error // the hold is good up to then
	Guard(group int) error // this is the command's process group
	Dismiss() error        // the command has ended
}

// errLost is why a command was ended.
var errLost = errors.New("lost")

// errRunsOn is why something runs on that should have been ended, such as a program that belongs to
// another user.
var errRunsOn = errors.New("some of it still runs, and cannot be ended")

// do runs the command to its end, and gives the hold back. The error matches errLost if the hold
// was lost, or about to be, while the command ran.
func (r *run) do(ctx context.Context) (code int, err error) {
	// A signal ends ctx, and is passed on: the hold has to outlast it.
	ctx = context.WithoutCancel(ctx)
	code, err = r.underHold()
	if errors.Is(err, errRunsOn) {
		fmt.Fprintf(r.say, "%s: not given back, so it stays until its time is over: %v\n", r.name, errRunsOn)
		return code, err
	}
	ctx, cancel := context.WithTimeout(ctx, min(releaseLimit, max(leastRelease, time.Until(r.hold.until()))))
	defer cancel()
	released := r.hold.release(ctx)
	switch {
	case released == nil || errors.Is(released, client.ErrLeaseLost):
		// It was lost before or, for the command too late to matter, only now.
	default:
		fmt.Fprintf(r.say, "%s: not given back, so it stays until its time is over: %v\n", r.name, released)
	}
	return code, err
}

// underHold runs the command, and returns when none of its process group is left.
func (r *run) underHold() (code int, err error) {
	if r.hold.held.Err() != nil {
		return 0, errLost
	}
	// The guard is there before the command is, since it is the one that is slow to start.
	var guard watchman = noWatchman{}
	if r.guard != nil {
		if guard, err = r.guard(r.times); err != nil {
			fmt.Fprintf(r.say, "%s: nobody ends the command if this process is stopped: %v\n", r.name, err)
			guard = noWatchman{}
		}
	}
	defer func() { _ = guard.Dismiss() }() // fails if the guard has ended
	_ = guard.Until(r.hold.until())        // likewise, as below: then there is this process
	p, err := r.start()
	if err != nil {
		return child.Code(err), err
	}
	_ = guard.Guard(p.Group())
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-r.hold.held.Done():
			// Others may have it: no time is left.
			return r.end(p, time.Now())
		case <-p.Done():
			return r.ended(p)
		case sig := <-r.signals:
			if s, ok := sig.(syscall.Signal); ok {
				_ = p.Signal(s) // fails if it may not be signalled, as a setuid program
			}
		case <-look.C:
			if r.hold.held.Err() != nil {
				return r.end(p, time.Now())
			}
			until := r.hold.until()
			warn := until.Add(-r.times.grace - r.times.margin)
			if time.Until(warn) <= 0 {
				return r.end(p, until.Add(-r.times.margin))
			}
			_ = guard.Until(until)
			look.Reset(min(lookEvery, time.Until(warn)))
		}
	}
}

// end ends a command, the hold of which is lost or about to be.
func (r *run) end(p process, kill time.Time) (int, error) {
	fmt.Fprintf(r.say, "%s: not kept alive: ending the command\n", r.name)
	if err := p.End(kill); err != nil {
		return 0, fmt.Errorf("%w: %w: %w", errLost, errRunsOn, err)
	}
	return p.Code(), errLost
}

// ended ends what a command has left behind in its group: it would run without the hold.
func (r *run) ended(p process) (int, error) {
	code := p.Code()
	if !p.Empty() {
		until := r.hold.until().Add(-r.times.margin)
		if err := p.End(earlier(time.Now().Add(r.times.grace), until)); err != nil {
			return code, fmt.Errorf("%w: %w", errRunsOn, err)
		}
	}
	if r.hold.held.Err() != nil {
		return code, errLost
	}
	return code, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

type noWatchman struct{}

func (noWatchman) Until(time.Time) error { return nil }
func (noWatchman) Guard(int) error       { return nil }
func (noWatchman) Dismiss() error        { return nil }
