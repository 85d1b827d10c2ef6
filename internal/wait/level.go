package wait

import "sync"

// Level is an Index for many who wait, each of whom may give up. Whoever raises it
// pays for those whom it wakes, and for the others only then.
type Level struct {
	mu      sync.Mutex
	at      uint64
	lowest  uint64 // nobody waits for less, if anybody waits
	waiting map[*levelWaiter]struct{}
	ended   bool
}

type levelWaiter struct {
	level uint64
	wake  func(ended bool)
}

// NewLevel returns a Level that stands somewhere already.
func NewLevel(at uint64) *Level {
	return &Level{at: at, waiting: make(map[*levelWaiter]struct{})}
}

// Get returns where the level stands.
func (l *Level) Get() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at
}

// Waiting returns how many wait.
func (l *Level) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting)
}

// Await calls wake once, when the level is at least that high or when all waiting is
// ended: at once where that is so already, else on the goroutine of Advance or End.
// wake must not block. giveUp ends the wait, and reports whether wake will not be
// called.
func (l *Level) Await(level uint64, wake func(ended bool)) (giveUp func() bool) {
	l.mu.Lock()
	if l.at >= level || l.ended {
		ended := l.at < level
		l.mu.Unlock()
		wake(ended)
		return func() bool { return false }
	}
	w := &levelWaiter{level, wake}
	if len(l.waiting) == 0 || level < l.lowest {
		l.lowest = level
	}
	l.waiting[w] = struct{}{}
	l.mu.Unlock()
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		_, waits := l.waiting[w]
		delete(l.waiting, w)
		return waits
	}
}

// Advance raises the level, and wakes who waits for it. A lower one changes nothing.
func (l *Level) Advance(level uint64) {
	l.mu.Lock()
	l.at = max(l.at, level)
	var due []*levelWaiter
	if len(l.waiting) > 0 && l.lowest <= l.at {
		due = l.takeDue()
	}
	l.mu.Unlock()
	for _, w := range due {
		w.wake(false)
	}
}

// takeDue takes out those whose level is reached. The caller holds mu.
func (l *Level) takeDue() (due []*levelWaiter) {
	l.lowest = ^uint64(0)
	for w := range l.waiting {
		if w.level <= l.at {
			due = append(due, w)
			delete(l.waiting, w)
		} else {
			l.lowest = min(l.lowest, w.level)
		}
	}
	return due
}

// End wakes all who wait, and from now on whoever would.
func (l *Level) End() {
	l.mu.Lock()
	l.ended = true
	all := l.waiting
	l.waiting = make(map[*levelWaiter]struct{})
	l.mu.Unlock()
	for w := range all {
		w.wake(true)
	}
}
