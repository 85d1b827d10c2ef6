package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// The data directory:
//
//	lock            held by the process that uses the directory
//	mark            how far the log must at least reach (mark.go)
//	wal/            etcd's write-ahead log: entries, hard states, snapshot records
//	snap/T-I.state  the replicated state at term T and index I (statefile.go)
//
// Order of effects, and what a crash between two of them leaves:
//
//  1. An append is written to the WAL and fsynced before any message that
//     depends on it is sent (thesis §3.8). A crash before the fsync leaves a
//     torn tail that nobody was told of; it is cut off at the next start.
//  2. A snapshot's state file is complete, fsynced and named before the WAL
//     records the snapshot. A crash between leaves a file that no record
//     names; it is removed at the next start.
//  3. The WAL's record, and a hard state that commits it, are synced before
//     any older file, segment or log entry is dropped. A crash between leaves
//     files that the next snapshot removes.
//
// One loader, openStorage, decides which snapshot counts, and gives raft and
// the kvstore the same one.

// storage owns what this node has on disk, and raft's view of it in memory.
// After openStorage it belongs to the persist loop, except mem, which locks
// for itself.
type storage struct {
	log  *zap.Logger
	dir  string
	wal  *wal.WAL
	mem  *raft.MemoryStorage
	mark *markKeeper

	hard      *raftpb.HardState // as last written to the WAL
	last      uint64            // index of the last entry in the WAL
	recorded  *indexWait        // wakes those who wait for a snapshot to be recorded
	snapIndex atomic.Uint64     // of the newest snapshot that the WAL records; others may read it
}

const (
	// retainedEntries and retainedBytes bound the log kept in memory behind
	// a snapshot, so that a follower a little behind needs no snapshot.
	retainedEntries = 5000
	retainedBytes   = 16 << 20
)

// append makes a run of raft's storage messages durable, with one fsync for
// all of them. An error means that the node must stop: what the disk holds is
// no longer known.
func (s *storage) append(msgs []*raftpb.Message) error {
	for len(msgs) > 0 {
		n := 0
		for n < len(msgs) && raft.IsEmptySnap(msgs[n].GetSnapshot()) {
			n++
		}
		if err := s.save(msgs[:n]); err != nil {
			return err
		}
		if n < len(msgs) {
			if err := s.install(msgs[n]); err != nil {
				return err
			}
			n++
		}
		msgs = msgs[n:]
	}
	return nil
}

func (s *storage) save(msgs []*raftpb.Message) error {
	hard, entries := s.merge(msgs)
	if err := s.write(hard, entries); err != nil {
		return err
	}
	for _, m := range msgs {
		// One by one: a later message may overwrite entries of an earlier.
		if err := s.mem.Append(m.GetEntries()); err != nil {
			return fmt.Errorf("log in memory: %w", err)
		}
	}
	s.saved(hard, entries)
	return nil
}

// write puts a hard state and entries into the WAL, and lowers the mark before
// entries are overwritten that it covers.
func (s *storage) write(hard *raftpb.HardState, entries []*raftpb.Entry) error {
	if len(entries) > 0 {
		lowest := entries[0].GetIndex()
		for _, e := range entries {
			lowest = min(lowest, e.GetIndex())
		}
		if err := s.mark.lower(lowest - 1); err != nil {
			return err
		}
	}
	if err := s.wal.Save(hard, entries); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	return nil
}

// merge puts the contents of several messages in a row. When entries overlap,
// the WAL lets the later ones win, as they should.
func (s *storage) merge(msgs []*raftpb.Message) (*raftpb.HardState, []*raftpb.Entry) {
	hard := &raftpb.HardState{}
	var entries []*raftpb.Entry
	for _, m := range msgs {
		entries = append(entries, m.GetEntries()...)
		if m.Term != nil || m.Vote != nil || m.Commit != nil {
			hard = &raftpb.HardState{Term: new(m.GetTerm()), Vote: new(m.GetVote()), Commit: new(m.GetCommit())}
		}
	}
	return hard, entries
}

// saved notes what the WAL now holds.
func (s *storage) saved(hard *raftpb.HardState, entries []*raftpb.Entry) {
	if !raft.IsEmptyHardState(hard) {
		s.hard = hard
	}
	if len(entries) > 0 {
		s.last = lastIndex(entries)
	}
	s.mark.raise(s.last, s.hard.GetTerm(), s.hard.GetVote())
}

// install makes a received snapshot the beginning of the log. Its state file
// was verified when it came in (receive).
func (s *storage) install(m *raftpb.Message) error {
	meta := m.GetSnapshot().GetMetadata()
	term, index := meta.GetTerm(), meta.GetIndex()
	if err := os.Rename(incomingPath(s.dir, term, index), statePath(s.dir, term, index)); err != nil {
		return fmt.Errorf("received snapshot: %w", err)
	}
	if err := syncDir(s.snapDir()); err != nil {
		return err
	}
	hard, entries := s.merge([]*raftpb.Message{m})
	if raft.IsEmptyHardState(hard) {
		hard = s.hard
	}
	if err := s.mark.lower(index); err != nil {
		return err // it may cover entries that conflict with the snapshot, and go
	}
	if err := s.record(hard, index, term, meta.GetConfState()); err != nil {
		return err
	}
	if err := s.mem.ApplySnapshot(m.GetSnapshot()); err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	s.recorded.advance(index)
	s.last = index
	s.saved(hard, nil)
	if len(entries) > 0 {
		if err := s.save([]*raftpb.Message{m}); err != nil {
			return err
		}
	}
	return s.clean(index, term)
}

// record writes a snapshot into the WAL, together with a hard state that
// commits it: a snapshot beyond the committed index does not count at the next
// start. Durable on return.
func (s *storage) record(hard *raftpb.HardState, index, term uint64, cs *raftpb.ConfState) error {
	hard = &raftpb.HardState{
		Term: new(hard.GetTerm()), Vote: new(hard.GetVote()), Commit: new(max(hard.GetCommit(), index)),
	}
	if err := s.wal.Save(hard, nil); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	if err := s.wal.SaveSnapshot(&walpb.Snapshot{Index: new(index), Term: new(term), ConfState: cs}); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	s.hard = hard
	s.snapIndex.Store(index)
	return nil
}

// written is called when the state file of a snapshot of this node's own is
// complete: it records the snapshot, and drops what it makes superfluous.
func (s *storage) written(st *state) error {
	if st.index <= s.snapIndex.Load() {
		return nil // overtaken by one from the leader
	}
	cs := st.membership.confState()
	if err := s.record(s.hard, st.index, st.term, cs); err != nil {
		return err
	}
	if _, err := s.mem.CreateSnapshot(st.index, cs, nil); err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	s.recorded.advance(st.index)
	if err := s.compact(st.index); err != nil {
		return err
	}
	s.log.Info("snapshot taken", zap.Uint64("index", st.index), zap.Uint64("term", st.term))
	return s.clean(st.index, st.term)
}

// compact drops log entries from memory, except a bounded tail.
func (s *storage) compact(index uint64) error {
	first, err := s.mem.FirstIndex()
	if err != nil {
		return err
	}
	if index > retainedEntries {
		first = max(first, index-retainedEntries)
	}
	if first > index {
		return nil
	}
	tail, err := s.mem.Entries(first, index+1, ^uint64(0))
	if err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	keep, size := len(tail), 0
	for keep > 0 && size+len(tail[keep-1].GetData()) <= retainedBytes {
		keep--
		size += len(tail[keep].GetData())
	}
	to := min(first+uint64(keep), index+1) - 1
	if have, err := s.mem.FirstIndex(); err != nil || to < have {
		return err
	}
	return s.mem.Compact(to)
}

// clean removes files that nothing needs once the snapshot counts.
func (s *storage) clean(index, term uint64) error {
	if err := s.wal.ReleaseLockTo(index); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	if err := removeSegments(filepath.Join(s.dir, "wal"), index); err != nil {
		return err
	}
	return s.cleanSnaps(index, term, func(name string) bool { return newerThan(name, index) })
}

// sweep is clean at the start, when nothing is on its way: what a crash left
// half-done goes too.
func (s *storage) sweep(index, term uint64) error {
	if err := removeMarkTemps(s.dir); err != nil {
		return err
	}
	if err := removeSegments(filepath.Join(s.dir, "wal"), index); err != nil {
		return err
	}
	return s.cleanSnaps(index, term, func(string) bool { return false })
}

// cleanSnaps removes all of snap/ but the snapshot that counts and what spare
// says.
func (s *storage) cleanSnaps(index, term uint64, spare func(name string) bool) error {
	files, err := os.ReadDir(s.snapDir())
	if err != nil {
		return err
	}
	keep := filepath.Base(statePath(s.dir, term, index))
	for _, f := range files {
		if f.Name() == keep || spare(f.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(s.snapDir(), f.Name())); err != nil {
			return err
		}
	}
	return nil
}

// newerThan reports whether a file in snap/ belongs to a snapshot behind
// index, which may be on its way in, or being written.
func newerThan(name string, index uint64) bool {
	var t, i uint64
	_, err := fmt.Sscanf(name, "%016x-%016x", &t, &i)
	return err == nil && i > index
}

// removeSegments removes the WAL segments that end before index.
func removeSegments(walDir string, index uint64) error {
	names, err := fileutil.ReadDir(walDir, fileutil.WithExt(".wal"))
	if err != nil {
		return err
	}
	for i := 0; i+1 < len(names); i++ {
		var seq, first uint64 // of the following segment
		if _, err := fmt.Sscanf(names[i+1], "%016x-%016x.wal", &seq, &first); err != nil {
			return fmt.Errorf("unexpected file %s in %s", names[i+1], walDir)
		}
		if first >= index {
			break
		}
		for _, name := range []string{names[i], names[i] + ".broken"} {
			if err := os.Remove(filepath.Join(walDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// close flushes and closes the log.
func (s *storage) close() error {
	return errors.Join(s.wal.Close(), s.mark.close())
}

func (s *storage) snapDir() string { return filepath.Join(s.dir, "snap") }

func statePath(dir string, term, index uint64) string {
	return filepath.Join(dir, "snap", fmt.Sprintf("%016x-%016x.state", term, index))
}

func incomingPath(dir string, term, index uint64) string {
	return strings.TrimSuffix(statePath(dir, term, index), ".state") + ".incoming"
}
