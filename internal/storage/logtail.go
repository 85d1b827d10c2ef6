package storage

import (
	"fmt"
	"raftkv/internal/storage/snapshots"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// How much of the log is in memory, and for whom. The log on disk reaches back
// to the last snapshot, and may be as large as the state; in memory there is
// only its tail, for followers that are a little behind. Who is further behind
// gets a snapshot.

const (
	// TailWeight bounds the tail in bytes, and with what an entry weighs
	// beside its data, in entries: at most 32,768.
	TailWeight  = 32 << 20
	EntryWeight = 1 << 10
)

// logTail is the state of the tail. The persist loop owns it, except for what
// the raft loop tells.
type logTail struct {
	Limit  int64 // TailWeight, or less where memory is scarce
	scarce bool
	weight int64 // of the entries in memory; overwritten ones count until the next trim
	// snapshot is the size of the newest one. For a follower that is being
	// brought up to date the tail is kept longer, up to three times the limit
	// or to this size: beyond, another snapshot is cheaper.
	snapshot int64

	Applied atomic.Uint64 // what raft knows to be applied: behind it, raft may look at any entry
	Needed  atomic.Uint64 // the first entry that a follower needs is behind this one
	Writing atomic.Uint64 // index of the snapshot that was last begun
	Grown   atomic.Int64  // bytes of log since then
	Awaited atomic.Bool   // somebody has asked since then for a snapshot that there is not yet
}

func weightOf(e *raftpb.Entry) int64 { return int64(len(e.GetData())) + EntryWeight }

func (t *logTail) add(entries []*raftpb.Entry) {
	for _, e := range entries {
		t.weight += weightOf(e)
		t.Grown.Add(int64(len(e.GetData())) + snapshots.LogOverhead)
	}
}

// laggards is how long the tail may be for the sake of a follower. A node that has
// little memory does not keep as much as a snapshot.
func (t *logTail) laggards() int64 {
	if t.scarce {
		return 3 * t.Limit
	}
	return max(3*t.Limit, t.snapshot)
}

// Trim drops the front of the log in memory, if it has grown too long.
func (s *Storage) Trim() error {
	t := &s.Tail
	if t.weight <= t.Limit+t.Limit/2 { // trimming copies what is left, so not each time
		return nil
	}
	first, err := s.Mem.FirstIndex()
	if err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	last, err := s.Mem.LastIndex()
	if err != nil || last < first {
		t.weight = 0
		return err
	}
	entries, err := s.Mem.Entries(first, last+1, ^uint64(0))
	if err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	applied, needed, laggards := t.Applied.Load(), t.Needed.Load(), t.laggards()
	if needed < applied && needed < first && t.weight <= laggards {
		return nil // all of it is needed
	}
	keep, weight := len(entries), int64(0)
	for keep > 0 {
		e := entries[keep-1]
		with := weight + weightOf(e)
		mayGo := e.GetIndex() <= applied && (e.GetIndex() <= needed || with > laggards)
		if with > t.Limit && mayGo {
			break
		}
		weight, keep = with, keep-1
	}
	t.weight = weight
	if keep == 0 {
		return nil
	}
	if err := s.Mem.Compact(entries[keep-1].GetIndex()); err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	return nil
}

// RaftStorage is the log as raft reads it.
type RaftStorage struct {
	*raft.MemoryStorage
	Storage *Storage
	Want    func(index uint64) // asks for a snapshot of an index or a later one; does not block
}

// Snapshot returns the newest snapshot. One that the log in memory does not
// follow on would be of no use to a follower, so then another is taken, and
// raft asks again.
func (s RaftStorage) Snapshot() (*raftpb.Snapshot, error) {
	newest := s.Storage.Newest.Load()
	first, err := s.FirstIndex()
	if err != nil {
		return nil, err
	}
	if newest.GetMetadata().GetIndex()+1 >= first {
		return newest, nil
	}
	s.Storage.Tail.Awaited.Store(true)
	if s.Storage.Tail.Writing.Load()+1 < first { // else one is on its way
		s.Want(first - 1)
	}
	return nil, raft.ErrSnapshotTemporarilyUnavailable
}
