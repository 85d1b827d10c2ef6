package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"raftkv/internal/address"
	"raftkv/internal/liveness"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/wait"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// item is one key's value and history. It is immutable: a write makes a new
// one, so that readers and snapshots may keep the old one without a lock.
type item struct {
	value          []byte
	createRevision uint64 // the revision at which the key came to be
	modRevision    uint64 // the revision of its last change, its ETag
	version        uint64 // how often it was written since it came to be
}

// state is the replicated state machine. It is pure: what it becomes depends
// on the committed entries and on nothing else, no clock, no goroutine, no
// random number. Every replica therefore holds the same state at the same
// index.
type state struct {
	index, term uint64 // of the last entry applied; one unit with the rest
	revision    uint64 // counts the commands that changed something
	bytes       uint64 // of all keys and values
	items       btree.Map[string, *item]
	sum         uint64            // of the items' hashes; hash.go
	windows     map[uint64]window // by node: which of its batches were applied
	membership  membership
	level       uint64 // of the commands that every member knows; level.go
	checks      checks
}

func newState(peers []address.Peer) *state {
	return &state{windows: make(map[uint64]window), membership: newMembership(peers)}
}

// copy returns a state that later changes of s do not touch, in time
// independent of the number of keys: the tree is copied on write.
func (s *state) copy() *state {
	c := &state{
		index: s.index, term: s.term, revision: s.revision, bytes: s.bytes,
		items:      *s.items.Copy(),
		sum:        s.sum,
		windows:    make(map[uint64]window, len(s.windows)),
		membership: s.membership.clone(),
		level:      s.level,
		checks:     s.checks.clone(),
	}
	for node, w := range s.windows {
		c.windows[node] = w
	}
	return c
}

// get returns a key's item, nil if there is none.
func (s *state) get(key string) *item {
	it, _ := s.items.Get(key)
	return it
}

// window tells which batches of a node's life are settled.
func (s *state) window(node uint64) window { return s.windows[node] }

// scan shows all items in the order of their keys, until each returns false.
func (s *state) scan(each func(key string, it *item) bool) { s.items.Scan(each) }

// keys is how many keys there are.
func (s *state) keys() uint64 { return uint64(s.items.Len()) }

// dropItems lets go of all items, before a snapshot brings others. What is left
// is no state any more.
func (s *state) dropItems() { s.items = btree.Map[string, *item]{} }

// summary tells of a state how far and how large it is.
type summary struct {
	index, term, revision, keys, bytes uint64
	level, checked                     uint64 // the cluster's level; the newest checkpoint agreed on
}

func (s *state) summary() summary {
	return summary{s.index, s.term, s.revision, s.keys(), s.bytes, s.level, s.checks.checked}
}

// holding is what a state holds, and one key of it.
type holding struct {
	bytes, keys uint64
	old         uint64 // of the key and its value
	exists      bool
}

func (s *state) holding(key string) holding {
	h := holding{bytes: s.bytes, keys: s.keys()}
	if it := s.get(key); it != nil {
		h.old, h.exists = uint64(len(key)+len(it.value)), true
	}
	return h
}

// window records which batches of one node's current life were applied.
// Everything below low is settled; bit i of applied stands for low+i. A node
// keeps fewer than windowSize unsettled batches, so nothing falls out.
type window struct {
	boot, low, applied uint64
	// life is the nonce of that life. It is 0, and so leaves no trace in files
	// and in the hash, until a batch has named it, which none does below level 3.
	life uint64
}

const windowSize = 64

// admit reports whether a batch is applied now for the first time, and
// records it. A batch of an earlier life is refused: nobody waits for it, and
// its window is gone. So is one of another life with the same boot: one of the
// two began on an older copy of the directory, and ends when it sees the other.
func (w *window) admit(id batchID) bool {
	if id.boot < w.boot {
		return false
	}
	if id.boot > w.boot {
		*w = window{boot: id.boot}
	}
	if id.life != 0 {
		if w.life != 0 && id.life != w.life {
			return false
		}
		w.life = id.life
	}
	w.raise(id.low)
	if id.seq < w.low {
		return false
	}
	if id.seq >= w.low+windowSize {
		w.raise(id.seq - windowSize + 1)
	}
	bit := uint64(1) << (id.seq - w.low)
	if w.applied&bit != 0 {
		return false
	}
	w.applied |= bit
	return true
}

func (w *window) raise(low uint64) {
	if low > w.low {
		w.applied >>= min(low-w.low, windowSize) // Go shifts out to zero
		w.low = low
	}
	n := uint64(bits.TrailingZeros64(^w.applied))
	w.applied >>= n
	w.low += n
}

// end is behind the last sequence that the window knows to be settled.
func (w window) end() uint64 { return w.low + uint64(bits.Len64(w.applied)) }

// settled reports whether the state has applied, or will never apply, a batch.
func (w window) settled(id batchID) bool {
	if id.boot != w.boot {
		return id.boot < w.boot
	}
	return id.seq < w.low || (id.seq < w.low+windowSize && w.applied&(1<<(id.seq-w.low)) != 0)
}

// result is what became of one command.
type result struct {
	err error // nil, problem.ErrNotFound or problem.ErrPrecondition
	// revision is the mod_revision of the key as it is now: the ETag to
	// report. 0: there is no such key.
	revision uint64
	// deletion: the store's revision at which a key was deleted.
	deletion uint64
}

// applyBatch applies one batch, or nothing if it was applied before.
// Commands from a node that is not a member do nothing either: nobody waits
// for them, and a removed node must not leave a window behind.
func (s *state) applyBatch(id batchID, cmds []command) (results []result, first bool) {
	if _, ok := s.membership.members[id.node]; !ok {
		return nil, false
	}
	w := s.windows[id.node]
	first = w.admit(id)
	s.windows[id.node] = w
	if !first {
		return nil, false
	}
	results = make([]result, len(cmds))
	for i, c := range cmds {
		results[i] = s.apply(c)
	}
	return results, true
}

func (s *state) apply(c command) result {
	switch c.kind {
	case kindPut:
		return s.put(c)
	case kindDelete:
		return s.delete(c)
	case kindPublish:
		s.membership.publish(c.member, c.instance, c.clientURL, 0)
	case kindAnnounce:
		s.membership.publish(c.member, c.instance, c.clientURL, c.level)
		s.raiseLevel()
	case kindCheckpoint:
		s.checkpoint(c.full)
	case kindReport:
		s.report(c.member, c.checkpoint, c.report)
	}
	return result{}
}

func (s *state) put(c command) result {
	if c.condition.kind != always {
		if old, _ := s.items.Get(c.key); !c.condition.holds(old) {
			return failed(problem.ErrPrecondition, old)
		}
	}
	s.revision++
	it := &item{
		// The command's bytes are a part of its entry's: keeping them
		// would keep the whole batch in memory.
		value:          bytes.Clone(c.value),
		createRevision: s.revision,
		modRevision:    s.revision,
		version:        1,
	}
	old, exists := s.items.Set(c.key, it) // nobody sees it before the lock is released
	if exists {
		it.createRevision, it.version = old.createRevision, old.version+1
		s.bytes -= uint64(len(old.value))
		s.sum -= itemHash(c.key, old)
	} else {
		s.bytes += uint64(len(c.key))
	}
	s.bytes += uint64(len(it.value))
	s.sum += itemHash(c.key, it)
	return result{revision: s.revision}
}

func (s *state) delete(c command) result {
	old, exists := s.items.Get(c.key)
	if !c.condition.holds(old) {
		return failed(problem.ErrPrecondition, old)
	}
	if !exists {
		return failed(problem.ErrNotFound, nil)
	}
	s.revision++
	s.bytes -= uint64(len(c.key) + len(old.value))
	s.sum -= itemHash(c.key, old)
	s.items.Delete(c.key)
	return result{deletion: s.revision}
}

// holds decides a condition for a key whose item is it, nil if there is none.
func (c condition) holds(it *item) bool {
	switch c.kind {
	case ifExists:
		return it != nil
	case ifMissing:
		return it == nil
	case ifAtRevision:
		return it != nil && it.modRevision == c.revision
	}
	return true
}

func failed(err error, it *item) result {
	r := result{err: err}
	if it != nil {
		r.revision = it.modRevision
	}
	return r
}

// applyConfEntry applies the membership change of an entry. changed says whether it
// did anything; err is why it was refused, or record.ErrUnknownCommand, after which
// nothing may be applied any more.
func (s *state) applyConfEntry(e *raftpb.Entry) (cc *raftpb.ConfChange, change memberChange, changed bool, err error) {
	cc, change, err = decodeConfEntry(e)
	if errors.Is(err, record.ErrUnknownCommand) {
		return cc, change, false, err
	}
	s.index, s.term = e.GetIndex(), e.GetTerm()
	if err == nil {
		changed, err = s.applyMemberChange(change)
	}
	return cc, change, changed, err
}

// applyMemberChange applies a membership change, or says why it is refused.
func (s *state) applyMemberChange(c memberChange) (changed bool, err error) {
	done, err := s.membership.check(c)
	if err != nil || done {
		return false, err
	}
	s.membership.apply(c)
	if c.op == opRemove {
		delete(s.windows, c.id)
		delete(s.checks.diverged, c.id)
	}
	s.raiseLevel()
	return true, nil
}

// selfID is who this node is: its ID, and the instance of its data directory.
type selfID struct{ node, instance uint64 }

// kvstore holds the state for the goroutines around it: the apply loop is the
// only writer, HTTP handlers read.
type kvstore struct {
	log       *zap.Logger
	self      selfID
	proposals *proposer
	applied   *wait.Index
	conf      *wait.Outcomes
	pulse     *liveness.Pulse // of the apply loop

	snapshots chan<- *state // states to write to disk; see apply.go
	writer    chan struct{} // held by the snapshot that is being written
	wanted    chan struct{} // says that needed has risen
	needed    atomic.Uint64 // somebody needs a snapshot of this index or a later one
	redo      atomic.Bool   // the last snapshot failed
	due       snapshotPolicy
	agreement *agreement
	// toldBefore is the index up to which changes of the members were told of
	// before this node started; see sayChange.
	toldBefore uint64

	mu    sync.RWMutex
	state *state // guarded by mu; replaced when a snapshot is installed

	// loading: the state has no items, because those of a snapshot are on their
	// way in. It changes under mu.
	loading atomic.Bool

	sizeNow, keysNow atomic.Uint64 // the state's bytes and keys, as last published
}

// get returns a key's item, nil if there is none, and the store's revision.
// The caller decides beforehand how fresh the answer must be (read.go).
func (kv *kvstore) get(key string) (it *item, revision uint64) {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.get(key), kv.state.revision
}

// read is get for a client, who must not take a state without items for an empty
// one.
func (kv *kvstore) read(key string) (it *item, revision uint64, err error) {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	if kv.loading.Load() {
		return nil, 0, errLoading
	}
	return kv.state.get(key), kv.state.revision, nil
}

// has reports whether there is a key of that name.
func (kv *kvstore) has(key string) bool {
	it, _ := kv.get(key)
	return it != nil
}

// errLoading: another node has what is asked for, and this one will soon.
var errLoading = fmt.Errorf("%w: a snapshot from the leader is being loaded", problem.ErrNotReady)

// view lends the state for a look at it.
func (kv *kvstore) view(look func(*state)) {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	look(kv.state)
}

// sound returns nil, or why this node must not serve; see agreement.
func (kv *kvstore) sound() error { return kv.agreement.sound() }

// letGo drops the items, of which a check may have a copy, too.
func (kv *kvstore) letGo() {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	kv.loading.Store(true)
	kv.state.dropItems()
	kv.agreement.overtake() // by the snapshot
}

// membership returns a copy of the cluster's membership as applied here, and
// the index at which it was so.
func (kv *kvstore) membership() (m membership, index uint64) {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.membership.clone(), kv.state.index
}

// members returns a copy of the cluster's membership as applied here.
func (kv *kvstore) members() membership {
	m, _ := kv.membership()
	return m
}

// standing is how far the state has come.
func (kv *kvstore) standing() standing {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.standing()
}

// isRemoved reports whether an ID was removed from the cluster, as far as
// this node knows.
func (kv *kvstore) isRemoved(id uint64) bool {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.membership.removed[id]
}

// status tells how far the state is, and how large.
func (kv *kvstore) status() summary {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.summary()
}
