package rounds

import (
	"context"
	"encoding/binary"
	"raftkv/internal/config"
	"raftkv/internal/meter"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxReadRounds bounds the ReadIndex rounds under way at once. Rounds may
// overlap: readers that come while one is on its way need not wait for it, if
// that takes long (gather.go).
const maxReadRounds = 4

// Reader answers one question: is what this node has applied fresh enough for
// a linearizable read? (thesis §6.4)
//
// It asks raft for a read index, one round for all readers that were waiting
// when the round began: the leader notes its commit index, makes sure with a
// round of heartbeats that it still leads, and returns the index. Whatever was
// acknowledged anywhere before the round began is at or below it. Once this
// node has applied that far, every reader of the round may look.
type Reader struct {
	loop
	life       Life
	timeout    time.Duration // how long a reader may wait
	retryAfter time.Duration // a round can be lost on its way; then another one is asked for
	roundC     chan<- []byte // to the raft loop: asks for a round with this context
	applied    *wait.Index

	// Of the loop alone: whom it followed last.
	lastLeader, lastTerm uint64

	mu      sync.Mutex
	waiting *readRound // readers that no round serves yet; nil if none
	enough  int        // so many waiting readers wake run
	gather  gathering
	rounds  []*readRound // under way or waiting for the state to catch up, oldest first
	last    uint64       // counts attempts; makes the contexts unique
	watched uint64       // the applied index that wakes catchUp; 0: none
	stopped bool
}

// readWait is one reader that waits.
type readWait struct {
	waiter   Waiter
	deadline time.Time
}

// readRound is the readers that share one answer.
type readRound struct {
	readers  []readWait // in the order of their deadlines
	began    time.Time
	attempts []uint64 // each a context that raft may answer
	retryAt  time.Time
	indexed  bool   // raft has answered; what is missing is the applied state
	index    uint64 // which raft has answered; 0: it has not
}

// NewReader returns a reader that asks for rounds by roundC once it runs.
func NewReader(cfg config.Config, l Life, roundC chan<- []byte, leaders *wait.Leadership, applied *wait.Index) *Reader {
	return &Reader{
		loop: newLoop("reader", leaders), life: l,
		timeout: cfg.RequestTimeout, retryAfter: cfg.ElectionTimeout / 2,
		roundC: roundC, applied: applied,
	}
}

// Confirm returns nil once this node has applied every write that was
// acknowledged anywhere before the call; problem.ErrNoLeader, problem.ErrUnavailable or
// problem.ErrStopping when that could not be established.
func (r *Reader) Confirm(ctx context.Context) error {
	done := newOutcome()
	if err := r.Start(done); err != nil {
		return err
	}
	select {
	case res := <-done:
		return res.Err
	case <-ctx.Done():
		return problem.ErrUnavailable
	}
}

// Start has w told what Confirm returns, as the error of a result; the time limit is
// the reader's. With an error w is told nothing.
func (r *Reader) Start(w Waiter) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return problem.ErrStopping
	}
	if r.waiting == nil {
		r.waiting = &readRound{}
	}
	// Under the lock, so that readers are in the order of their deadlines.
	r.waiting.readers = append(r.waiting.readers, readWait{w, time.Now().Add(r.timeout)})
	if n := len(r.waiting.readers); n == 1 || n == r.enough {
		r.wake()
	}
	return nil
}

// Run asks for rounds until ctx ends. Then everyone who waits is told.
func (r *Reader) Run(ctx context.Context) error {
	defer r.stop()
	r.run(ctx, r)
	return nil
}

// follow implements carrier. Rounds of an old leader are lost.
func (r *Reader) follow(leader, term uint64) {
	if leader != r.lastLeader || term != r.lastTerm {
		r.retryAll()
		r.lastLeader, r.lastTerm = leader, term
	}
}

func (r *Reader) send(ctx context.Context, _ uint64) (sent bool, pause time.Duration) {
	c, pause := r.next()
	if c == nil {
		return false, pause
	}
	select {
	case r.roundC <- c:
		return true, 0
	case <-ctx.Done():
		return false, 0
	}
}

func (r *Reader) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting == nil && len(r.rounds) == 0
}

// next returns the context of the round to ask for now. If there is none, it
// returns when to look again, unless it is woken before.
func (r *Reader) next() (context []byte, pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	asked := 0
	for _, round := range r.rounds {
		if round.indexed {
			continue
		}
		if !now.Before(round.retryAt) {
			return r.attempt(round, now), 0
		}
		asked++
	}
	const never = time.Hour
	if r.waiting == nil || asked >= maxReadRounds {
		return nil, never
	}
	if pause, r.enough = r.gather.hold(len(r.waiting.readers), asked, now); pause > 0 {
		return nil, pause
	}
	r.gather.begin(len(r.waiting.readers), asked, now)
	round := r.waiting
	round.began = now
	r.waiting = nil
	r.rounds = append(r.rounds, round)
	return r.attempt(round, now), 0
}

// attempt makes the context of another try. The leader keeps contexts of all
// nodes in one table, so they carry the node; and an answer to a former life
// of this node must not be taken for one to this, so they carry the life's nonce.
// The raft loop fills in the commit index (newRound).
func (r *Reader) attempt(round *readRound, now time.Time) []byte {
	r.last++
	round.attempts = append(round.attempts, r.last)
	round.retryAt = now.Add(r.retryAfter)
	c := binary.BigEndian.AppendUint64(make([]byte, 0, RoundContext), r.life.node)
	c = binary.BigEndian.AppendUint64(c, r.life.nonce)
	return binary.BigEndian.AppendUint64(c, r.last)[:RoundContext]
}

// Confirmed takes raft's answer: a round with this context has read index
// index. It is called on the raft loop and does not block.
func (r *Reader) Confirmed(context []byte, index uint64) {
	if !r.life.Asked(context) {
		return
	}
	round := r.find(binary.BigEndian.Uint64(context[16:]))
	if round == nil {
		return // answered by another attempt, or expired
	}
	r.wake() // there is room for another round
	r.await(round, index)
}

func (r *Reader) find(attempt uint64) *readRound {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, round := range r.rounds {
		if !round.indexed && slices.Contains(round.attempts, attempt) {
			round.indexed = true
			waiting := 0
			if r.waiting != nil {
				waiting = len(r.waiting.readers)
			}
			r.gather.end(round.began, len(round.readers), waiting, time.Now())
			return round
		}
	}
	return nil
}

// await lets the readers of a round go ahead once this node has applied index.
func (r *Reader) await(round *readRound, index uint64) {
	r.mu.Lock()
	round.index = index
	first := r.watched == 0 || index < r.watched
	if first {
		r.watched = index
	}
	r.mu.Unlock()
	if first {
		r.applied.Reached(index, r.catchUp)
	}
}

// catchUp ends the rounds whose index this node has applied, and has itself
// called again for the next. However many rounds come and expire while a node
// applies nothing, there is one call to come.
func (r *Reader) catchUp() {
	applied := r.applied.Get()
	r.mu.Lock()
	kept := r.rounds[:0]
	r.watched = 0
	for _, round := range r.rounds {
		switch {
		case round.index == 0:
		case round.index <= applied:
			round.end(nil)
			continue
		case r.watched == 0 || round.index < r.watched:
			r.watched = round.index
		}
		kept = append(kept, round)
	}
	clear(r.rounds[len(kept):])
	r.rounds = kept
	next := r.watched
	r.mu.Unlock()
	if next != 0 {
		r.applied.Reached(next, r.catchUp)
	}
}

func (r *Reader) retryAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, round := range r.rounds {
		round.retryAt = time.Time{}
	}
}

// expire ends the wait of those who have waited long enough.
func (r *Reader) expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := problem.ErrUnavailable
	if leader, _, _ := r.leaders.Get(); leader == 0 {
		err = problem.ErrNoLeader
	}
	if r.waiting != nil && !r.waiting.expire(now, err) {
		r.waiting = nil
	}
	kept := r.rounds[:0]
	for _, round := range r.rounds {
		if round.expire(now, err) {
			kept = append(kept, round)
		}
	}
	clear(r.rounds[len(kept):])
	r.rounds = kept
}

// expire ends the wait of the readers whose time is up, and reports whether there are
// others.
func (round *readRound) expire(now time.Time, err error) bool {
	n := 0
	for n < len(round.readers) && !now.Before(round.readers[n].deadline) {
		round.readers[n].waiter.Done(state.Result{Err: err})
		n++
	}
	clear(round.readers[:n])
	round.readers = round.readers[n:]
	return len(round.readers) > 0
}

// end ends the wait of all readers of a round.
func (round *readRound) end(err error) {
	for _, r := range round.readers {
		r.waiter.Done(state.Result{Err: err})
	}
	round.readers = nil
}

func (r *Reader) stop() {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	r.Release(problem.ErrStopping)
}

// Release ends all waits with an error.
func (r *Reader) Release(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, round := range r.rounds {
		round.end(err)
	}
	if r.waiting != nil {
		r.waiting.end(err)
	}
	r.rounds, r.waiting = nil, nil
}

// Register adds what there is to count.
func (r *Reader) Register(reg prometheus.Registerer) {
	meter.Gauge(reg, "raftkv_reads_waiting", "Linearizable reads that wait for the leader's word, or for this node to catch up.",
		func() float64 { return float64(r.backlog()) })
}

// backlog returns how many readers wait.
func (r *Reader) backlog() (readers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting != nil {
		readers = len(r.waiting.readers)
	}
	for _, round := range r.rounds {
		readers += len(round.readers)
	}
	return readers
}
