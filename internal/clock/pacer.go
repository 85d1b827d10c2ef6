// Package clock answers: who moves the replicated clock, and how far? The leader does,
// while anything has a deadline: it puts ticks into the log. What a tick does is package
// lease's business.
package clock

import (
	"raftkv/internal/lease"
	"time"
)

// How often a leader ticks.
const (
	// fastTick is the time to the next tick while a lease waits for its deadline.
	fastTick = 500 * time.Millisecond
	// slowTick is the longest time between two ticks while anything has a deadline. The
	// clock of a new leader goes on from the last tick, so a change of leader costs as much
	// at most.
	slowTick = time.Minute
	// tickShare: the time to a deadline is seen in so many ticks, so that a change of
	// leader makes it later by no more than one part in tickShare.
	tickShare = 100
	// maxLag is how much later than planned a tick may be before its leader is taken to
	// have been stopped meanwhile.
	maxLag = time.Second
)

// Pacer says when a leader ticks, and what the ticks say. It begins where the clock
// stood when the leader had applied an entry of its own term, and goes on with the
// leader's monotonic clock; time in which the leader was stopped does not count.
type Pacer struct {
	base  uint64    // ms; the clock then
	began time.Time // when it was read
	last  time.Time // when a tick was made last
	plan  time.Duration
}

// NewPacer returns one that begins now, with the clock as this node has applied it.
func NewPacer(clock uint64, now time.Time) *Pacer {
	return &Pacer{base: clock, began: now, last: now}
}

// Wait returns how long after the last tick the next one is due; false: none is.
func (p *Pacer) Wait(a lease.Agenda) (wait time.Duration, ok bool) {
	switch {
	case !a.Fresh && a.Next == 0:
		return 0, false
	case a.Full:
		p.plan = 0
		return 0, true
	}
	wait = slowTick
	if a.Next > 0 {
		left := time.Duration(max(a.Next, a.Clock)-a.Clock) * time.Millisecond
		wait = min(left, max(left/tickShare, fastTick), slowTick)
	}
	if a.Fresh {
		wait = min(wait, fastTick)
	}
	p.plan = wait
	return wait, true
}

// Due returns how long it is from now to the next tick; false: none is due. There is at
// least a millisecond between two, so that each says more than the one before.
func (p *Pacer) Due(a lease.Agenda, now time.Time) (left time.Duration, ok bool) {
	wait, ok := p.Wait(a)
	return max(wait, time.Millisecond) - now.Sub(p.last), ok
}

// Tick returns what a tick made now says, in ms. The clock is as this node has applied
// it. Tick must be called where the tick is appended to the log, with nothing appended in
// between.
func (p *Pacer) Tick(clock uint64, now time.Time) uint64 {
	if limit := p.plan + maxLag; now.Sub(p.last) > limit {
		p.began = p.began.Add(now.Sub(p.last) - limit)
	}
	p.last = now
	return max(clock, p.base+uint64(now.Sub(p.began)/time.Millisecond))
}
