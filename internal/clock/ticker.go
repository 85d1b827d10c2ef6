package clock

import (
	"context"
	"raftkv/internal/entry"
	"raftkv/internal/lease"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
)

// lookEvery is how often a leader looks whether there is anything to tick for.
const lookEvery = 100 * time.Millisecond

// Config is what a Ticker needs of others.
type Config struct {
	Log *zap.Logger
	ID  uint64
	// View lends the state for a look at it.
	View    func(look func(*state.State))
	Leaders *wait.Leadership
	Applied *wait.Index // up to where this node has applied the log
	// Call runs f on the raft loop, where nothing is appended meanwhile.
	Call func(ctx context.Context, f func(*raft.RawNode)) error
	// Propose offers an entry to raft, on the raft loop.
	Propose func(rounds.Proposal)
}

// Ticker moves the replicated clock on while this node leads.
type Ticker struct {
	Config

	// Of Run alone:
	term  uint64 // of the pacer
	pacer *Pacer // nil: no entry of this term has been applied yet
}

// New returns a Ticker that moves nothing before it runs.
func New(c Config) *Ticker { return &Ticker{Config: c} }

// Run ticks while this node leads, until ctx ends.
func (t *Ticker) Run(ctx context.Context) error {
	for {
		leader, term, changed := t.Leaders.Get()
		pause := (<-chan time.Time)(nil)
		if leader == t.ID {
			pause = time.After(t.lead(ctx, term))
		}
		select {
		case <-pause:
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// lead ticks if it is time, and returns when to look again.
func (t *Ticker) lead(ctx context.Context, term uint64) time.Duration {
	a, ready := t.look(term)
	if !ready {
		return lookEvery
	}
	if t.pacer == nil || t.term != term {
		t.term, t.pacer = term, NewPacer(a.Clock, time.Now())
	}
	left, ok := t.pacer.Due(a, time.Now())
	if !ok {
		return lookEvery
	}
	if left > 0 {
		// Something with a nearer deadline may come while it waits.
		return min(max(left, time.Millisecond), lookEvery)
	}
	return t.tick(ctx)
}

// look returns what there is to do, once this node has applied an entry of its own term:
// then no tick of a former leader follows any more that would count.
func (t *Ticker) look(term uint64) (a lease.Agenda, ready bool) {
	t.View(func(s *state.State) {
		a, ready = s.Agenda(), s.Term == term && s.Level >= state.LeaseLevel
	})
	return a, ready
}

// tick appends a tick, and waits until it has been applied: there is one at a time, so
// that what is done in one step of apply is bounded.
func (t *Ticker) tick(ctx context.Context) (again time.Duration) {
	_, _, changed := t.Leaders.Get()
	clock := t.now() // which no other tick moves: this one is the only one of its term
	var said uint64
	err := t.Call(ctx, func(rn *raft.RawNode) {
		st := rn.BasicStatus()
		if st.RaftState != raft.StateLeader || st.GetTerm() != t.term {
			return
		}
		now := t.pacer.Tick(clock, time.Now())
		t.Propose(rounds.Proposal{Data: entry.EncodeTick(t.term, now), Done: func(taken bool, _ uint64, _ bool) {
			if taken {
				said = now
			}
		}})
	})
	if err != nil || said == 0 {
		return lookEvery
	}
	for {
		more := t.Applied.Channel(t.Applied.Get() + 1)
		if t.now() >= said {
			return 0
		}
		select {
		case <-more:
		case <-changed:
			return lookEvery // it may be lost
		case <-ctx.Done():
			return lookEvery
		}
	}
}

// now returns the replicated clock.
func (t *Ticker) now() (ms uint64) {
	t.View(func(s *state.State) { ms = s.Leases.Clock })
	return ms
}
