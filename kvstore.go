package main

import (
	"fmt"
	"raftkv/internal/boot"
	"raftkv/internal/checker"
	"raftkv/internal/doors"
	"raftkv/internal/liveness"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/storage/snapshots"
	"raftkv/internal/wait"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// kvstore holds the state for the goroutines around it: the apply loop is the
// only writer, HTTP handlers read.
type kvstore struct {
	log       *zap.Logger
	self      boot.Self
	proposals *rounds.Proposer
	applied   *wait.Index
	revision  *wait.Level
	conf      *wait.Outcomes
	doors     *doors.Keeper
	pulse     *liveness.Pulse // of the apply loop

	snapshots chan<- *state.State // states to write to disk; see apply.go
	writer    chan struct{}       // held by the snapshot that is being written
	wanted    chan struct{}       // says that needed has risen
	needed    atomic.Uint64       // somebody needs a snapshot of this index or a later one
	redo      atomic.Bool         // the last snapshot failed
	due       snapshots.Policy
	agreement *checker.Agreement
	// toldBefore is the index up to which changes of the members were told of
	// before this node started.
	toldBefore uint64

	mu    sync.RWMutex
	state *state.State // guarded by mu; replaced when a snapshot is installed

	// loading: the state has no items, because those of a snapshot are on their
	// way in. It changes under mu.
	loading atomic.Bool

	sizeNow, keysNow, levelNow atomic.Uint64 // the state's, as last published
}

// Get returns a key's item, nil if there is none, and the store's revision.
// The caller decides beforehand how fresh the answer must be (package rounds).
func (kv *kvstore) Get(key string) (it *state.Item, revision uint64) {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.Get(key), kv.state.Revision
}

// Read is Get for a client, who must not take a state without items for an empty
// one.
func (kv *kvstore) Read(key string) (it *state.Item, revision uint64, err error) {
	err = kv.Look(func(s *state.State) { it, revision = s.Get(key), s.Revision })
	return it, revision, err
}

// Look is View for a client, likewise.
func (kv *kvstore) Look(look func(*state.State)) error {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	if kv.loading.Load() {
		return errLoading
	}
	look(kv.state)
	return nil
}

// Left returns what an item has left of its time.
func (kv *kvstore) Left(it *state.Item) (left state.Left) {
	kv.View(func(s *state.State) { left = s.Left(it) })
	return left
}

// has reports whether there is a key of that name.
func (kv *kvstore) has(key string) bool {
	it, _ := kv.Get(key)
	return it != nil
}

// errLoading: another node has what is asked for, and this one will soon.
var errLoading = fmt.Errorf("%w: a snapshot from the leader is being loaded", problem.ErrNotReady)

// View lends the state for a look at it.
func (kv *kvstore) View(look func(*state.State)) {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	look(kv.state)
}

// Fault returns nil, or why this node must not serve; see agreement.
func (kv *kvstore) Fault() error { return kv.agreement.Fault() }

// dropItems drops the items, of which a check may have a copy, too.
func (kv *kvstore) dropItems() {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	kv.loading.Store(true)
	kv.state.DropItems()
	kv.agreement.Overtake() // by the snapshot
}

// Membership returns a copy of the cluster's membership as applied here, and
// the index at which it was so.
func (kv *kvstore) Membership() (m membership.Membership, index uint64) {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.Membership.Clone(), kv.state.Index
}

// members returns a copy of the cluster's membership as applied here.
func (kv *kvstore) members() membership.Membership {
	m, _ := kv.Membership()
	return m
}

// standing is how far the state has come.
func (kv *kvstore) standing() state.Standing {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.Standing()
}

// standingWith is how far the state would come with entries behind it.
func (kv *kvstore) standingWith(tail []*raftpb.Entry) state.Standing {
	st := kv.copyState()
	for _, e := range tail {
		if e.GetIndex() != st.Index+1 {
			continue // it is applied by now
		}
		if err := st.Replay(e); err != nil {
			break // a newer program's, which this one cannot apply either
		}
	}
	return st.Standing()
}

// isRemoved reports whether an ID was removed from the cluster, as far as
// this node knows.
func (kv *kvstore) isRemoved(id uint64) bool {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.Membership.Removed[id]
}

// Status tells how far the state is, and how large.
func (kv *kvstore) Status() state.Summary {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.Summary()
}

func (kv *kvstore) Used(key string) state.Holding {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.Holding(key)
}

// Size implements sizes.
func (kv *kvstore) Size() (bytes, keys uint64) { return kv.sizeNow.Load(), kv.keysNow.Load() }

// publishSize tells the quota what the state holds now. The caller holds kv.mu.
func (kv *kvstore) publishSize() {
	bytes, keys := kv.state.Weight()
	kv.sizeNow.Store(bytes)
	kv.keysNow.Store(keys)
}

// redoSnapshot has the apply loop take a snapshot in place of one that failed.
func (kv *kvstore) redoSnapshot() {
	kv.redo.Store(true)
	kv.AskForSnapshot(0)
}
