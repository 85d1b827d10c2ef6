// Package storage answers: in what order do things reach the disk, and what does a
// start find there? It owns a node's data directory: identity, lock, write-ahead
// log, mark and snapshots. It promises that what Append has returned for is there
// after a power cut, that damage to it is found and never repaired by forgetting,
// and that a snapshot is housekeeping, whose failure ends nothing. It does not know
// who else is in the cluster, or what a command means.
package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/logging"
	"raftkv/internal/state"
	"raftkv/internal/storage/dirwatch"
	"raftkv/internal/storage/disposal"
	"raftkv/internal/storage/snapshots"
	"raftkv/internal/storage/walroom"
	"raftkv/internal/wait"
	"raftkv/internal/walfile"
	"raftkv/internal/watermark"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// The data directory:
//
//	lock            held by the process that uses the directory
//	mark            how far the log must at least reach (package watermark)
//	wal/            etcd's write-ahead log: entries, hard states, snapshot records
//	snap/T-I.state  the replicated state at term T and index I (package statefile)
//
// Order of effects, and what a crash between two of them leaves:
//
//  1. An append is written to the WAL and fsynced before any message that
//     depends on it is sent (thesis §3.8). A crash before the fsync leaves a
//     torn tail that nobody was told of; it is cut off at the next start.
//  2. A snapshot's state file is complete, fsynced and named before the WAL
//     records the snapshot. A crash between leaves a file that no record
//     names; it is removed at the next start.
//  3. The WAL's record of it is synced before any older file, segment or log
//     entry is dropped. A crash between leaves files that the next snapshot
//     removes. A state file goes in steps (package disposal), and what a crash
//     leaves of one has a name that the next start removes.
//
// One loader, Open, decides which snapshot counts, and gives raft and
// the kvstore the same one.

// WriteAheadLog is *wal.WAL. Tests put one on a slow disk in its place.
type WriteAheadLog interface {
	Save(hard *raftpb.HardState, entries []*raftpb.Entry) error
	SaveSnapshot(s *walpb.Snapshot) error
	ReleaseLockTo(index uint64) error
	Sync() error
	Close() error
}

// Storage owns what this node has on disk, and raft's view of it in memory.
// After Open it belongs to the persist loop, except Mem, which locks
// for itself.
type Storage struct {
	log   *zap.Logger
	Dir   string // the data directory
	Wal   WriteAheadLog
	Zeros *walfile.Zeroer     // writes zeros before the log gets there
	Room  *walroom.Room       // keeps room on the disk for the log
	Mem   *raft.MemoryStorage // the end of the log, as raft reads it
	Mark  *watermark.Keeper   // how far the log was synced
	// Snaps are the files of snap/: who reads them, and how they go.
	Snaps *disposal.Files

	Hard      *raftpb.HardState // as the WAL has it; commits its newest snapshot at least
	Last      uint64            // index of the last entry in the WAL
	unsynced  bool              // a new commit index, which the WAL holds back (Rest)
	savedAt   time.Time         // when anything was written last
	Tail      logTail
	Snapshots snapshots.Stats
	Trouble   snapshots.Trouble               // with the last snapshot
	Redo      func()                          // has another snapshot taken
	Recorded  *wait.Index                     // wakes those who wait for a snapshot to be recorded
	SnapIndex atomic.Uint64                   // of the newest snapshot that the WAL records; others may read it
	Newest    atomic.Pointer[raftpb.Snapshot] // the same, as raft knows it; without the state
}

// Append makes a run of raft's storage messages durable, with one fsync for
// all of them. An error means that the node must stop: what the disk holds is
// no longer known.
func (s *Storage) Append(msgs []*raftpb.Message) error {
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

func (s *Storage) save(msgs []*raftpb.Message) error {
	hard, entries := s.merge(msgs)
	if err := s.write(hard, entries); err != nil {
		return err
	}
	for _, m := range msgs {
		// One by one: a later message may overwrite entries of an earlier.
		if err := s.Mem.Append(m.GetEntries()); err != nil {
			return fmt.Errorf("log in memory: %w", err)
		}
	}
	s.saved(hard, entries)
	return nil
}

// write puts a hard state and entries into the WAL, and lowers the mark before
// entries are overwritten that it covers.
func (s *Storage) write(hard *raftpb.HardState, entries []*raftpb.Entry) error {
	if len(entries) > 0 {
		lowest := entries[0].GetIndex()
		for _, e := range entries {
			lowest = min(lowest, e.GetIndex())
		}
		if err := s.Mark.Lower(lowest - 1); err != nil {
			return err
		}
	}
	return s.saveWAL(hard, entries)
}

// saveWAL is wal.Save, unless the disk has no room. The WAL would wait for ever
// for a next segment, or fail.
func (s *Storage) saveWAL(hard *raftpb.HardState, entries []*raftpb.Entry) error {
	size := walroom.SizeInLog(hard, entries)
	if !s.Room.Admits(size, len(entries) > 0) {
		return walroom.ErrNoRoom
	}
	began := time.Now()
	if err := s.Wal.Save(hard, entries); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	s.noteSync(began)
	s.Room.Saved(size)
	if len(entries) > 0 || !raft.IsEmptyHardState(hard) {
		s.unsynced, s.savedAt = !raft.MustSync(hard, s.Hard, len(entries)), time.Now()
	}
	return nil
}

// Rest makes a new commit index durable, which the WAL writes no sooner than what comes
// behind it. A node that knows after a crash what was committed recognizes another
// history when it meets one. Rest is called again and again, and syncs once when nothing
// was written for a while.
func (s *Storage) Rest(while time.Duration) error {
	if !s.unsynced || time.Since(s.savedAt) < while {
		return nil
	}
	s.unsynced = false
	if err := s.Wal.Sync(); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	return nil
}

// merge puts the contents of several messages in a row. When entries overlap,
// the WAL lets the later ones win, as they should.
func (s *Storage) merge(msgs []*raftpb.Message) (*raftpb.HardState, []*raftpb.Entry) {
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
func (s *Storage) saved(hard *raftpb.HardState, entries []*raftpb.Entry) {
	if !raft.IsEmptyHardState(hard) {
		s.Hard = hard
	}
	if len(entries) > 0 {
		s.Last = walfile.LastIndex(entries)
		s.Tail.add(entries)
	}
	s.Mark.Raise(s.Last, s.Hard.GetTerm(), s.Hard.GetVote())
}

// install makes a received snapshot the beginning of the log. Its state file
// was verified when it came in (Inbox.Take).
func (s *Storage) install(m *raftpb.Message) error {
	meta := m.GetSnapshot().GetMetadata()
	term, index := meta.GetTerm(), meta.GetIndex()
	if err := os.Rename(incomingPath(s.Dir, term, index), StatePath(s.Dir, term, index)); err != nil {
		return fmt.Errorf("received snapshot: %w", err)
	}
	if err := durable.SyncDir(s.snapDir()); err != nil {
		return err
	}
	hard, entries := s.merge([]*raftpb.Message{m})
	if raft.IsEmptyHardState(hard) {
		hard = s.Hard
	}
	if err := s.Mark.Lower(index); err != nil {
		return err // it may cover entries that conflict with the snapshot, and go
	}
	if err := s.record(hard, index, term, meta.GetConfState()); err != nil {
		return err
	}
	if err := s.Mem.ApplySnapshot(m.GetSnapshot()); err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	s.Tail.weight = 0
	if err := s.announce(index, term, meta.GetConfState()); err != nil {
		return err
	}
	s.Snapshots.Installed.Add(1)
	s.Last = index
	s.saved(hard, nil)
	if len(entries) > 0 {
		if err := s.save([]*raftpb.Message{m}); err != nil {
			return err
		}
	}
	return s.release(index)
}

// record writes a snapshot into the WAL, with term and vote as in hard. Durable
// on return. The commit index stays behind: a hard state that commits the
// snapshot, without the record that a crash may have torn off, would look like
// a log that has lost its end. The loader raises it to the snapshot's index.
func (s *Storage) record(hard *raftpb.HardState, index, term uint64, cs *raftpb.ConfState) error {
	before := &raftpb.HardState{Term: new(hard.GetTerm()), Vote: new(hard.GetVote()), Commit: new(s.Hard.GetCommit())}
	if err := s.saveWAL(before, nil); err != nil {
		return err
	}
	if err := s.Wal.SaveSnapshot(&walpb.Snapshot{Index: new(index), Term: new(term), ConfState: cs}); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	s.Room.Saved(walroom.SnapRecord)
	// Another one: the WAL keeps what it is given, for the head of its next segment.
	s.Hard = &raftpb.HardState{Term: before.Term, Vote: before.Vote, Commit: new(max(hard.GetCommit(), index))}
	s.SnapIndex.Store(index)
	return nil
}

// Written is called when the state file of a snapshot of this node's own is
// complete: it records the snapshot, and drops what it makes superfluous.
func (s *Storage) Written(st *state.State) error {
	if at := s.SnapIndex.Load(); st.Index < at {
		return s.Snaps.Discard(stateName(st.Term, st.Index)) // overtaken by one from the leader
	} else if st.Index == at {
		return nil
	}
	cs := st.Membership.ConfState()
	if !s.Room.Admits(walroom.StateRecord+walroom.SnapRecord, false) {
		time.AfterFunc(s.Trouble.Failed(fmt.Errorf("recording it: %w", walroom.ErrNoRoom), st.Index), s.Redo)
		return s.Snaps.Discard(stateName(st.Term, st.Index))
	}
	if err := s.record(s.Hard, st.Index, st.Term, cs); err != nil {
		return err
	}
	if err := s.announce(st.Index, st.Term, cs); err != nil {
		return err
	}
	s.Trouble.Succeeded()
	s.Snapshots.Written.Add(1)
	s.log.Info("snapshot written", logging.News, zap.Uint64("index", st.Index), zap.Uint64("term", st.Term), zap.Int64("bytes", s.Tail.snapshot),
		zap.Duration("took", time.Duration(s.Snapshots.Took.Load())))
	return s.release(st.Index)
}

// announce makes a recorded snapshot the one that followers get.
func (s *Storage) announce(index, term uint64, cs *raftpb.ConfState) error {
	info, err := os.Stat(StatePath(s.Dir, term, index))
	if err != nil {
		return err
	}
	s.Tail.snapshot = info.Size()
	s.Snapshots.Newest(info)
	s.Newest.Store(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: cs}})
	s.Recorded.Advance(index)
	return nil
}

// release lets go of the segments of the log that the snapshot of index makes
// superfluous.
func (s *Storage) release(index uint64) error {
	if err := s.Wal.ReleaseLockTo(index); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	return nil
}

// clean removes files that nothing needs once the snapshot of index counts.
// What is on its way in, or being written, its maker removes if need be; and what
// somebody still reads stays until it is called again (disposal.Files.More). The
// persist loop does not wait for it: it takes a while to free a large file.
func (s *Storage) clean(ctx context.Context, index uint64) error {
	if err := walfile.RemoveSegments(filepath.Join(s.Dir, "wal"), index); err != nil {
		return err
	}
	err := s.eachSnap(func(name string) error {
		if at, kind := parseSnapName(name); kind == ".state" && at < index || kind == ".incoming" && at <= index {
			return s.Snaps.Discard(name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.Snaps.Free(ctx)
}

// sweep is clean at the start, when nothing is on its way, and nothing waits for
// the disk: all that a crash left half-done goes.
func (s *Storage) sweep(newest *raftpb.Snapshot) error {
	index, term := newest.GetMetadata().GetIndex(), newest.GetMetadata().GetTerm()
	if err := errors.Join(watermark.RemoveTemps(s.Dir), walfile.RemoveSegments(filepath.Join(s.Dir, "wal"), index)); err != nil {
		return err
	}
	return s.eachSnap(func(name string) error {
		if name == stateName(term, index) {
			return nil
		}
		return os.Remove(filepath.Join(s.snapDir(), name))
	})
}

// eachSnap calls a function for the name of each file in snap/.
func (s *Storage) eachSnap(visit func(name string) error) error {
	files, err := os.ReadDir(s.snapDir())
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := visit(f.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// parseSnapName returns the index that a file in snap/ is of, and its ending.
func parseSnapName(name string) (index uint64, kind string) {
	var term uint64
	if _, err := fmt.Sscanf(name, "%016x-%016x", &term, &index); err != nil {
		return 0, ""
	}
	return index, filepath.Ext(name)
}

// Watch looks at the data directory until ctx ends.
func (s *Storage) Watch(ctx context.Context) error { return s.newWatch().Run(ctx) }

func (s *Storage) newWatch() *dirwatch.Watch {
	return dirwatch.New(dirwatch.Config{Dir: s.Dir, Released: s.SnapIndex.Load, Newest: func() string {
		meta := s.Newest.Load().GetMetadata()
		if meta.GetIndex() == 0 {
			return ""
		}
		return StatePath(s.Dir, meta.GetTerm(), meta.GetIndex())
	}})
}

// Close flushes and closes the log.
func (s *Storage) Close() error {
	s.Zeros.Close()
	return errors.Join(s.Room.Close(s.Wal.Close), s.Mark.Close())
}

func (s *Storage) snapDir() string { return filepath.Join(s.Dir, "snap") }

// StatePath returns the path, in data directory dir, of the state file of a snapshot.
func StatePath(dir string, term, index uint64) string {
	return filepath.Join(dir, "snap", stateName(term, index))
}

func stateName(term, index uint64) string { return fmt.Sprintf("%016x-%016x.state", term, index) }

// OpenState opens the state file of a snapshot for reading. Until it is closed it
// stays as it is, though a newer one may count.
func (s *Storage) OpenState(term, index uint64) (*disposal.File, error) {
	return s.Snaps.Open(stateName(term, index))
}

func incomingPath(dir string, term, index uint64) string {
	return strings.TrimSuffix(StatePath(dir, term, index), ".state") + ".incoming"
}

// slowSyncAfter is how long the log may take to be written and synced before an
// operator should hear of it. Nothing is acknowledged sooner, and past the
// election timeout leaders are lost to it.
const slowSyncAfter = 100 * time.Millisecond

// noteSync says that a sync of the log, which began then, was slow.
func (s *Storage) noteSync(began time.Time) {
	if took := time.Since(began); took > slowSyncAfter {
		s.log.Warn("slow sync of the log: the disk is slow, or busy", zap.Duration("took", took))
	}
}

// AwaitRoom returns when the disk has room for storage messages. Until then this
// node is like one with a slow disk: what nobody has written, nobody has
// acknowledged. Refusing writes early (package room) makes it rare. It is called on the
// persist loop, and takes over from it what may make room: it looks again each
// tick, and when a snapshot has been written.
func (s *Storage) AwaitRoom(ctx context.Context, msgs []*raftpb.Message, tick time.Duration, written <-chan *state.State) error {
	room := s.Room
	size, entries := walroom.SizeOf(msgs)
	if room.Admits(size, entries) {
		return nil
	}
	s.log.Error("the disk has no room for the log: this node takes nothing more until there is some", zap.Int64("bytes", size))
	room.Waiting.Store(true)
	defer room.Waiting.Store(false)
	again := time.NewTicker(tick)
	defer again.Stop()
	for {
		select {
		case st := <-written:
			if err := s.Written(st); err != nil {
				return fmt.Errorf("cannot store: %w", err)
			}
		case <-again.C:
			room.Tend()
		case <-ctx.Done():
			// What is behind it in the queue must not be written without it.
			return fmt.Errorf("stopped while it waited: %w; free some before the next start", walroom.ErrNoRoom)
		}
		if room.Admits(size, entries) {
			s.log.Info("the disk has room for the log again")
			return nil
		}
	}
}
