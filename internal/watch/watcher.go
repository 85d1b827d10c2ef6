package watch

import (
	"context"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"slices"
	"sync"
)

const (
	// maxPending is of how many revisions a watcher knows that they are for it. One that is
	// further behind searches the log.
	maxPending = 256
	// takeAtOnce is how many entries a watcher takes, and searchAtOnce how many it looks at,
	// before writes get their turn; behind searchChanges changes it begins no other. It takes no more than takeBytes unless one is larger: what
	// it has taken stays in memory until its client has read it, also where the history goes on.
	takeAtOnce    = 256
	takeBytes     = 2 * PartBytes
	searchAtOnce  = 1000
	searchChanges = 10_000
)

// Watcher follows the changes of some keys. But for the hub, which wakes it, one goroutine
// uses it.
type Watcher struct {
	hub    *Hub
	filter Filter
	life   context.Context
	end    context.CancelCauseFunc // of life
	at     []int                   // its seats; guarded by hub.mu, as closed is
	closed bool
	wake   chan struct{}
	cursor uint64   // it has taken all that is for it up to this revision
	mine   []uint64 // what Take took out of pending; the two change places

	mu       sync.Mutex
	pending  []uint64 // revisions that are for it, ascending, unless it searches
	searches bool     // it has to look for what is for it in the log, behind cursor and floor
	floor    uint64   // nothing up to this revision is for it that it has not taken
}

// Wake returns a channel on which something comes when Take may find more than it did.
func (w *Watcher) Wake() <-chan struct{} { return w.wake }

// Ended returns a channel that is closed when the watcher is told nothing more; Why says
// why.
func (w *Watcher) Ended() <-chan struct{} { return w.life.Done() }

// WhenEnded has f called once the watcher is told nothing more. stop ends that, and returns
// only when f is not running.
func (w *Watcher) WhenEnded(f func()) (stop func()) {
	return wait.AfterFunc(w.life, f)
}

// End has the watcher be told nothing more, for a reason of its own. It may be called by others
// than the one goroutine that uses the watcher.
func (w *Watcher) End(why error) { w.end(why) }

// Why returns nil, or why the watcher is told nothing more.
func (w *Watcher) Why() error { return context.Cause(w.life) }

// add tells the watcher that a revision is for it.
func (w *Watcher) add(revision uint64) {
	w.mu.Lock()
	n := len(w.pending)
	switch {
	case w.searches:
	case n > 0 && w.pending[n-1] == revision:
		w.mu.Unlock()
		return
	case n == maxPending:
		w.mu.Unlock()
		w.search(0)
		return
	default:
		w.pending = append(w.pending, revision)
	}
	w.mu.Unlock()
	w.nudge()
}

// search has the watcher look into the log itself. Up to the revision matched it was told
// of all that is for it.
func (w *Watcher) search(matched uint64) {
	w.mu.Lock()
	if !w.searches {
		if len(w.pending) > 0 {
			matched = w.pending[0] - 1
		}
		w.floor = max(w.floor, matched)
	}
	w.searches, w.pending = true, w.pending[:0]
	w.mu.Unlock()
	w.nudge()
}

func (w *Watcher) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Batch is what Take has found.
type Batch struct {
	Entries []*state.ChangeEntry // that are for the watcher, whole: other changes may be among theirs
	// Upto is the position behind them: the watcher has seen all that is for it up to
	// this revision.
	Upto uint64
	More bool // there is more to look at, and Wake says so
	size int  // of the entries
}

// add adds an entry, or reports that there is no room for it.
func (b *Batch) add(e *state.ChangeEntry) bool {
	if n := len(b.Entries); n == takeAtOnce || n > 0 && b.size+e.Size > takeBytes {
		return false
	}
	b.Entries, b.size = append(b.Entries, e), b.size+e.Size
	return true
}

// Take returns the next changes that are for the watcher. No entries: there are none for
// now. More may be there at once; Wake tells. The error is a *Gone, after which Move says
// where to go on, or that the state is not to be read.
func (w *Watcher) Take() (Batch, error) {
	// What the hub has matched so far is in pending already.
	matched := w.hub.matched.Load()
	w.mu.Lock()
	searches := w.searches
	w.searches = false // what changes from now on comes to pending
	w.mine, w.pending = w.pending, w.mine[:0]
	if searches {
		w.cursor = max(w.cursor, w.floor)
	}
	w.mu.Unlock()

	b, more, rest := Batch{Upto: w.cursor}, false, []uint64(nil)
	var gone *Gone
	err := w.hub.cfg.Look(func(s *state.State) {
		switch {
		case searches:
			more, gone = w.find(s, &b)
		default:
			rest, gone = w.get(s, w.mine, &b)
		}
	})
	if err != nil || gone != nil {
		w.again()
		if gone != nil {
			return Batch{}, gone
		}
		return Batch{}, err
	}
	if n := len(b.Entries); n > 0 {
		b.Upto = max(b.Upto, b.Entries[n-1].Revision)
	}
	switch {
	case more:
		w.again()
	case len(rest) > 0:
		w.putBack(rest)
		more = true
	case !searches:
		b.Upto = max(b.Upto, matched)
	}
	w.cursor, b.More = b.Upto, more
	return b, nil
}

// Settle has the watcher be woken by what changes from now on, for who looks at the state
// itself and takes nothing.
func (w *Watcher) Settle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.searches, w.pending = false, w.pending[:0]
}

// putBack has the next Take begin with revisions for which there was no room.
func (w *Watcher) putBack(rest []uint64) {
	w.mu.Lock()
	if w.searches || len(rest)+len(w.pending) > maxPending {
		w.searches, w.pending, w.floor = true, w.pending[:0], rest[0]-1
	} else {
		w.pending = slices.Insert(w.pending, 0, rest...)
	}
	w.mu.Unlock()
	w.nudge()
}

// get gets the entries of these revisions, and returns those for which there was no room.
func (w *Watcher) get(s *state.State, revisions []uint64, b *Batch) (rest []uint64, gone *Gone) {
	b.Entries = make([]*state.ChangeEntry, 0, len(revisions))
	last := w.cursor
	for i, revision := range revisions {
		if revision <= last {
			continue // it was found by a search, or is there twice
		}
		e := s.Changes.Get(revision)
		if e == nil {
			return nil, &Gone{Oldest: s.Changes.Base()}
		}
		if !b.add(e) {
			return revisions[i:], nil
		}
		last = revision
	}
	return nil, nil
}

// find looks for entries behind the cursor, and reports whether there are more to look at.
// Each revision has changed something, so that the log has no gap shows in its revisions.
func (w *Watcher) find(s *state.State, b *Batch) (more bool, gone *Gone) {
	entries, whole := s.Changes.After(w.cursor, searchAtOnce)
	if !whole {
		return false, &Gone{Oldest: s.Changes.Base()}
	}
	looked := 0 // changes
	for _, e := range entries {
		if e.Revision != b.Upto+1 {
			return false, &Gone{Oldest: s.Revision}
		}
		if looked >= searchChanges {
			return true, nil
		}
		looked += len(e.Changes)
		if w.filter.any(e) && !b.add(e) {
			return true, nil
		}
		b.Upto = e.Revision
	}
	if len(entries) < searchAtOnce && b.Upto < s.Revision {
		return false, &Gone{Oldest: s.Revision}
	}
	return len(entries) == searchAtOnce, nil
}

// again has the next Take search, behind the cursor: what was in pending, and what the hub
// has said of it since, is forgotten.
func (w *Watcher) again() {
	w.mu.Lock()
	w.searches, w.pending, w.floor = true, w.pending[:0], 0
	w.mu.Unlock()
	w.nudge()
}

// Move has the watcher go on behind a revision.
func (w *Watcher) Move(revision uint64) {
	w.cursor = revision
	w.again()
}

// Gone says that changes which a watcher has not seen are not kept any more.
type Gone struct {
	Oldest uint64 // the lowest revision behind which all changes are there
}

// Error implements error.
func (g *Gone) Error() string { return "the changes behind that revision are not kept any more" }

// Unwrap makes a *Gone a problem for who does not look at it.
func (g *Gone) Unwrap() error { return problem.ErrTooStale }
