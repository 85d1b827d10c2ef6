// Package rounds answers: how do many requests share one round of raft? A Proposer
// gathers the commands of writers into batches, a Reader the requests of readers
// into rounds of ReadIndex (thesis §6.4), and both hold a round back for as long as
// more are about to come. Who asks learns what became of the request, or that it is
// not known.
package rounds

import (
	"context"
	"raftkv/internal/config"
	"raftkv/internal/entry"
	"raftkv/internal/meter"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"raftkv/internal/window"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Limits of the proposer.
const (
	// maxBatchBytes bounds one raft entry, unless a single command is larger. How many
	// commands it has is bounded by their work, state.MaxBatchWork.
	maxBatchBytes = 1 << 20
	// fullBatchBytes do not wait for the end of the batch before.
	fullBatchBytes = 256 << 10
	// maxBatchesInFlight: more would only make them smaller.
	maxBatchesInFlight = 4
	// maxQueuedCommands and MaxQueuedBytes bound what waits for a batch.
	// Past them requests are refused, before they are proposed.
	maxQueuedCommands = 16384
	MaxQueuedBytes    = 64 << 20
	// dropRetry is how soon a batch that raft would not take is offered again.
	dropRetry = 20 * time.Millisecond
)

// Waiter is who waits for what becomes of a request.
type Waiter interface {
	// Done tells it. It is called once, on a goroutine of the node, which it must not
	// keep waiting.
	Done(res state.Result)
}

// outcome is a Waiter for a goroutine that has nothing else to do.
type outcome chan state.Result

func newOutcome() outcome { return make(outcome, 1) }

// Done implements Waiter.
func (o outcome) Done(res state.Result) { o <- res }

// request is one command on its way, and who waits for it.
type request struct {
	cmd      []byte // encoded
	deadline time.Time
	canceled bool // the client hung up; guarded by Proposer.mu
	answered bool // guarded by Proposer.mu while its batch is in flight
	waiter   Waiter
}

// answer tells who waits, once.
func (r *request) answer(res state.Result) {
	if !r.answered {
		r.answered = true
		r.waiter.Done(res)
	}
}

// batch is the requests that became one raft entry.
type batch struct {
	id       state.BatchID
	data     []byte
	requests []*request
	began    time.Time
	deadline time.Time // of the last request: nobody waits longer

	// What became of the latest attempt to hand it to raft:
	offered  bool   // it is at the raft loop, which has not answered yet
	tried    uint64 // the term as the proposer knew it at the latest attempt
	accepted bool   // raft took it at least once: it may be applied
	term     uint64 // the term in which raft last took it
	asLeader bool   // this node was the leader then, so it is in its log
	retryAt  time.Time
}

// Proposal is a batch on its way from the Proposer to the raft loop.
type Proposal struct {
	Data []byte // the encoded batch
	// Done is called once, on the raft loop: whether raft took the entry, in
	// which term, and whether into this node's own log. It must not block.
	Done func(taken bool, term uint64, leader bool)
}

// Proposer turns the commands of many handlers into few raft entries. Whatever
// has gathered when the batch before is applied becomes the next one (gather.go
// says what else it waits for).
//
// A proposal can be lost without a word: forwarded to a leader that is gone,
// or overwritten by the log of another. So each batch is proposed again, under
// the same identity, until it is applied or everyone who waits has given up.
type Proposer struct {
	loop
	log        *zap.Logger
	life       Life
	timeout    time.Duration // how long a request may wait
	retryAfter time.Duration // how long a forwarded batch may be on its way
	proposeC   chan<- Proposal
	// Named: batches name their life, as all members can read by now (package state).
	Named atomic.Bool

	mu       sync.Mutex
	queue    []*request
	queued   int // bytes in queue
	enough   int // so many in queue wake run
	gather   gathering
	inFlight []*batch
	nextSeq  uint64
	stopped  bool

	retries uint64 // how often a batch was proposed again; guarded by mu
}

// NewProposer returns a proposer that carries batches to proposeC once it runs.
func NewProposer(log *zap.Logger, cfg config.Config, l Life, proposeC chan<- Proposal, leaders *wait.Leadership) *Proposer {
	return &Proposer{
		loop: newLoop("proposer", leaders), log: log, life: l,
		timeout: cfg.RequestTimeout, retryAfter: cfg.ElectionTimeout / 2,
		proposeC: proposeC,
	}
}

// Propose hands a command to the cluster and waits until this node has
// applied it. The result's error is problem.ErrOverloaded, problem.ErrNoLeader or problem.ErrStopping
// when it did not happen, problem.ErrOutcomeUnknown when it may have happened, else
// the outcome of the command itself.
func (p *Proposer) Propose(ctx context.Context, cmd []byte) state.Result {
	done := newOutcome()
	giveUp, err := p.Start(cmd, done)
	if err != nil {
		return state.Result{Err: err}
	}
	select {
	case res := <-done:
		return res
	case <-ctx.Done():
		giveUp()
		return state.Result{Err: problem.ErrOutcomeUnknown}
	}
}

// Start hands a command to the cluster, and has w told what became of it, as Propose
// returns it; the time limit is the proposer's. With an error it did not happen, and w
// is told nothing. Who calls giveUp may or may not be told.
func (p *Proposer) Start(cmd []byte, w Waiter) (giveUp func(), err error) {
	r := &request{cmd: cmd, waiter: w}
	if err := p.enqueue(r); err != nil {
		return nil, err
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		r.canceled = true
	}, nil
}

func (p *Proposer) enqueue(r *request) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return problem.ErrStopping
	}
	if len(p.queue) >= maxQueuedCommands || (len(p.queue) > 0 && p.queued+len(r.cmd) > MaxQueuedBytes) {
		return problem.ErrOverloaded
	}
	r.deadline = time.Now().Add(p.timeout) // under the lock: the queue is in the order of deadlines
	p.queue = append(p.queue, r)
	p.queued += len(r.cmd)
	if len(p.queue) >= p.enough || p.queued >= fullBatchBytes {
		p.wake()
	}
	return nil
}

// Run feeds raft until ctx ends. Then everyone who waits is told.
func (p *Proposer) Run(ctx context.Context) error {
	defer p.stop()
	p.run(ctx, p)
	return nil
}

// follow implements carrier: a batch says by itself in which term it was tried.
func (p *Proposer) follow(uint64, uint64) {}

func (p *Proposer) send(ctx context.Context, term uint64) (sent bool, pause time.Duration) {
	b, pause := p.next(term)
	if b == nil {
		return false, pause
	}
	return p.offer(ctx, b), 0
}

func (p *Proposer) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 || len(p.inFlight) > 0 {
		return false
	}
	p.enough = 1 // the next request has to wake run
	return true
}

// next picks the batch to hand to raft now: one in flight that needs another
// try, else a new one. If there is none, it returns when to look again, unless
// it is woken before.
func (p *Proposer) next(term uint64) (b *batch, pause time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, b := range p.inFlight {
		if !b.offered && b.due(term, now) {
			b.offered, b.tried = true, term
			if b.accepted {
				p.retries++
			}
			return b, 0
		}
	}
	const never = time.Hour
	p.enough = 1
	switch {
	case len(p.queue) == 0:
		return nil, never
	case len(p.inFlight) >= maxBatchesInFlight || p.nextSeq-p.low() >= window.Size:
		p.enough = maxQueuedCommands
		return nil, never
	case p.queued < fullBatchBytes:
		if pause, p.enough = p.gather.hold(len(p.queue), len(p.inFlight), now); pause > 0 {
			return nil, pause
		}
	}
	p.gather.begin(len(p.queue), len(p.inFlight), now)
	return p.fill(term, now), 0
}

// due reports whether a batch in flight needs another try.
func (b *batch) due(term uint64, now time.Time) bool {
	if b.tried < term {
		return true // by the old leader it may be lost
	}
	if now.Before(b.retryAt) {
		return false
	}
	// In the leader's own log it cannot get lost while the term lasts. On
	// its way to another node it can.
	return !b.accepted || !b.asLeader || b.term < term
}

// low is the first sequence that is not settled.
func (p *Proposer) low() uint64 {
	low := p.nextSeq
	for _, b := range p.inFlight {
		low = min(low, b.id.Seq)
	}
	return low
}

// fill makes a batch of what is waiting; nil if everyone has hung up.
func (p *Proposer) fill(term uint64, now time.Time) *batch {
	b := &batch{offered: true, tried: term, began: now}
	size, work, n := 0, 0, 0
	for _, r := range p.queue {
		if work >= state.MaxBatchWork || (size > 0 && size+len(r.cmd) > maxBatchBytes) {
			break
		}
		n++
		p.queued -= len(r.cmd)
		if r.canceled {
			continue
		}
		size += len(r.cmd) + 4
		work += state.Work(r.cmd)
		b.requests = append(b.requests, r)
		b.deadline = r.deadline // the queue is in the order of deadlines
	}
	clear(p.queue[:n])
	p.queue = p.queue[n:]
	if len(b.requests) == 0 {
		return nil
	}
	b.id = state.BatchID{Node: p.life.node, Boot: p.life.boot, Seq: p.nextSeq, Low: p.low()}
	if p.Named.Load() {
		b.id.Life = p.life.nonce
	}
	p.nextSeq++
	p.inFlight = append(p.inFlight, b)

	b.data = entry.AppendHeader(make([]byte, 0, size+64), b.id)
	for _, r := range b.requests {
		b.data = entry.AppendCommand(b.data, r.cmd)
		r.cmd = nil
	}
	return b
}

// offer passes a batch to the raft loop. False: ctx ended first.
func (p *Proposer) offer(ctx context.Context, b *batch) bool {
	select {
	case p.proposeC <- Proposal{Data: b.data, Done: func(taken bool, term uint64, leader bool) {
		p.answered(b, taken, term, leader)
	}}:
		return true
	case <-ctx.Done():
		return false
	}
}

// answered notes what raft said of a batch.
func (p *Proposer) answered(b *batch, taken bool, term uint64, leader bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b.offered = false
	if !taken {
		b.retryAt = time.Now().Add(dropRetry)
		return
	}
	b.accepted, b.term, b.asLeader = true, term, leader
	b.retryAt = time.Time{}
	if !leader {
		b.retryAt = time.Now().Add(p.retryAfter)
	}
}

// Applied is called by the apply loop when it has applied a batch for the first
// time that this life has sent (CheckBatch).
func (p *Proposer) Applied(id state.BatchID, results []state.Result) {
	if id.Node != p.life.node || id.Boot != p.life.boot {
		return
	}
	b := p.take(id.Seq)
	if b == nil {
		return
	}
	for i, r := range b.requests {
		r.answer(results[i])
	}
}

// Settle is called when a snapshot replaced the state: batches that it covers
// were applied, but with what result this node will never learn.
func (p *Proposer) Settle(w state.Window) {
	p.mu.Lock()
	var lost []*batch
	for _, b := range p.inFlight {
		if w.Settled(b.id) {
			lost = append(lost, b)
		}
	}
	p.mu.Unlock()
	for _, b := range lost {
		if p.take(b.id.Seq) == nil {
			continue
		}
		for _, r := range b.requests {
			r.answer(state.Result{Err: problem.ErrOutcomeUnknown})
		}
	}
}

// take removes a batch from those in flight.
func (p *Proposer) take(seq uint64) *batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, b := range p.inFlight {
		if b.id.Seq == seq {
			p.inFlight = append(p.inFlight[:i], p.inFlight[i+1:]...)
			p.gather.end(b.began, len(b.requests), len(p.queue), time.Now())
			p.wake()
			return b
		}
	}
	return nil
}

// expire tells those whose time is up. A batch is given up when its last
// request is: nobody would learn its outcome.
func (p *Proposer) expire(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, r := range p.queue {
		if now.Before(r.deadline) {
			break
		}
		n++
		p.queued -= len(r.cmd)
		r.answer(state.Result{Err: problem.ErrNoLeader})
	}
	clear(p.queue[:n])
	p.queue = p.queue[n:]

	kept := p.inFlight[:0]
	for _, b := range p.inFlight {
		if b.offered || now.Before(b.deadline) {
			// Others in it wait on, so for them it will be offered again.
			b.fail(problem.ErrOutcomeUnknown, now)
			kept = append(kept, b)
			continue
		}
		b.fail(problem.ErrNoLeader, now)
	}
	clear(p.inFlight[len(kept):])
	p.inFlight = kept
}

// fail answers those in a batch whose time is up. If raft ever took it, or is
// being asked to, it may still be applied.
func (b *batch) fail(err error, now time.Time) {
	if b.accepted || b.offered {
		err = problem.ErrOutcomeUnknown
	}
	for _, r := range b.requests {
		if !now.Before(r.deadline) {
			r.answer(state.Result{Err: err})
		}
	}
}

// stop ends all waits; later requests are refused.
func (p *Proposer) stop() {
	p.end((*batch).fail)
}

// Void is stop for the moment at which this node has applied its own removal:
// what of its batches was not applied by then never will be (ApplyBatch), so
// whoever waits may turn to another node.
func (p *Proposer) Void() {
	p.end(func(b *batch, err error, _ time.Time) {
		for _, r := range b.requests {
			r.answer(state.Result{Err: err})
		}
	})
}

func (p *Proposer) end(fail func(b *batch, err error, at time.Time)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.drop(problem.ErrStopping, func(b *batch) { fail(b, problem.ErrStopping, b.deadline) })
}

// Release ends all waits with an error, since this node will not learn what became
// of the requests. Those in a batch may have happened.
func (p *Proposer) Release(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(err, func(b *batch) {
		for _, r := range b.requests {
			r.answer(state.Result{Err: problem.PerhapsDone(err)})
		}
	})
}

// drop gives up all requests: those in the queue with err, those in a batch by fail.
func (p *Proposer) drop(err error, fail func(b *batch)) {
	for _, r := range p.queue {
		r.answer(state.Result{Err: err})
	}
	for _, b := range p.inFlight {
		fail(b)
	}
	p.queue, p.queued, p.inFlight = nil, 0, nil
}

// retried returns how often a batch was proposed again.
func (p *Proposer) retried() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.retries
}

// Register adds what there is to count.
func (p *Proposer) Register(reg prometheus.Registerer) {
	meter.Counter(reg, "raftkv_batch_retries_total", "Batches proposed again because raft may have lost them.",
		func() float64 { return float64(p.retried()) })
	meter.Gauge(reg, "raftkv_commands_queued", "Commands that wait to be proposed.",
		func() float64 { commands, _ := p.backlog(); return float64(commands) })
	meter.Gauge(reg, "raftkv_commands_queued_bytes", "Size of the commands that wait to be proposed.",
		func() float64 { _, size := p.backlog(); return float64(size) })
}

// backlog returns what waits to be proposed.
func (p *Proposer) backlog() (commands, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue), p.queued
}
