// Package checker answers: do the replicas still hold the same? The leader puts
// checkpoints into the log, each node reports the hash of its state at them, and
// what the reports add up to is replicated state (package state). Here is this
// node's part in it, and what it does when it is found to differ.
package checker

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

// FullEvery: each so many intervals the hash is computed anew. At the default
// interval of 10 s that is every five minutes; it costs each node a fraction of
// a second of one processor for a million keys, and is the only thing that an
// idle cluster writes.
const FullEvery = 30

// sayOffAfter is after how many intervals a node says that there are no checks.
const sayOffAfter = 3

// Agreement is what this node knows of the checks beside the replicated state.
type Agreement struct {
	log  *zap.Logger
	self uint64
	// own passes to the reporter the newest of what is to be reported.
	own     chan *state.OwnCheck
	Verdict atomic.Pointer[Verdict]   // why this node must not serve; nil: it may
	Unsound atomic.Bool               // found by a full check of its own; ends with the process
	split   atomic.Bool               // another history contradicts this node's; package suspect
	Decided atomic.Uint64             // checks that were decided in this life
	Worked  atomic.Uint64             // index of the last entry that was more than a check
	Seen    atomic.Pointer[time.Time] // when the newest decided check was seen

	// Of the apply loop alone:
	checked uint64 // the newest decided check
	accused int    // how many members had diverged
}

// Verdict holds what the newest verdict of the checks says against this node:
// problem.ErrDiverged or problem.ErrNoMajority.
type Verdict struct{ Err error }

// NewAgreement returns what a node knows that starts with a state in which
// checked was the newest decided check, and worked the last entry of others.
func NewAgreement(log *zap.Logger, self, worked, checked uint64) *Agreement {
	a := &Agreement{log: log, self: self, own: make(chan *state.OwnCheck, 1), checked: checked}
	a.Worked.Store(worked)
	return a
}

// Divide notes that another history contradicts this node's.
func (a *Agreement) Divide() {
	if !a.split.Swap(true) {
		a.log.Error("this node stops serving: "+problem.ErrHistories.Error(), zap.Uint64("id", a.self))
	}
}

// Fault returns nil, or why this node must not serve: problem.ErrDiverged,
// problem.ErrHistories, problem.ErrNoMajority or problem.ErrMemory.
func (a *Agreement) Fault() error {
	if a.split.Load() {
		return problem.ErrHistories
	}
	f := a.Verdict.Load()
	if a.Unsound.Load() && (f == nil || f.Err == problem.ErrNoMajority) {
		return problem.ErrMemory // says more
	}
	if f != nil {
		return f.Err
	}
	return nil
}

// Note takes what the checks have found out of a state that has changed, before
// anyone can read from it: the store's lock is held.
func (a *Agreement) Note(c *state.Checks) {
	if own := c.Own; own != nil {
		c.Own = nil
		a.Overtake()
		select {
		case a.own <- own:
		default: // nobody reports: a store by itself
		}
	}
	if c.Checked != a.checked {
		a.checked = c.Checked
		a.Decided.Add(1)
	}
	if len(c.Diverged) > a.accused {
		a.log.Warn("members hold other data than the majority and serve no more: remove them, and join others under new IDs",
			zap.Uint64s("ids", membership.SortedKeys(c.Diverged)), zap.Uint64("checkpoint", c.Index))
	}
	a.accused = len(c.Diverged)
	err := c.Verdict(a.self)
	old := a.Verdict.Load()
	switch {
	case err == nil && old == nil, err != nil && old != nil && err == old.Err:
		return
	case err == nil:
		a.Verdict.Store(nil)
		a.log.Info("the replicas agree again; this node serves", zap.Uint64("checkpoint", c.Checked))
	default:
		a.Verdict.Store(&Verdict{err})
		a.log.Error("this node stops serving: "+err.Error(), zap.Uint64("checkpoint", c.Index), zap.Uint64("id", a.self))
	}
}

// Overtake drops what was to be reported, because there is something newer.
func (a *Agreement) Overtake() {
	select {
	case <-a.own:
	default:
	}
}

// checkStore lends the state for a look at it.
type checkStore interface {
	View(look func(*state.State))
}

// Config is what a Checker needs of others.
type Config struct {
	Log             *zap.Logger
	ID              uint64
	Interval        time.Duration // between checkpoints; 0: this node asks for none
	Tick            time.Duration
	ElectionTimeout time.Duration
	Store           checkStore
	Found           *Agreement // what the checks have found out
	Leaders         *wait.Leadership
	CaughtUp        *atomic.Bool // this node has applied what was committed when it started
	// StepDown hands leadership to a voter that is not among those named.
	StepDown func(ctx context.Context, except []uint64) error
	Propose  func(ctx context.Context, cmd []byte) state.Result // waits for what became of the command
}

// Checker makes this node take part in the checks.
type Checker struct {
	Config

	// Of lead alone:
	lastFull  uint64    // the last full check that it knows of
	since     int       // intervals since then
	looked    bool      // it has looked since the node caught up
	lastSeen  uint64    // the last decided check then
	lastAsked uint64    // the newest checkpoint then
	askedAt   time.Time // when it saw that one come; zero: not in this life
}

// New returns a node's part in the checks.
func New(c Config) *Checker {
	return &Checker{Config: c}
}

// Report answers checkpoints, for every node, until ctx ends.
func (c *Checker) Report(ctx context.Context) error {
	for {
		select {
		case own := <-c.Found.own:
			c.answer(ctx, own)
		case <-ctx.Done():
			return nil
		}
	}
}

// answer reports what this node makes of a checkpoint, until the report is in
// the state or a newer checkpoint is.
func (c *Checker) answer(ctx context.Context, own *state.OwnCheck) {
	// A node that has started again meets checkpoints of the past, most of
	// which it has answered in its former life.
	for !c.CaughtUp.Load() {
		if !c.pause(ctx) {
			return
		}
	}
	if own.Items != nil && c.pending(own.Index) {
		c.recompute(own)
	}
	for c.pending(own.Index) {
		r := state.Report{Hash: own.Hash(), Void: c.Found.Unsound.Load()}
		if err := c.Propose(ctx, state.EncodeReport(c.ID, own.Index, r)).Err; err != nil {
			c.Log.Debug("the report on a checkpoint is not in the log yet", zap.Uint64("checkpoint", own.Index), zap.Error(err))
		}
		if !c.pause(ctx) {
			return
		}
	}
}

// recompute looks whether the items are those of which the sum is. If not, they
// were altered behind the store's back, and whatever the others report, this
// node cannot be right, now and until it has loaded its state again.
func (c *Checker) recompute(own *state.OwnCheck) {
	if own.Sound() {
		return
	}
	c.Found.Unsound.Store(true)
	c.Log.Error("this node stops serving: "+problem.ErrMemory.Error(), zap.Uint64("checkpoint", own.Index), zap.Uint64("id", c.ID))
}

func (c *Checker) pending(index uint64) (is bool) {
	c.Store.View(func(s *state.State) { is = !s.Checks.Answered(c.ID, index) })
	return is
}

func (c *Checker) pause(ctx context.Context) bool {
	select {
	case <-time.After(c.Tick):
		return true
	case <-ctx.Done():
		return false
	}
}

// Lead asks for checkpoints while this node leads, and gives leadership up
// when it must not serve. A node that comes to lead does not wait for its next
// interval if none has come within one: while leaders change more often than
// that, no node might lead when its interval ends.
func (c *Checker) Lead(ctx context.Context) error {
	var every <-chan time.Time
	if c.Interval > 0 {
		t := time.NewTicker(c.Interval)
		defer t.Stop()
		every = t.C
	}
	look := time.NewTicker(c.ElectionTimeout / 4)
	defer look.Stop()
	led := false // at the last look
	for {
		select {
		case <-look.C:
			c.see()
			leader, _, _ := c.Leaders.Get()
			leads := leader == c.ID
			if leads {
				c.giveUp(ctx)
			}
			if leads && !led && c.Interval > 0 && time.Since(c.askedAt) >= c.Interval {
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
func (c *Checker) due() (wanted, full bool) {
	c.Store.View(func(s *state.State) {
		if s.Level < state.CheckLevel {
			if c.since == sayOffAfter {
				c.Log.Warn("the replicas do not check each other yet: these members have not said that their programs know how",
					zap.Uint64s("ids", s.Membership.Below(state.CheckLevel)))
			}
			return
		}
		if s.Checks.Full != c.lastFull {
			c.lastFull, c.since = s.Checks.Full, 0
		}
		full = c.since >= FullEvery
		wanted = full || c.Found.Worked.Load() > s.Checks.Index || s.Checks.Undecided()
	})
	return wanted, full
}

// Outstanding says whether there is anything that no check has covered, and which
// check was the newest that was decided.
func (c *Checker) Outstanding() (pending bool, checked uint64) {
	c.Store.View(func(s *state.State) {
		pending = c.Found.Worked.Load() > s.Checks.Index || s.Checks.Undecided()
		checked = s.Checks.Checked
	})
	return pending, checked
}

func (c *Checker) askIfDue(ctx context.Context) {
	wanted, full := c.due()
	if leader, _, _ := c.Leaders.Get(); !wanted || leader != c.ID {
		return
	}
	if err := c.Propose(ctx, state.EncodeCheckpoint(full)).Err; err != nil {
		c.Log.Debug("the checkpoint is not in the log yet", zap.Error(err))
	}
}

// see notes when a check was asked for, and when one was decided. The apply loop
// reads no clock. What was there before the first look is of the past, nobody
// knows of when.
func (c *Checker) see() {
	if !c.CaughtUp.Load() {
		return // in the log there may be more of the past
	}
	var asked, decided uint64
	c.Store.View(func(s *state.State) { asked, decided = s.Checks.Index, s.Checks.Checked })
	now := time.Now()
	if c.looked && asked != c.lastAsked {
		c.askedAt = now
	}
	if c.looked && decided != c.lastSeen {
		c.Found.Seen.Store(&now)
	}
	c.looked, c.lastAsked, c.lastSeen = true, asked, decided
}

// giveUp hands leadership to a voter that has not diverged, if this node has.
// Replication does not depend on the leader's state, but what only the leader
// decides does, and snapshots.
func (c *Checker) giveUp(ctx context.Context) {
	err := c.Found.Fault()
	if err == nil || errors.Is(err, problem.ErrNoMajority) {
		return // without a majority nobody is fitter
	}
	var diverged []uint64
	c.Store.View(func(s *state.State) { diverged = membership.SortedKeys(s.Checks.Diverged) })
	if err := c.StepDown(ctx, diverged); err != nil {
		c.Log.Debug("leadership was not given up yet", zap.Error(err))
	}
}

// Register adds what there is to count.
func (a *Agreement) Register(reg prometheus.Registerer) {
	meter.Counter(reg, "raftkv_checks_total", "Checks on which a majority agreed, as applied since the start.",
		func() float64 { return float64(a.Decided.Load()) })
}
