// Package watch answers: who is told of which changes, and from where on? The state keeps a
// log of its last changes. The Hub follows it on a goroutine of its own, so that no write
// waits for a watcher, and wakes those whose keys have changed. A Watcher reads the changes
// themselves out of the log when it has time: what a slow one misses is gone, and it is
// told so. The package knows nothing of HTTP.
package watch

import (
	"cmp"
	"context"
	"fmt"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Most is how many watchers a node has at once, where it has the memory; those that wait
	// for one answer count.
	Most = 10_000
	// Cost is about what a watcher takes in memory with its connection, in bytes.
	Cost = 32 << 10
	// lookAround is how often the hub asks whether watchers are still told the truth.
	lookAround = time.Second
	// matchAtOnce is how many entries are matched before watchers may come and go.
	matchAtOnce = 256
	// perWatcher is how much later each further watcher that is told of the same change may
	// be told of the next one, and spacingMost the longest such time: what comes
	// meanwhile comes with it. Without it a thousand watchers of one key would take all of the
	// node's time. Timers are not exact enough for less than spacingLeast.
	perWatcher   = 20 * time.Microsecond
	spacingLeast = time.Millisecond
	spacingMost  = 50 * time.Millisecond
	// Silence is for how long nothing may have confirmed that this node has applied what was
	// acknowledged. Then it may be cut off, or its disk may hang, and watchers are better off
	// elsewhere.
	Silence = 10 * time.Second
	// probeEvery is how often that is asked for, while there are watchers.
	probeEvery = 3 * time.Second
)

// Config is what a Hub needs of its node.
type Config struct {
	// Look lends the state, or returns an error where it is not to be read.
	Look     func(look func(*state.State)) error
	Revision *wait.Level // of the store, as this node has applied it
	// May returns nil, or why this node cannot promise to tell of changes in time.
	May func() error
	// Most is how many watchers there may be; 0: the constant of that name.
	Most int
	// Confirm waits until this node has applied all that was acknowledged before.
	Confirm func(ctx context.Context) error
}

// Hub wakes watchers. One goroutine is in Run.
type Hub struct {
	cfg     Config
	matched atomic.Uint64 // all watchers know of the changes up to this revision that are theirs
	spacing atomic.Int64  // time.Duration; see Spacing
	forms   forms
	resets  atomic.Uint64

	mu        sync.RWMutex
	keys      map[string]*crowd // by key
	prefixes  map[string]*crowd // by prefix
	lengths   []int             // of the prefixes, each once, ascending
	count     int               // watchers
	over      error             // why there are no more watchers, once there are none
	confirmed time.Time         // this node had applied all that was acknowledged before
	why       error             // why it has not been confirmed since
	life      context.Context   // of the watchers; replaced when they have to begin again
	cut       context.CancelCauseFunc
}

// crowd is the watchers of one key or prefix.
type crowd struct{ all []seat }

// seat is a watcher in a crowd: it remembers by at[i] where its i-th filter sits.
type seat struct {
	w *Watcher
	i int
}

// New returns a hub that has yet to Run.
func New(cfg Config) *Hub {
	cfg.Most = cmp.Or(cfg.Most, Most)
	h := &Hub{cfg: cfg, keys: map[string]*crowd{}, prefixes: map[string]*crowd{}}
	h.life, h.cut = context.WithCancelCause(context.Background())
	return h
}

// Watching returns how many watchers there are.
func (h *Hub) Watching() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.count
}

// Run tells watchers until ctx ends, and then that there will be no more.
func (h *Hub) Run(ctx context.Context) error {
	var probing sync.WaitGroup
	probing.Go(func() { h.probe(ctx) })
	defer probing.Wait()
	defer h.End()
	look := time.NewTicker(lookAround)
	defer look.Stop()
	for {
		come := make(chan bool, 1)
		giveUp := h.cfg.Revision.Await(h.matched.Load()+1, func(ended bool) { come <- ended })
		select {
		case ended := <-come:
			if ended {
				h.End() // the node takes no more requests
				<-ctx.Done()
				return nil
			}
			h.match()
		case <-look.C:
			giveUp()
			h.check(h.cfg.May())
		case <-ctx.Done():
			giveUp()
			return nil
		}
	}
}

// probe asks, while there are watchers, whether this node has applied what was acknowledged.
func (h *Hub) probe(ctx context.Context) {
	every := time.NewTicker(probeEvery)
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
		if h.Watching() == 0 {
			continue
		}
		began := time.Now()
		soon, done := context.WithTimeout(ctx, Silence)
		err := h.cfg.Confirm(soon)
		done()
		h.mu.Lock()
		// The watchers that it was asked for may have gone, and others come since.
		if h.why = err; err == nil && began.After(h.confirmed) {
			h.confirmed = began
		}
		h.mu.Unlock()
	}
}

// check cuts all watchers off that may not be told the truth: wrong is why, or nil where it is
// only unknown for too long whether they were told all. Those who come again may be told more.
func (h *Hub) check(wrong error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if wrong == nil && time.Since(h.confirmed) > Silence {
		wrong = cmp.Or(h.why, error(problem.ErrUnavailable))
	}
	if wrong == nil || h.over != nil || h.count == 0 {
		return
	}
	h.cut(wrong)
	h.life, h.cut = context.WithCancelCause(context.Background())
}

// End has no watchers any more, because the node stops.
func (h *Hub) End() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = problem.ErrStopping
	h.cut(h.over)
}

// match tells the watchers of what has changed since it was last called.
func (h *Hub) match() {
	for {
		from := h.matched.Load()
		var entries []*state.ChangeEntry
		var now uint64
		whole := true
		if h.cfg.Look(func(s *state.State) {
			now = s.Revision
			entries, whole = s.Changes.After(from, matchAtOnce)
		}) != nil {
			// The state is on its way in, or not to be relied on: then May says so. Its
			// revision is above that of all who wait, and no reason to come again at once.
			h.wakeAll(from)
			h.matched.Store(h.cfg.Revision.Get())
			return
		}
		switch {
		case !whole || len(entries) == 0 && now > from:
			// A snapshot has come, or there was too much: each finds out what it has missed.
			h.wakeAll(from)
			h.matched.Store(now)
		case len(entries) == 0:
			return
		default:
			h.tell(entries)
			h.matched.Store(entries[len(entries)-1].Revision)
		}
	}
}

// wakeAll has each watcher look into the log itself. Up to from they know what is theirs.
func (h *Hub) wakeAll(from uint64) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, crowds := range []map[string]*crowd{h.keys, h.prefixes} {
		for _, c := range crowds {
			for _, s := range c.all {
				s.w.search(from)
			}
		}
	}
}

// tell wakes whom these entries are for.
func (h *Hub) tell(entries []*state.ChangeEntry) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	told := 0
	for _, e := range entries {
		n := 0
		for i := range e.Changes {
			key := e.Changes[i].Key
			n += h.keys[key].tell(e.Revision)
			for _, length := range h.lengths {
				if length > len(key) {
					break
				}
				n += h.prefixes[key[:length]].tell(e.Revision)
			}
		}
		told = max(told, n)
	}
	h.spacing.Store(int64(min(time.Duration(told)*perWatcher, spacingMost)))
}

// tell wakes a crowd, and returns how many that are.
func (c *crowd) tell(revision uint64) int {
	if c == nil {
		return 0
	}
	for _, s := range c.all {
		s.w.add(revision)
	}
	return len(c.all)
}

// Spacing is how long a watcher that was just told waits until it looks again, so that
// many who are told the same leave the node some time. Few need not wait.
func (h *Hub) Spacing() time.Duration {
	if d := time.Duration(h.spacing.Load()); d >= spacingLeast {
		return d
	}
	return 0
}

// Watch begins a watcher that is told of the changes behind a revision. It ends with Close.
// The error is problem.ErrOverloaded, problem.ErrStopping, or why this node cannot promise
// anything.
func (h *Hub) Watch(f Filter, after uint64) (*Watcher, error) {
	if err := h.cfg.May(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.over != nil:
		return nil, h.over
	case h.count >= h.cfg.Most:
		return nil, fmt.Errorf("%w: %d watches and waiting reads are open, as many as this node takes", problem.ErrOverloaded, h.cfg.Most)
	}
	if h.count++; h.count == 1 {
		h.confirmed, h.why = time.Now(), nil // it is asked for from now on
	}
	w := &Watcher{hub: h, filter: f, cursor: after, searches: true, wake: make(chan struct{}, 1)}
	w.life, w.end = context.WithCancelCause(h.life)
	w.wake <- struct{}{}
	w.at = make([]int, 0, len(f.keys)+len(f.prefixes))
	for _, k := range f.keys {
		w.sit(h.keys, k)
	}
	for _, p := range f.prefixes {
		w.sit(h.prefixes, p)
		if i, ok := slices.BinarySearch(h.lengths, len(p)); !ok {
			h.lengths = slices.Insert(h.lengths, i, len(p))
		}
	}
	return w, nil
}

// Glance returns a watcher that nobody wakes, and that takes no place: for who takes what is
// there now, and no more. Close is not for it.
func (h *Hub) Glance(f Filter, after uint64) *Watcher {
	return &Watcher{hub: h, filter: f, life: context.Background(), cursor: after, searches: true, wake: make(chan struct{}, 1)}
}

// sit puts the watcher into a crowd. The caller holds hub.mu.
func (w *Watcher) sit(crowds map[string]*crowd, name string) {
	c := crowds[name]
	if c == nil {
		c = &crowd{}
		crowds[name] = c
	}
	c.all = append(c.all, seat{w, len(w.at)})
	w.at = append(w.at, len(c.all)-1)
}

// leave takes the watcher's i-th filter out of a crowd: the last one there takes its seat.
// The caller holds hub.mu.
func (w *Watcher) leave(crowds map[string]*crowd, name string, i int) {
	c := crowds[name]
	last := len(c.all) - 1
	c.all[w.at[i]] = c.all[last]
	c.all[w.at[i]].w.at[c.all[last].i] = w.at[i]
	c.all[last] = seat{}
	c.all = c.all[:last]
	if last == 0 {
		delete(crowds, name)
	}
}

// Close ends a watcher.
func (w *Watcher) Close() {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.closed {
		return
	}
	w.closed = true
	w.end(nil)
	h.count--
	for i, k := range w.filter.keys {
		w.leave(h.keys, k, i)
	}
	for i, p := range w.filter.prefixes {
		w.leave(h.prefixes, p, len(w.filter.keys)+i)
	}
	h.countLengths()
}

// countLengths forgets lengths that no prefix has any more, once there are more of them than
// prefixes. The caller holds mu.
func (h *Hub) countLengths() {
	if len(h.lengths) <= len(h.prefixes) {
		return
	}
	h.lengths = h.lengths[:0]
	for p := range h.prefixes {
		if i, ok := slices.BinarySearch(h.lengths, len(p)); !ok {
			h.lengths = slices.Insert(h.lengths, i, len(p))
		}
	}
}
