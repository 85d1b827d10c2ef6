// Package wait answers: who is woken when? It has the few things on which
// goroutines of a node wait for one another: the leader of a term, an index that
// only grows, and the outcome of a membership change. None of them ever makes the
// side that wakes wait.
package wait

import (
	"slices"
	"sync"
)

// Leadership is what this node knows of the cluster's leader, and a way to be
// woken when that changes. The raft loop sets it, anyone reads it.
type Leadership struct {
	mu      sync.Mutex
	leader  uint64 // 0: none is known
	term    uint64
	changed chan struct{} // closed at the next change
	changes uint64        // leaders heard of: others than before, or in another term
	past    []leaderOf    // the last of them, the newest last
}

// leaderOf is who has led in a term.
type leaderOf struct{ leader, term uint64 }

// pastLeaders is how many of them are remembered.
const pastLeaders = 64

// NewLeadership returns a Leadership that knows of no leader.
func NewLeadership() *Leadership {
	return &Leadership{changed: make(chan struct{})}
}

// Get returns the leader, the term, and a channel that is closed when either changes.
func (l *Leadership) Get() (leader, term uint64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leader, l.term, l.changed
}

// Set says who leads in a term; 0 that nobody is known to.
func (l *Leadership) Set(leader, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leader == leader && l.term == term {
		return
	}
	l.leader, l.term = leader, term
	if leader != 0 {
		l.changes++
		if len(l.past) == pastLeaders {
			l.past = slices.Delete(l.past, 0, 1)
		}
		l.past = append(l.past, leaderOf{leader, term})
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// LeaderOf returns who has led in a term, as far as this node has heard of it and remembers;
// else 0. There is no other: a term has one leader at most (thesis §3.4).
func (l *Leadership) LeaderOf(term uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.past {
		if p.term == term {
			return p.leader
		}
	}
	return 0
}

// HeardOf returns how many changes of the leader this node has seen.
func (l *Leadership) HeardOf() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes
}

// Index wakes those who wait for the state to reach an index. The apply
// loop advances it after the state has changed.
type Index struct {
	mu      sync.Mutex
	index   uint64
	waiters []indexWaiter
}

type indexWaiter struct {
	index uint64
	wake  func()
}

// NewIndex returns an Index that stands at an index already.
func NewIndex(index uint64) *Index { return &Index{index: index} }

// Waiting returns how many wait.
func (w *Index) Waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.waiters)
}

// Reached calls wake once the applied index is at least index: at once when
// it already is, else on the apply loop's goroutine. wake must not block.
func (w *Index) Reached(index uint64, wake func()) {
	w.mu.Lock()
	if w.index < index {
		w.waiters = append(w.waiters, indexWaiter{index, wake})
		w.mu.Unlock()
		return
	}
	w.mu.Unlock()
	wake()
}

// Channel returns a channel that is closed once the index is reached, for those who
// select.
func (w *Index) Channel(index uint64) <-chan struct{} {
	c := make(chan struct{})
	w.Reached(index, func() { close(c) })
	return c
}

// Get returns the applied index.
func (w *Index) Get() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.index
}

// Advance raises the index, and wakes who waits for it. A lower one changes nothing.
func (w *Index) Advance(index uint64) {
	w.mu.Lock()
	w.index = max(w.index, index)
	var due []indexWaiter
	rest := w.waiters[:0]
	for _, waiter := range w.waiters {
		if waiter.index <= w.index {
			due = append(due, waiter)
		} else {
			rest = append(rest, waiter)
		}
	}
	clear(w.waiters[len(rest):])
	w.waiters = rest
	w.mu.Unlock()
	for _, waiter := range due {
		waiter.wake()
	}
}

// Outcomes tells the proposer of a membership change what became of it.
type Outcomes struct {
	mu      sync.Mutex
	waiting map[uint64]chan error // by request
}

// NewOutcomes returns Outcomes for which nobody waits.
func NewOutcomes() *Outcomes { return &Outcomes{waiting: make(map[uint64]chan error)} }

// Register returns a channel that gets the outcome, and a function that ends the wait.
func (w *Outcomes) Register(request uint64) (<-chan error, func()) {
	c := make(chan error, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[request] = c
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiting, request)
	}
}

// Done reports the outcome of a change. A change that was proposed twice is
// applied twice; the second time changes nothing and is not reported.
func (w *Outcomes) Done(request uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, ok := w.waiting[request]; ok {
		delete(w.waiting, request)
		c <- err
	}
}
