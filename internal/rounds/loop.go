package rounds

import (
	"context"
	"raftkv/internal/liveness"
	"raftkv/internal/wait"
	"time"
)

// carrier is what a loop carries to raft: batches or rounds of reads.
type carrier interface {
	// follow is told whom raft follows, whenever the loop comes round. What was
	// handed to another leader, or in another term, may be lost.
	follow(leader, term uint64)
	// send hands raft what is to go now, and reports whether there was anything. If
	// not, it returns after which time to look again, unless the loop is woken before.
	send(ctx context.Context, term uint64) (sent bool, pause time.Duration)
	// idle reports whether nothing can expire or need another try.
	idle() bool
	// expire ends what has waited too long.
	expire(now time.Time)
}

// loop is the goroutine of a Proposer and of a Reader. It hands on what has
// gathered while there is a leader, and sweeps up what is late.
type loop struct {
	Pulse   *liveness.Pulse
	leaders *wait.Leadership
	kick    chan struct{}
}

func newLoop(name string, leaders *wait.Leadership) loop {
	return loop{Pulse: liveness.NewPulse(name), leaders: leaders, kick: make(chan struct{}, 1)}
}

// wake has the loop look again. It never waits.
func (l *loop) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// run carries until ctx ends.
func (l *loop) run(ctx context.Context, c carrier) {
	sweep := time.NewTicker(dropRetry)
	defer sweep.Stop()
	gathered := time.NewTimer(0) // when what has gathered by then goes
	defer gathered.Stop()
	for {
		leader, term, changed := l.leaders.Get()
		c.follow(leader, term)
		for leader != 0 {
			sent, pause := c.send(ctx, term)
			if ctx.Err() != nil {
				return
			}
			if !sent {
				gathered.Reset(pause)
				break
			}
		}
		tick := sweep.C
		if c.idle() {
			tick = nil
		}
		select {
		case <-l.kick:
		case <-l.Pulse.Comes():
		case <-changed:
		case <-gathered.C:
		case <-tick:
			c.expire(time.Now())
		case <-ctx.Done():
			return
		}
	}
}
