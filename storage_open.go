package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// openedStorage is what openStorage found.
type openedStorage struct {
	*storage
	identity identity
	state    *state // as of the snapshot that counts
	boot     uint64 // which life of this node begins now
	// reconfigured: the state or the log behind it has membership changes.
	reconfigured bool
}

// openStorage opens the log of a data directory that createStorage made, and
// loads the newest snapshot. It repairs a torn tail and refuses other damage.
func openStorage(log *zap.Logger, dir string) (*openedStorage, error) {
	keeper, m, err := openMarkKeeper(filepath.Join(dir, "mark"))
	if err != nil {
		return nil, damaged(dir, err)
	}
	o, err := openLog(log, dir, m)
	if err != nil {
		return nil, errors.Join(err, keeper.close())
	}
	o.mark = keeper
	o.boot = m.Boot + 1
	if err := o.begin(); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, o.sweep(o.snapIndex.Load(), o.state.term)
}

// begin makes durable what this life starts from.
func (o *openedStorage) begin() error {
	// After a crash of the process alone, the end of the log may be in the
	// page cache and not on the disk. From here on it counts as durable; and
	// inspectTail relies on nothing being written behind what is not.
	if err := o.wal.Sync(); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	// The WAL repeats in each new segment the hard state that it last saved,
	// not the one that it read: without this, a segment cut early in this
	// life would leave term and vote only in segments that get removed.
	if err := o.wal.Save(o.hard, nil); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	if err := o.wal.Sync(); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	return o.mark.start(mark{Boot: o.boot, Index: o.last, Term: o.hard.GetTerm(), Vote: o.hard.GetVote()})
}

// damaged explains an unusable directory and the way out.
func damaged(dir string, err error) error {
	return fmt.Errorf("data directory %s is damaged: %w; nothing was changed. "+
		"The way out: remove this member (curl -X DELETE http://ANOTHER-NODE/ID), "+
		"and join under a new ID with an empty directory", dir, err)
}

func openLog(log *zap.Logger, dir string, m mark) (*openedStorage, error) {
	walDir := filepath.Join(dir, "wal")
	tail, err := inspectTail(walDir)
	if err != nil {
		return nil, damaged(dir, err)
	}
	if tail.Damaged {
		return nil, damaged(dir, fmt.Errorf("%s: %s", tail.File, tail.Reason))
	}
	record, st, err := loadSnapshot(log, dir)
	if err != nil {
		return nil, damaged(dir, err)
	}
	w, meta, hard, entries, err := readLog(log, dir, record, m)
	if err != nil {
		return nil, err
	}
	s := &storage{
		log: log, dir: dir, wal: w, mem: raft.NewMemoryStorage(), hard: hard,
		last: max(record.GetIndex(), lastIndex(entries)), recorded: new(indexWait),
	}
	s.snapIndex.Store(record.GetIndex())
	id, err := decodeIdentity(meta)
	if err == nil {
		err = s.fillMemory(record, hard, entries)
	}
	if err != nil {
		return nil, errors.Join(damaged(dir, err), w.Close())
	}
	o := &openedStorage{storage: s, identity: id, state: st, reconfigured: st.membership.changes > 0}
	for _, e := range entries {
		o.reconfigured = o.reconfigured || e.GetType() != raftpb.EntryNormal
	}
	return o, nil
}

// loadSnapshot finds the snapshot that counts, the newest that the WAL records
// and its hard state commits, and loads its state. A node that joins and has
// not heard from the cluster yet has none.
func loadSnapshot(log *zap.Logger, dir string) (*walpb.Snapshot, *state, error) {
	records, err := wal.ValidSnapshotEntries(log, filepath.Join(dir, "wal"))
	if err != nil {
		return nil, nil, fmt.Errorf("write-ahead log: %w", err)
	}
	newest := &walpb.Snapshot{}
	for _, r := range records {
		if r.GetIndex() >= newest.GetIndex() {
			newest = r
		}
	}
	if newest.GetIndex() == 0 {
		return newest, newState(nil), nil
	}
	path := statePath(dir, newest.GetTerm(), newest.GetIndex())
	st, err := readStateFile(path)
	if err != nil {
		return nil, nil, err
	}
	if st.index != newest.GetIndex() || st.term != newest.GetTerm() {
		return nil, nil, fmt.Errorf("state file %s holds another state, of term %d and index %d", path, st.term, st.index)
	}
	return newest, st, nil
}

// readLog reads everything behind the snapshot. A torn frame at the very end
// is cut off, once: nothing that was synced lies behind it, as inspectTail has
// seen and the mark confirms before anything is touched.
func readLog(log *zap.Logger, dir string, from *walpb.Snapshot, m mark) (*wal.WAL, []byte, *raftpb.HardState, []*raftpb.Entry, error) {
	walDir := filepath.Join(dir, "wal")
	if err := checkReach(log, walDir, from, m); err != nil {
		return nil, nil, nil, nil, damaged(dir, err)
	}
	// The WAL reuses half-made segments without emptying them, and what is
	// left in one would look like the remains of a torn write.
	if err := removeTemps(walDir); err != nil {
		return nil, nil, nil, nil, err
	}
	for repaired := false; ; repaired = true {
		w, err := wal.Open(log, walDir, from)
		if err != nil {
			return nil, nil, nil, nil, damaged(dir, fmt.Errorf("write-ahead log: %w", err))
		}
		meta, hard, entries, err := w.ReadAll()
		if err == nil {
			return w, meta, hard, withoutCut(entries), nil
		}
		cerr := w.Close()
		if !errors.Is(err, io.ErrUnexpectedEOF) || repaired || cerr != nil {
			return nil, nil, nil, nil, damaged(dir, fmt.Errorf("write-ahead log: %w", errors.Join(err, cerr)))
		}
		log.Warn("the log ends in a torn write, from a crash; cutting it off: nobody was told of it")
		if !wal.Repair(log, walDir) {
			return nil, nil, nil, nil, damaged(dir, errors.New("the torn end of the write-ahead log could not be cut off"))
		}
	}
}

func removeTemps(walDir string) error {
	names, err := fileutil.ReadDir(walDir, fileutil.WithExt(".tmp"))
	for _, name := range names {
		err = errors.Join(err, os.Remove(filepath.Join(walDir, name)))
	}
	return err
}

// checkReach reads the log without touching it and compares it with the mark.
func checkReach(log *zap.Logger, walDir string, from *walpb.Snapshot, m mark) error {
	w, err := wal.OpenForRead(log, walDir, from)
	if err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	_, hard, entries, err := w.ReadAll()
	if err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	last := max(from.GetIndex(), lastIndex(withoutCut(entries)))
	switch {
	case last < m.Index:
		return fmt.Errorf("%s ends at entry %d, but entry %d was synced to it: its end is missing", walDir, last, m.Index)
	case hard.GetTerm() < m.Term:
		return fmt.Errorf("%s ends in term %d, but term %d was synced to it: its end is missing", walDir, hard.GetTerm(), m.Term)
	case hard.GetTerm() == m.Term && m.Vote != 0 && hard.GetVote() != m.Vote:
		return fmt.Errorf("%s has lost a vote that was synced to it: its end is missing", walDir)
	case hard.GetCommit() > last:
		return fmt.Errorf("%s ends at entry %d, but says that entry %d is committed", walDir, last, hard.GetCommit())
	}
	return nil
}

// withoutCut drops a cut at the end of the log.
func withoutCut(entries []*raftpb.Entry) []*raftpb.Entry {
	if n := len(entries); n > 0 && entries[n-1].GetTerm() == 0 {
		return entries[:n-1]
	}
	return entries
}

func lastIndex(entries []*raftpb.Entry) uint64 {
	if len(entries) == 0 {
		return 0
	}
	return entries[len(entries)-1].GetIndex()
}

// fillMemory gives raft its view of the log.
func (s *storage) fillMemory(record *walpb.Snapshot, hard *raftpb.HardState, entries []*raftpb.Entry) error {
	if record.GetIndex() > 0 {
		if err := s.mem.ApplySnapshot(raftSnapshot(record)); err != nil {
			return err
		}
	}
	if err := s.mem.SetHardState(hard); err != nil {
		return err
	}
	return s.mem.Append(entries)
}

// raftSnapshot is a snapshot as raft keeps it: where it is, without the data.
func raftSnapshot(r *walpb.Snapshot) *raftpb.Snapshot {
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(r.GetIndex()), Term: new(r.GetTerm()), ConfState: r.GetConfState(),
	}}
}
