package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"raftkv/internal/address"
	"raftkv/internal/liveness"
	"raftkv/internal/logging"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"raftkv/internal/storage/snapshots"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// commit is what raft hands to the kvstore, in the order of the log: either
// committed entries to apply, or a snapshot that replaces the state.
type commit struct {
	entries []*raftpb.Entry
	// install is a state file that was received, verified and recorded in
	// the WAL.
	install stateFile
	// applied tells raft that the state machine has taken this in. It must
	// be called once.
	applied func()
}

// stateFile is a state file that is open.
type stateFile interface {
	io.ReadCloser
	Name() string
}

// reconfigure tells raft and the transport of a membership change. It is
// called for every committed configuration change, refused ones too, because
// raft waits for it before it takes the next; and with a nil cc when a
// snapshot replaced the state, of which raft knows already.
type reconfigure func(index uint64, cc *raftpb.ConfChange, m membership.Membership) error

// readCommits is the apply loop, the only writer of the state. For each commit:
// change the state, then let raft and those who wait know.
func (kv *kvstore) readCommits(ctx context.Context, commitC <-chan []commit, reconf reconfigure) error {
	for {
		select {
		case commits := <-commitC:
			for _, c := range commits {
				err := kv.commit(c, reconf)
				if err == nil {
					err = errors.Join(kv.checkOwnID(), kv.checkLevel())
				}
				if err != nil {
					return err
				}
				c.applied()
				// Not before raft knows how far the state is: a snapshot
				// compacts the log, and raft may still look at what it
				// believes to be unapplied.
				kv.snapshotIfDue()
			}
		case <-kv.pulse.Comes():
		case <-kv.wanted:
			kv.snapshotIfDue()
		case <-ctx.Done():
			return nil
		}
	}
}

// checkOwnID stops a node whose ID turns out to be another's.
func (kv *kvstore) checkOwnID() error {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	me := kv.state.Membership.Members[kv.self.Node]
	if me.Instance != 0 && me.Instance != kv.self.Instance {
		return problem.ErrUsedID
	}
	return nil
}

// checkLevel stops a node whose cluster uses commands that it does not know,
// before it meets one.
func (kv *kvstore) checkLevel() error {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	if kv.state.Level > state.ProgramLevel {
		return state.ErrLevel(kv.state.Level)
	}
	return nil
}

// Proven reports whether the cluster has agreed that this node's ID belongs to
// its data directory.
func (kv *kvstore) Proven() bool {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.Membership.Members[kv.self.Node].Instance == kv.self.Instance
}

func (kv *kvstore) commit(c commit, reconf reconfigure) error {
	if c.install != nil {
		return kv.install(c.install, reconf)
	}
	for entries := c.entries; len(entries) > 0; {
		// A run of normal entries becomes visible at once, under one lock.
		n := 0
		for n < len(entries) && entries[n].GetType() == raftpb.EntryNormal {
			n++
		}
		for run := entries[:n]; len(run) > 0; {
			done, err := kv.applyEntries(run)
			if err != nil {
				return err
			}
			run = run[done:]
		}
		if n < len(entries) {
			if err := kv.applyConfEntry(entries[n], reconf); err != nil {
				return err
			}
			n++
		}
		entries = entries[n:]
	}
	return nil
}

// maxGoneInStep is how many keys may go at once in a step of apply before readers
// get their turn.
const maxGoneInStep = 1000

// applyEntries applies entries until there are no more, or so many keys have gone that
// others should not wait longer, and returns how many it has applied.
func (kv *kvstore) applyEntries(entries []*raftpb.Entry) (n int, err error) {
	var own []state.Outcome // of batches of this node's
	kv.mu.Lock()
	for gone := 0; n < len(entries) && gone < maxGoneInStep; n++ {
		o, err := kv.applyEntry(entries[n])
		if err != nil {
			kv.mu.Unlock()
			return n, err
		}
		gone += o.Gone
		if o.ID.Node == kv.self.Node {
			own = append(own, o)
		}
	}
	kv.agreement.Note(&kv.state.Checks)
	kv.publish()
	window := kv.state.Window(kv.self.Node)
	kv.mu.Unlock()

	if err := kv.checkOwn(own, window); err != nil {
		return n, err
	}
	// Only now that readers see the new state may anyone be told of it.
	kv.advance(entries[n-1].GetIndex())
	for _, o := range own {
		if o.Results != nil {
			kv.proposals.Applied(o.ID, o.Results)
		}
	}
	return n, nil
}

// checkOwn returns problem.ErrOldCopy when batches in the log that are marked as this
// node's cannot be its own. Nobody has been answered from them yet.
func (kv *kvstore) checkOwn(own []state.Outcome, w state.Window) error {
	if len(own) == 0 {
		return nil
	}
	for _, o := range own {
		if err := kv.proposals.CheckBatch(o.ID, o.Data); err != nil {
			return err
		}
	}
	return kv.proposals.CheckWindow(w)
}

// publish tells what others look at without the lock. The caller holds kv.mu.
func (kv *kvstore) publish() {
	kv.publishSize()
	kv.levelNow.Store(kv.state.Level)
	kv.doors.Note(&kv.state.Membership)
	kv.proposals.Named.Store(kv.state.Level >= state.LifeLevel)
}

// advance wakes those who wait for the state to come so far, once readers see it. Only
// the apply loop calls it, which alone changes the revision.
func (kv *kvstore) advance(index uint64) {
	kv.applied.Advance(index)
	kv.revision.Advance(kv.state.Revision)
}

// applyEntry applies one normal entry. The caller holds kv.mu.
func (kv *kvstore) applyEntry(e *raftpb.Entry) (state.Outcome, error) {
	o, commands, err := kv.state.ApplyEntry(e)
	kv.due.Bytes += uint64(len(e.GetData())) + snapshots.LogOverhead
	kv.due.Commands += uint64(commands)
	if commands > 0 {
		kv.agreement.Worked.Store(e.GetIndex())
	}
	if errors.Is(err, record.ErrMalformed) {
		kv.log.Error("ignoring an entry that no version of raftkv wrote; who can reach the peer port?",
			zap.Uint64("index", e.GetIndex()))
		return state.Outcome{}, nil
	}
	return o, err
}

// applyConfEntry applies a membership change.
func (kv *kvstore) applyConfEntry(e *raftpb.Entry, reconf reconfigure) error {
	kv.mu.Lock()
	before := kv.state.Membership.Clone()
	cc, change, changed, err := kv.state.ApplyConfEntry(e)
	kv.agreement.Worked.Store(e.GetIndex())
	kv.publish()
	m := kv.state.Membership.Clone()
	kv.mu.Unlock()
	if errors.Is(err, record.ErrUnknownCommand) {
		return err
	}

	if !changed {
		cc.NodeId = new(raft.None) // tells raft that the change is void
	}
	kv.log.Debug("membership change", zap.Uint64("index", e.GetIndex()), zap.Bool("changed", changed),
		zap.Uint64("member", change.ID), zap.Stringer("change", change.Op), zap.Error(err))
	if e.GetIndex() > kv.toldBefore {
		reconfig.SayChange(kv.log, e.GetIndex(), before.Members[change.ID], m.Members[change.ID])
	}
	if rerr := reconf(e.GetIndex(), cc, m); rerr != nil {
		if errors.Is(rerr, problem.ErrRemoved) {
			kv.proposals.Void()
		}
		return rerr
	}
	kv.advance(e.GetIndex())
	kv.conf.Done(change.Request, err)
	return nil
}

// install replaces the state by that of a snapshot from the leader. Memory need
// not hold both: the old items are let go first, and until the new ones are there
// nobody reads (loading).
func (kv *kvstore) install(file stateFile, reconf reconfigure) error {
	began := time.Now()
	kv.dropItems()
	var s *state.State
	err := kv.pulse.Excused(liveness.LoadingSnapshot, func() (err error) {
		s, err = state.Read(file)
		return err
	})
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("installing snapshot %s: %w", file.Name(), err)
	}
	kv.mu.Lock()
	s.Changes.Keep(kv.state.Changes.Limit(), s.Revision)
	kv.state = s
	kv.agreement.Worked.Store(s.Index)
	kv.agreement.Note(&kv.state.Checks)
	kv.publish()
	kv.loading.Store(false)
	window, m := s.Window(kv.self.Node), s.Membership.Clone()
	kv.mu.Unlock()
	kv.due.Reset()
	kv.due.Last = s.Index
	if err := kv.proposals.CheckWindow(window); err != nil {
		return err
	}
	if err := reconf(s.Index, nil, m); err != nil {
		return err
	}
	kv.advance(s.Index)
	kv.proposals.Settle(window)
	kv.log.Info("snapshot installed", logging.News, zap.Uint64("index", s.Index), zap.Uint64("term", s.Term),
		zap.Duration("loaded-in", time.Since(began)), zap.String("members", address.FormatPeers(m.Peers())))
	return nil
}

// AskForSnapshot has the apply loop take a snapshot of an index or a later one
// soon, unless it has.
func (kv *kvstore) AskForSnapshot(index uint64) {
	for {
		old := kv.needed.Load()
		if index <= old || kv.needed.CompareAndSwap(old, index) {
			break
		}
	}
	select {
	case kv.wanted <- struct{}{}:
	default:
	}
}

// snapshotIfDue hands a copy of the state to the snapshot writer. While that is
// busy with the one before, the next stays due: a copy that waits would keep
// what is overwritten meanwhile in memory.
func (kv *kvstore) snapshotIfDue() {
	if kv.needed.Load() <= kv.due.Last && !kv.redo.Load() && !kv.due.IsDue(kv.Status().File) {
		return
	}
	select {
	case kv.writer <- struct{}{}:
	default:
		return
	}
	kv.redo.Store(false)
	st := kv.copyState()
	kv.due.Reset()
	kv.due.Last = st.Index
	kv.snapshots <- st // never waits: the writer is free
}
