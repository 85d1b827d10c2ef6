package main

import (
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// How much of the log is in memory, and for whom. The log on disk reaches back
// to the last snapshot, and may be as large as the state; in memory there is
// only its tail, for followers that are a little behind. Who is further behind
// gets a snapshot.

const (
	// tailWeight bounds the tail in bytes, and with what an entry weighs
	// beside its data, in entries: at most 32,768.
	tailWeight  = 32 << 20
	entryWeight = 1 << 10
)

// logTail is the state of the tail. The persist loop owns it, except for what
// the raft loop tells.
type logTail struct {
	limit  int64 // tailWeight, or less where memory is scarce
	scarce bool
	weight int64 // of the entries in memory; overwritten ones count until the next trim
	// snapshot is the size of the newest one. For a follower that is being
	// brought up to date the tail is kept longer, up to three times the limit
	// or to this size: beyond, another snapshot is cheaper.
	snapshot int64

	applied atomic.Uint64 // what raft knows to be applied: behind it, raft may look at any entry
	needed  atomic.Uint64 // the first entry that a follower needs is behind this one
	writing atomic.Uint64 // index of the snapshot that was last begun
	grown   atomic.Int64  // bytes of log since then
	awaited atomic.Bool   // somebody has asked since then for a snapshot that there is not yet
}

func weightOf(e *raftpb.Entry) int64 { return int64(len(e.GetData())) + entryWeight }

func (t *logTail) add(entries []*raftpb.Entry) {
	for _, e := range entries {
		t.weight += weightOf(e)
		t.grown.Add(int64(len(e.GetData())) + logOverhead)
	}
}

// laggards is how long the tail may be for the sake of a follower. A node that has
// little memory does not keep as much as a snapshot.
func (t *logTail) laggards() int64 {
	if t.scarce {
		return 3 * t.limit
	}
	return max(3*t.limit, t.snapshot)
}

// trim drops the front of the log in memory, if it has grown too long.
func (s *storage) trim() error {
	t := &s.tail
	if t.weight <= t.limit+t.limit/2 { // trimming copies what is left, so not each time
		return nil
	}
	first, err := s.mem.FirstIndex()
	if err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	last, err := s.mem.LastIndex()
	if err != nil || last < first {
		t.weight = 0
		return err
	}
	entries, err := s.mem.Entries(first, last+1, ^uint64(0))
	if err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	applied, needed, laggards := t.applied.Load(), t.needed.Load(), t.laggards()
	if needed < applied && needed < first && t.weight <= laggards {
		return nil // all of it is needed
	}
	keep, weight := len(entries), int64(0)
	for keep > 0 {
		e := entries[keep-1]
		with := weight + weightOf(e)
		mayGo := e.GetIndex() <= applied && (e.GetIndex() <= needed || with > laggards)
		if with > t.limit && mayGo {
			break
		}
		weight, keep = with, keep-1
	}
	t.weight = weight
	if keep == 0 {
		return nil
	}
	if err := s.mem.Compact(entries[keep-1].GetIndex()); err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	return nil
}

// raftStorage is the log as raft reads it.
type raftStorage struct {
	*raft.MemoryStorage
	storage *storage
	want    func(index uint64) // asks for a snapshot of an index or a later one; does not block
}

// Snapshot returns the newest snapshot. One that the log in memory does not
// follow on would be of no use to a follower, so then another is taken, and
// raft asks again.
func (s raftStorage) Snapshot() (*raftpb.Snapshot, error) {
	newest := s.storage.newest.Load()
	first, err := s.FirstIndex()
	if err != nil {
		return nil, err
	}
	if newest.GetMetadata().GetIndex()+1 >= first {
		return newest, nil
	}
	s.storage.tail.awaited.Store(true)
	if s.storage.tail.writing.Load()+1 < first { // else one is on its way
		s.want(first - 1)
	}
	return nil, raft.ErrSnapshotTemporarilyUnavailable
}

// noteNeeds tells the persist loop which part of the log somebody needs. It is
// called on the raft loop, at each tick; what moves between two of them, the
// tail covers.
func (n *raftNode) noteNeeds() {
	t := &n.storage.tail
	st := n.loop.rn.BasicStatus()
	needed := st.Applied
	if st.RaftState == raft.StateLeader {
		base := max(n.storage.snapIndex.Load(), t.writing.Load())
		first, err := n.storage.mem.FirstIndex()
		n.loop.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
			// By when it was heard, not by RecentActive: raft sets that back,
			// at the tick that looks at it.
			if id == n.id || time.Since(n.contacts.last(id)) > n.elected || err != nil {
				return
			}
			from := pr.Match
			if pr.State == tracker.StateSnapshot {
				from = pr.PendingSnapshot
			} else if from+1 < first {
				from = base // it is going to get a snapshot
			}
			needed = min(needed, from)
		})
	}
	t.applied.Store(st.Applied)
	t.needed.Store(needed)
}
