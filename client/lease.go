package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// ErrLeaseLost is why the context of a lease, a lock or a leadership has ended, unless whoever
// held it gave it up: by context.Cause, and from Unlock and Resign.
var ErrLeaseLost = errors.New("the lease is lost")

// errGivenUp is why the context of a lease has ended that was closed.
var errGivenUp = fmt.Errorf("the lease was given up: %w", context.Canceled)

const (
	// keepSlack is the part of its time by which a lease counts as lost too early: clocks that
	// differ by less than one in a hundred do no harm.
	keepSlack = 100
	// keepsPerLife is how often a lease is kept alive in its time, and triesPerLife how many
	// attempts have room in it, each at another endpoint than the one before.
	keepsPerLife = 3
	triesPerLife = 6

	leastKeepTry = 100 * time.Millisecond
	// lookEvery bounds how late it is noticed that a machine slept: while it does, its
	// timers stand still.
	lookEvery = time.Second
)

// Lease is a lease of the cluster that is kept alive until it is closed or lost. Keys that
// are written WithLease(l.ID()) go away with it.
//
// It is lost, for this program, no later than its time to live after the last request that
// kept it alive was sent, as the clocks of this machine have it; so it is before the cluster
// takes its keys away. Time in which the process was stopped or the machine slept counts. A lease
// that was lost stays so.
type Lease struct {
	client *Client
	id     uint64
	life   time.Duration
	every  time.Duration
	ctx    leaseContext
	end    context.CancelCauseFunc
	unhook func() bool // of the client's end

	mu   sync.Mutex
	sent moment // the last request that is known to have made it or kept it alive
	look *time.Timer

	closing sync.Mutex // one Close at a time
	revoked bool
}

// leaseContext is the context of a lease. To ask it for its error looks at the clock, so the
// answer is right even where a timer is late, as after the process was stopped.
type leaseContext struct {
	context.Context
	lease *Lease
}

// Err looks at the clock first.
func (c leaseContext) Err() error {
	c.lease.check()
	return c.Context.Err()
}

// Lease makes a lease and keeps it alive, three times in each ttl, at the next endpoint when
// one fails. ttl is 1 s to a year, rounded up to milliseconds. ctx is for making it alone: the
// lease stays until it is closed or lost, or the client is closed.
func (c *Client) Lease(ctx context.Context, ttl time.Duration) (*Lease, error) {
	for {
		begun := thisMoment() // an attempt that got no answer may be the one that made it
		id, err := c.GrantLease(ctx, ttl)
		if err != nil {
			return nil, err
		}
		l := c.newLease(ctx, id, ttl, begun)
		if begun.ago() > l.life/keepsPerLife && !l.keepFor(ctx) {
			// It took so long that the time may be over.
			l.lost()
			if err := context.Cause(ctx); err != nil {
				return nil, &Error{Op: "lease", Detail: err.Error(), cause: err, Unknown: true}
			}
			continue
		}
		l.check() // starts the timer
		go l.keep()
		return l, nil
	}
}

func (c *Client) newLease(ctx context.Context, id uint64, ttl time.Duration, begun moment) *Lease {
	l := &Lease{client: c, id: id, life: ttl - ttl/keepSlack, every: ttl / keepsPerLife, sent: begun}
	inner, end := context.WithCancelCause(context.WithoutCancel(ctx))
	l.ctx, l.end = leaseContext{inner, l}, end
	l.unhook = context.AfterFunc(c.closing, func() { end(ErrClosed) })
	return l
}

// ID returns the number by which the cluster knows the lease.
func (l *Lease) ID() uint64 { return l.id }

// Context returns a context that ends when the lease is lost or closed; context.Cause tells
// which, as ErrLeaseLost. It has the values of the context that Lease was called with. Its Err
// looks at the clock each time, which that of a context made from it does not.
func (l *Lease) Context() context.Context { return l.ctx }

// Until returns up to when the lease is held if nothing keeps it alive from now on: its
// context ends then. It moves on with each request that keeps it alive. Once the lease is lost
// or closed it is the present.
func (l *Lease) Until() time.Time {
	now := time.Now()
	if l.ctx.Err() != nil {
		return now
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Add(l.life - l.sent.ago())
}

// Close ends the lease's context, and revokes the lease, so that its keys go away at once. If
// that fails they go when the time of the lease has passed; Close can be called again. A
// lease that has gone already is no error.
func (l *Lease) Close(ctx context.Context) error {
	l.end(errGivenUp)
	l.unhook()
	l.mu.Lock()
	if l.look != nil {
		l.look.Stop()
	}
	l.mu.Unlock()
	l.closing.Lock()
	defer l.closing.Unlock()
	if l.revoked {
		return nil
	}
	if err := l.client.RevokeLease(ctx, l.id); err != nil && !errors.Is(err, NoSuchLease) {
		return err
	}
	l.revoked = true
	return nil
}

// moment is a point in time by two clocks: the one that cannot be set stands still while the
// machine sleeps, and the one that can be set may be.
type moment struct{ at, wall time.Time }

func thisMoment() moment {
	now := time.Now()
	return moment{now, now.Round(0)}
}

// ago is how much time has passed since, by the clock that shows more of it.
func (m moment) ago() time.Duration {
	now := thisMoment()
	return max(now.at.Sub(m.at), now.wall.Sub(m.wall))
}

// check ends the context if the time is over, else sees to it that it is called again.
func (l *Lease) check() {
	l.mu.Lock()
	left := l.life - l.sent.ago()
	if left > 0 && l.ctx.Context.Err() == nil {
		if next := min(left, lookEvery); l.look == nil {
			l.look = time.AfterFunc(next, l.check)
		} else {
			l.look.Reset(next)
		}
	}
	l.mu.Unlock()
	if left <= 0 {
		l.lost()
	}
}

func (l *Lease) lost() {
	l.end(ErrLeaseLost) // which changes nothing if it has ended before
	l.unhook()
}

// keep keeps the lease alive until its context ends.
func (l *Lease) keep() {
	for {
		l.mu.Lock()
		due := l.every - l.sent.ago()
		l.mu.Unlock()
		if sleep(l.ctx, jitter(due*9/10, due)) != nil || !l.keepNow() {
			return
		}
	}
}

// keepNow sends requests until one has kept the lease alive, each to another endpoint than
// the one before; or the lease is lost, which is false.
func (l *Lease) keepNow() bool {
	tried := map[*endpoint]bool{}
	for pause := time.Duration(0); l.ctx.Err() == nil; {
		e := l.client.endpoints.pick(func(e *endpoint) bool { return tried[e] })
		if e == nil { // each was asked once
			clear(tried)
			pause = min(l.life/triesPerLife/2, max(2*pause, leastPause))
			if sleep(l.ctx, jitter(pause/2, pause)) != nil {
				return false
			}
			if e = l.client.endpoints.pick(nil); e == nil {
				return false // all are of another cluster
			}
		}
		tried[e] = true
		begun := thisMoment()
		err := l.try(e)
		switch {
		case err == nil:
			l.client.endpoints.served(e)
			return l.kept(begun)
		case errors.Is(err, NoSuchLease):
			l.lost()
			return false
		}
		if l.ctx.Context.Err() == nil { // else it is not the endpoint that has failed
			l.client.endpoints.failed(e)
		}
	}
	return false
}

// keepFor is keepNow for somebody who waits for it: it ends with ctx.
func (l *Lease) keepFor(ctx context.Context) bool {
	stop := context.AfterFunc(ctx, l.lost)
	kept := l.keepNow()
	return stop() && kept
}

// try keeps the lease alive by one request.
func (l *Lease) try(e *endpoint) error {
	limit := min(attemptLimit, max(leastKeepTry, l.life/triesPerLife))
	ctx, cancel := context.WithTimeout(l.ctx.Context, limit)
	defer cancel()
	r := &request{op: "lease keep", key: strconv.FormatUint(l.id, 10), method: http.MethodPut, path: leasePath(l.id), effect: repeatable, only: e}
	var got wireLease
	if err := l.client.ask(ctx, r, &got); err != nil {
		return err
	}
	if got.ID != l.id {
		return fmt.Errorf("%w: it is about lease %d, not %d", ErrStranger, got.ID, l.id)
	}
	return nil
}

// kept takes in that a request which was sent at begun has kept the lease alive. It is false
// if the time was over when the answer was read: others may have been told so.
func (l *Lease) kept(begun moment) bool {
	l.check()
	if l.ctx.Context.Err() != nil {
		return false
	}
	l.mu.Lock()
	l.sent = begun
	l.mu.Unlock()
	l.check()
	return true
}
