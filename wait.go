package main

import (
	"sync"
)

// leadership is what this node knows of the cluster's leader, and a way to be
// woken when that changes. The raft loop sets it, anyone reads it.
type leadership struct {
	mu      sync.Mutex
	leader  uint64 // 0: none is known
	term    uint64
	changed chan struct{} // closed at the next change
	changes uint64        // leaders heard of: others than before, or in another term
}

func newLeadership() *leadership {
	return &leadership{changed: make(chan struct{})}
}

// get returns the leader, the term, and a channel that is closed when either changes.
func (l *leadership) get() (leader, term uint64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leader, l.term, l.changed
}

func (l *leadership) set(leader, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leader == leader && l.term == term {
		return
	}
	l.leader, l.term = leader, term
	if leader != 0 {
		l.changes++
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// indexWait wakes those who wait for the state to reach an index. The apply
// loop advances it after the state has changed.
type indexWait struct {
	mu      sync.Mutex
	index   uint64
	waiters []indexWaiter
}

type indexWaiter struct {
	index uint64
	wake  func()
}

// reached calls wake once the applied index is at least index: at once when
// it already is, else on the apply loop's goroutine. wake must not block.
func (w *indexWait) reached(index uint64, wake func()) {
	w.mu.Lock()
	if w.index < index {
		w.waiters = append(w.waiters, indexWaiter{index, wake})
		w.mu.Unlock()
		return
	}
	w.mu.Unlock()
	wake()
}

// channel is reached for those who select.
func (w *indexWait) channel(index uint64) <-chan struct{} {
	c := make(chan struct{})
	w.reached(index, func() { close(c) })
	return c
}

// get returns the applied index.
func (w *indexWait) get() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.index
}

func (w *indexWait) advance(index uint64) {
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

// confWait tells the proposer of a membership change what became of it.
type confWait struct {
	mu      sync.Mutex
	waiting map[uint64]chan error // by request
}

func newConfWait() *confWait { return &confWait{waiting: make(map[uint64]chan error)} }

// register returns a channel that gets the outcome, and a function that ends the wait.
func (w *confWait) register(request uint64) (<-chan error, func()) {
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

// done reports the outcome of a change. A change that was proposed twice is
// applied twice; the second time changes nothing and is not reported.
func (w *confWait) done(request uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, ok := w.waiting[request]; ok {
		delete(w.waiting, request)
		c <- err
	}
}

// heardOf returns how many changes of the leader this node has seen.
func (l *leadership) heardOf() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes
}
