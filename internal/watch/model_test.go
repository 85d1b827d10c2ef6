package watch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"raftkv/internal/wait"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// node is a state that changes, with a hub, and the list of all that has changed.
type node struct {
	*testing.T
	hub   *Hub
	limit int64
	may   atomic.Pointer[error]
	calm  atomic.Bool // watchers stay, and take what there is

	mu      sync.RWMutex
	st      *state.State
	loading bool
	keys    map[uint64][]string // by revision
	holes   [][2]uint64         // revisions that came with a snapshot: behind the first, up to the second
}

// startNode starts a node that keeps changes of so many bytes, from a revision on.
func startNode(t *testing.T, limit int64, revision uint64) *node {
	n := &node{T: t, limit: limit, st: state.New(testkit.Peers()), keys: map[uint64][]string{}}
	n.st.Revision = revision
	n.st.Changes.Keep(limit, revision)
	n.may.Store(new(error))
	may := func() error { return *n.may.Load() }
	n.hub = New(Config{
		Look: n.look, Revision: wait.NewLevel(revision), May: may, Confirm: func(context.Context) error { return may() },
	})
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.hub.Run(ctx) }()
	t.Cleanup(func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) look(look func(*state.State)) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.loading {
		return problem.ErrNotReady
	}
	look(n.st)
	return nil
}

// write writes revisions, each of some keys, in one entry of the log.
func (n *node) write(revisions ...[]string) {
	var commands [][]byte
	for _, keys := range revisions {
		w := &txn.Txn{MaxBytes: 1 << 20}
		for _, k := range keys {
			w.Then = append(w.Then, txn.Op{Kind: txn.Put, Key: k, Value: []byte("v")})
		}
		commands = append(commands, state.EncodeTxn(w))
	}
	n.mu.Lock()
	for i, keys := range revisions {
		n.keys[n.st.Revision+uint64(i)+1] = keys
	}
	statetest.Apply(n, n.st, commands...)
	now := n.st.Revision
	n.mu.Unlock()
	n.hub.cfg.Revision.Advance(now)
}

// install has the state replaced by one that is further, which takes a while.
func (n *node) install(further uint64, takes time.Duration) {
	n.mu.Lock()
	n.loading = true
	n.st.Changes.Keep(n.limit, n.st.Revision)
	n.mu.Unlock()
	time.Sleep(takes)
	n.mu.Lock()
	n.holes = append(n.holes, [2]uint64{n.st.Revision, n.st.Revision + further})
	n.st.Revision += further
	n.st.Changes.Keep(n.limit, n.st.Revision)
	n.loading = false
	now := n.st.Revision
	n.mu.Unlock()
	n.hub.cfg.Revision.Advance(now)
}

// stall writes a revision, and has nobody read the state for a while.
func (n *node) stall(keys []string, takes time.Duration) {
	n.mu.Lock()
	n.loading = true
	n.mu.Unlock()
	n.write(keys)
	time.Sleep(takes)
	n.mu.Lock()
	n.loading = false
	n.mu.Unlock()
}

// wanted returns the revisions behind one, up to another, in which something changed that a
// watcher of keys and prefixes wants to know of. whole: it can know of all of them.
func (n *node) wanted(after, upto uint64, keys, prefixes []string) (revisions []uint64, whole bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for r := after + 1; r <= upto; r++ {
		if slices.ContainsFunc(n.keys[r], func(k string) bool {
			return slices.Contains(keys, k) || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(k, p) })
		}) {
			revisions = append(revisions, r)
		}
	}
	whole = !slices.ContainsFunc(n.holes, func(h [2]uint64) bool { return after < h[1] && upto > h[0] })
	return revisions, whole
}

func (n *node) revision() uint64 {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.st.Revision
}

// client is a watcher that checks what it takes.
type client struct {
	n           *node
	rng         *rand.Rand
	taken, gone int

	mu             sync.Mutex
	keys, prefixes []string
	at             uint64 // its position
}

// draw has it be another one, that begins at a position.
func (c *client) draw(at uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys, c.prefixes, c.at = nil, nil, at
	for range 1 + c.rng.IntN(4) {
		name := drawName(c.rng)
		if c.rng.IntN(2) == 0 {
			c.keys = append(c.keys, name)
		} else {
			c.prefixes = append(c.prefixes, name[:c.rng.IntN(len(name)+1)])
		}
	}
}

func drawName(rng *rand.Rand) string {
	return strings.Repeat("a", rng.IntN(3)) + []string{"", "/", "b", "b/"}[rng.IntN(4)] + fmt.Sprint(rng.IntN(3))
}

// run watches, comes and goes until it is done.
func (c *client) run(done <-chan struct{}) {
	for {
		if c.rng.IntN(4) == 0 && !c.n.calm.Load() { // from a position that may be gone
			c.draw(c.n.revision() - c.rng.Uint64N(50))
		}
		w, err := c.n.hub.Watch(NewFilter(c.keys, c.prefixes), c.at)
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		leaves := time.NewTimer(time.Duration(c.rng.Int64N(int64(100 * time.Millisecond))))
		if c.rng.IntN(3) == 0 {
			leaves.Stop() // it stays
		}
		ended := c.watch(w, leaves.C, done)
		leaves.Stop()
		w.Close()
		w.Close() // and once more, which is nothing
		if ended {
			return
		}
	}
}

func (c *client) watch(w *Watcher, leaves <-chan time.Time, done <-chan struct{}) (ended bool) {
	for {
		select {
		case <-w.Wake():
		case <-w.Ended():
			return false
		case <-leaves:
			if !c.n.calm.Load() {
				return false
			}
		case <-done:
			return true
		}
		b, err := w.Take()
		var gone *Gone
		switch {
		case errors.As(err, &gone):
			c.lost(gone)
			now := c.n.revision()
			w.Move(now)
			c.moveTo(now)
			c.gone++
		case err != nil:
			time.Sleep(time.Millisecond)
		default:
			c.check(b)
		}
		if c.rng.IntN(10) == 0 && !c.n.calm.Load() {
			time.Sleep(time.Duration(c.rng.IntN(20)) * time.Millisecond) // a slow one
		}
	}
}

// lost checks that changes are gone behind the position.
func (c *client) lost(gone *Gone) {
	if gone.Oldest <= c.at {
		c.n.Errorf("at %d: what is behind %d is kept, and it is told that changes are gone", c.at, gone.Oldest)
	}
}

func (c *client) moveTo(at uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
}

// behind reports whether there is something for it that it has not taken.
func (c *client) behind(now uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	missing, _ := c.n.wanted(c.at, now, c.keys, c.prefixes)
	return len(missing) > 0
}

// check checks that a batch is all that there is up to its position.
func (c *client) check(b Batch) {
	var got []uint64
	for _, e := range b.Entries {
		got = append(got, e.Revision)
		if want := c.n.keysOf(e.Revision); len(e.Changes) != len(want) {
			c.n.Errorf("revision %d has %d changes, want those of %q", e.Revision, len(e.Changes), want)
		}
	}
	at := c.at
	want, whole := c.n.wanted(at, b.Upto, c.keys, c.prefixes)
	if b.Upto < at || !whole || !slices.Equal(got, want) {
		c.n.Errorf("from %d to %d (%t) keys %q, prefixes %q: it took %v, want %v", at, b.Upto, whole, c.keys, c.prefixes, got, want)
	}
	c.moveTo(b.Upto)
	c.taken += len(got)
}

func (n *node) keysOf(revision uint64) []string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.keys[revision]
}

// follow has clients watch a node that changes, and checks in the end that nobody has missed
// anything. busy says that nobody waits between changes.
func follow(t *testing.T, limit int64, clients, entries int, busy bool) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	n := startNode(t, limit, 1000)
	done := make(chan struct{})
	var running sync.WaitGroup
	var all []*client
	for i := range clients {
		c := &client{n: n, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
		c.draw(1000)
		all = append(all, c)
		running.Go(func() { c.run(done) })
	}
	rng := rand.New(rand.NewPCG(seed, 1<<40))
	for range entries {
		var revisions [][]string
		for range 1 + rng.IntN(1+rng.IntN(40)) {
			keys := make(map[string]bool)
			for range 1 + rng.IntN(3) {
				keys[drawName(rng)] = true
			}
			var r []string
			for k := range keys {
				r = append(r, k)
			}
			revisions = append(revisions, r)
		}
		n.write(revisions...)
		switch rng.IntN(150) {
		case 0:
			n.install(1+rng.Uint64N(20), time.Duration(rng.IntN(30))*time.Millisecond)
		case 1:
			n.stall(revisions[0], time.Duration(rng.IntN(30))*time.Millisecond)
		case 2:
			var lost error = problem.ErrNoLeader
			n.may.Store(&lost)
			if !busy {
				time.Sleep(lookAround)
			}
			n.may.Store(new(error))
		}
		if !busy && rng.IntN(3) == 0 {
			time.Sleep(time.Duration(rng.IntN(10)) * time.Millisecond)
		}
	}
	n.settle(all)
	close(done)
	running.Wait()
	if got := n.hub.Watching(); got != 0 || len(n.hub.keys)+len(n.hub.prefixes)+len(n.hub.lengths) > 0 {
		t.Errorf("%d watchers are left, %d keys, %d prefixes, %d lengths", got, len(n.hub.keys), len(n.hub.prefixes), len(n.hub.lengths))
	}
	taken, gone := 0, 0
	for _, c := range all {
		taken, gone = taken+c.taken, gone+c.gone
	}
	t.Logf("%d revisions; %d were taken, %d times changes were gone", n.revision()-1000, taken, gone)
	if least := map[bool]int{false: entries, true: 1}[busy]; taken+gone < least {
		t.Error("that is no test")
	}
}

// settle waits until nobody can have missed anything.
func (n *node) settle(all []*client) {
	n.Helper()
	n.calm.Store(true)
	now := n.revision()
	testkit.Eventually(n, "all to have what is theirs", func() bool {
		return !slices.ContainsFunc(all, func(c *client) bool { return c.behind(now) })
	})
}

// Guarantee: whoever watches takes each revision that is for it, once, in order and whole, or
// is told that changes are gone, which is true then; however watchers come, go and dawdle
// while changes come, snapshots are installed, and the leader is lost.
func TestWatchersTakeAllThatIsTheirs(t *testing.T) {
	for _, limit := range []int64{1 << 30, 40_000, 1} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			testkit.InBubble(t, func(t *testing.T) { follow(t, limit, 20, 600, false) })
		})
	}
}

// The same with goroutines that run at once, for the race detector.
func TestWatchersAtOnce(t *testing.T) {
	for _, limit := range []int64{1 << 30, 40_000} {
		follow(t, limit, 12, 300, true)
	}
}
