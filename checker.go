package main

import (
	"context"
	"errors"
	"raftkv/internal/membership"
	"raftkv/internal/meter"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// fullEvery: each so many intervals the hash is computed anew. At the default
// interval of 10 s that is every five minutes; it costs each node a fraction of
// a second of one processor for a million keys, and is the only thing that an
// idle cluster writes.
const fullEvery = 30

// sayOffAfter is after how many intervals a node says that there are no checks.
const sayOffAfter = 3

// agreement is what this node knows of the checks beside the replicated state.
type agreement struct {
	log  *zap.Logger
	self uint64
	// own passes to the reporter the newest of what is to be reported.
	own     chan *state.OwnCheck
	fault   atomic.Pointer[fault]     // why this node must not serve; nil: it may
	unsound atomic.Bool               // found by a full check of its own; ends with the process
	split   atomic.Bool               // another history contradicts this node's; inquiry.go
	decided atomic.Uint64             // checks that were decided in this life
	worked  atomic.Uint64             // index of the last entry that was more than a check
	seen    atomic.Pointer[time.Time] // when the newest decided check was seen

	// Of the apply loop alone:
	checked uint64 // the newest decided check
	accused int    // how many members had diverged
}

type fault struct{ err error }

// newAgreement returns what a node knows that starts with a state in which
// checked was the newest decided check, and worked the last entry of others.
func newAgreement(log *zap.Logger, self, worked, checked uint64) *agreement {
	a := &agreement{log: log, self: self, own: make(chan *state.OwnCheck, 1), checked: checked}
	a.worked.Store(worked)
	return a
}

// divide notes that another history contradicts this node's.
func (a *agreement) divide() {
	if !a.split.Swap(true) {
		a.log.Error("this node stops serving: "+problem.ErrHistories.Error(), zap.Uint64("id", a.self))
	}
}

// sound returns nil, or why this node must not serve: problem.ErrDiverged,
// problem.ErrHistories, problem.ErrNoMajority or problem.ErrMemory.
func (a *agreement) sound() error {
	if a.split.Load() {
		return problem.ErrHistories
	}
	f := a.fault.Load()
	if a.unsound.Load() && (f == nil || f.err == problem.ErrNoMajority) {
		return problem.ErrMemory // says more
	}
	if f != nil {
		return f.err
	}
	return nil
}

// note takes what the checks have found out of a state that has changed, before
// anyone can read from it: the store's lock is held.
func (a *agreement) note(c *state.Checks) {
	if own := c.Own; own != nil {
		c.Own = nil
		a.overtake()
		select {
		case a.own <- own:
		default: // nobody reports: a store by itself
		}
	}
	if c.Checked != a.checked {
		a.checked = c.Checked
		a.decided.Add(1)
	}
	if len(c.Diverged) > a.accused {
		a.log.Warn("members hold other data than the majority and serve no more: remove them, and join others under new IDs",
			zap.Uint64s("ids", membership.SortedKeys(c.Diverged)), zap.Uint64("checkpoint", c.Index))
	}
	a.accused = len(c.Diverged)
	err := c.Verdict(a.self)
	old := a.fault.Load()
	switch {
	case err == nil && old == nil, err != nil && old != nil && err == old.err:
		return
	case err == nil:
		a.fault.Store(nil)
		a.log.Info("the replicas agree again; this node serves", zap.Uint64("checkpoint", c.Checked))
	default:
		a.fault.Store(&fault{err})
		a.log.Error("this node stops serving: "+err.Error(), zap.Uint64("checkpoint", c.Index), zap.Uint64("id", a.self))
	}
}

// overtake drops what was to be reported, because there is something newer.
func (a *agreement) overtake() {
	select {
	case <-a.own:
	default:
	}
}

// checkStore lends the state for a look at it.
type checkStore interface {
	view(look func(*state.State))
}

// checker makes this node take part in the checks.
type checker struct {
	log      *zap.Logger
	id       uint64
	interval time.Duration // between checkpoints; 0: this node asks for none
	tick     time.Duration
	elected  time.Duration // the election timeout
	store    checkStore
	found    *agreement
	leaders  *wait.Leadership
	caughtUp *atomic.Bool
	// stepDown hands leadership to a voter that is not among those named.
	stepDown func(ctx context.Context, except []uint64) error
	propose  func(ctx context.Context, cmd []byte) state.Result

	// Of lead alone:
	lastFull  uint64    // the last full check that it knows of
	since     int       // intervals since then
	looked    bool      // it has looked since the node caught up
	lastSeen  uint64    // the last decided check then
	lastAsked uint64    // the newest checkpoint then
	askedAt   time.Time // when it saw that one come; zero: not in this life
}

// report answers checkpoints, for every node, until ctx ends.
func (c *checker) report(ctx context.Context) error {
	for {
		select {
		case own := <-c.found.own:
			c.answer(ctx, own)
		case <-ctx.Done():
			return nil
		}
	}
}

// answer reports what this node makes of a checkpoint, until the report is in
// the state or a newer checkpoint is.
func (c *checker) answer(ctx context.Context, own *state.OwnCheck) {
	// A node that has started again meets checkpoints of the past, most of
	// which it has answered in its former life.
	for !c.caughtUp.Load() {
		if !c.pause(ctx) {
			return
		}
	}
	if own.Items != nil && c.pending(own.Index) {
		c.recompute(own)
	}
	for c.pending(own.Index) {
		r := state.Report{Hash: own.Hash(), Void: c.found.unsound.Load()}
		if err := c.propose(ctx, state.EncodeReport(c.id, own.Index, r)).Err; err != nil {
			c.log.Debug("the report on a checkpoint is not in the log yet", zap.Uint64("checkpoint", own.Index), zap.Error(err))
		}
		if !c.pause(ctx) {
			return
		}
	}
}

// recompute looks whether the items are those of which the sum is. If not, they
// were altered behind the store's back, and whatever the others report, this
// node cannot be right, now and until it has loaded its state again.
func (c *checker) recompute(own *state.OwnCheck) {
	if state.HashItems(own.Items) == own.Sum {
		return
	}
	c.found.unsound.Store(true)
	c.log.Error("this node stops serving: "+problem.ErrMemory.Error(), zap.Uint64("checkpoint", own.Index), zap.Uint64("id", c.id))
}

func (c *checker) pending(index uint64) (is bool) {
	c.store.view(func(s *state.State) { is = !s.Checks.Answered(c.id, index) })
	return is
}

func (c *checker) pause(ctx context.Context) bool {
	select {
	case <-time.After(c.tick):
		return true
	case <-ctx.Done():
		return false
	}
}

// lead asks for checkpoints while this node leads, and gives leadership up
// when it must not serve. A node that comes to lead does not wait for its next
// interval if none has come within one: while leaders change more often than
// that, no node might lead when its interval ends.
func (c *checker) lead(ctx context.Context) error {
	var every <-chan time.Time
	if c.interval > 0 {
		t := time.NewTicker(c.interval)
		defer t.Stop()
		every = t.C
	}
	look := time.NewTicker(c.elected / 4)
	defer look.Stop()
	led := false // at the last look
	for {
		select {
		case <-look.C:
			c.see()
			leader, _, _ := c.leaders.Get()
			leads := leader == c.id
			if leads {
				c.giveUp(ctx)
			}
			if leads && !led && c.interval > 0 && time.Since(c.askedAt) >= c.interval {
				c.askIfDue(ctx)
			}
			led = leads
		case <-every:
			c.since++
			c.askIfDue(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// due decides whether the leader should ask for a check, if it is time for one.
// All nodes count the intervals, so that full checks do not depend on one node
// leading for long.
func (c *checker) due() (wanted, full bool) {
	c.store.view(func(s *state.State) {
		if s.Level < state.CheckLevel {
			if c.since == sayOffAfter {
				c.log.Warn("the replicas do not check each other yet: these members have not said that their programs know how",
					zap.Uint64s("ids", s.Membership.Below(state.CheckLevel)))
			}
			return
		}
		if s.Checks.Full != c.lastFull {
			c.lastFull, c.since = s.Checks.Full, 0
		}
		full = c.since >= fullEvery
		wanted = full || c.found.worked.Load() > s.Checks.Index || s.Checks.Undecided()
	})
	return wanted, full
}

// outstanding says whether there is anything that no check has covered, and which
// check was the newest that was decided.
func (c *checker) outstanding() (pending bool, checked uint64) {
	c.store.view(func(s *state.State) {
		pending = c.found.worked.Load() > s.Checks.Index || s.Checks.Undecided()
		checked = s.Checks.Checked
	})
	return pending, checked
}

func (c *checker) askIfDue(ctx context.Context) {
	wanted, full := c.due()
	if leader, _, _ := c.leaders.Get(); !wanted || leader != c.id {
		return
	}
	if err := c.propose(ctx, state.EncodeCheckpoint(full)).Err; err != nil {
		c.log.Debug("the checkpoint is not in the log yet", zap.Error(err))
	}
}

// see notes when a check was asked for, and when one was decided. The apply loop
// reads no clock. What was there before the first look is of the past, nobody
// knows of when.
func (c *checker) see() {
	if !c.caughtUp.Load() {
		return // in the log there may be more of the past
	}
	var asked, decided uint64
	c.store.view(func(s *state.State) { asked, decided = s.Checks.Index, s.Checks.Checked })
	now := time.Now()
	if c.looked && asked != c.lastAsked {
		c.askedAt = now
	}
	if c.looked && decided != c.lastSeen {
		c.found.seen.Store(&now)
	}
	c.looked, c.lastAsked, c.lastSeen = true, asked, decided
}

// giveUp hands leadership to a voter that has not diverged, if this node has.
// Replication does not depend on the leader's state, but what only the leader
// decides does, and snapshots.
func (c *checker) giveUp(ctx context.Context) {
	err := c.found.sound()
	if err == nil || errors.Is(err, problem.ErrNoMajority) {
		return // without a majority nobody is fitter
	}
	var diverged []uint64
	c.store.view(func(s *state.State) { diverged = membership.SortedKeys(s.Checks.Diverged) })
	if err := c.stepDown(ctx, diverged); err != nil {
		c.log.Debug("leadership was not given up yet", zap.Error(err))
	}
}

// Register adds what there is to count.
func (a *agreement) Register(reg prometheus.Registerer) {
	meter.Counter(reg, "raftkv_checks_total", "Checks on which a majority agreed, as applied since the start.",
		func() float64 { return float64(a.decided.Load()) })
}
