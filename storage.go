package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// write puts a hard state and entries into the WAL. Entries that overwrite a
// longer log need a cut behind them: at the next start the WAL skips those up
// to the snapshot without looking, and what they had overwritten would be
// there again.
func (s *storage) write(hard *raftpb.HardState, entries []*raftpb.Entry) error {
	if len(entries) > 0 {
		lowest, highest := entries[0].GetIndex(), s.last
		for _, e := range entries {
			lowest, highest = min(lowest, e.GetIndex()), max(highest, e.GetIndex())
		}
		if err := s.mark.lower(lowest - 1); err != nil {
			return err
		}
		if last := lastIndex(entries); last < highest {
			entries = append(entries[:len(entries):len(entries)], cutBehind(last))
		}
	}
	if err := s.wal.Save(hard, entries); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	return nil
}

// cutBehind is an entry that takes what the WAL holds behind index out of the
// log. The WAL has no such operation, but each entry overwrites what is at and
// behind its index. Its term is 0, which raft's entries never have; the loader
// drops it (withoutCut), unless a later entry has replaced it.
func cutBehind(index uint64) *raftpb.Entry {
	return &raftpb.Entry{Index: new(index + 1), Term: new(uint64(0)), Type: raftpb.EntryNormal.Enum()}
}

// withoutCut drops a cut at the end of the log.
func withoutCut(entries []*raftpb.Entry) []*raftpb.Entry {
	if n := len(entries); n > 0 && entries[n-1].GetTerm() == 0 {
		return entries[:n-1]
	}
	return entries
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
	if err := s.cutTail(index); err != nil {
		return err
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

// cutTail takes entries behind index out of the log, before a snapshot of
// that index is recorded. raft installs a snapshot only over a log that
// conflicts with it (else it would just commit), so these entries are certainly
// not committed; left in the log, they would follow the snapshot after a
// restart, as if they had ever done so.
func (s *storage) cutTail(index uint64) error {
	if s.last <= index {
		return nil
	}
	if err := s.mark.lower(index); err != nil {
		return err
	}
	if err := s.wal.Save(s.hard, []*raftpb.Entry{cutBehind(index)}); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	return nil
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

// writeSnapshots writes states to disk as they come, one at a time, and
// passes each on when its file is complete.
func (s *storage) writeSnapshots(ctx context.Context, states <-chan *state, writtenC chan<- *state) error {
	for {
		select {
		case st := <-states:
			err := writeFileAtomic(statePath(s.dir, st.term, st.index), func(w io.Writer) error {
				return writeState(&contextWriter{ctx, w}, st)
			})
			if ctx.Err() != nil {
				return nil // stopping: the half-written file is gone again
			}
			if err != nil {
				return fmt.Errorf("writing a snapshot: %w", err)
			}
			select {
			case writtenC <- st:
			case <-ctx.Done():
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// contextWriter fails once its context has ended.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c *contextWriter) Write(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(b)
}

// receiveSnapshot takes the state out of an incoming snapshot message and puts
// it into a verified file, so that raft never sees a snapshot that this node
// could not load. This, and sendSnapshot in peers.go, is where the way of
// snapshots between nodes is known.
func receiveSnapshot(dir string, m *raftpb.Message) error {
	snap := m.GetSnapshot()
	term, index := snap.GetMetadata().GetTerm(), snap.GetMetadata().GetIndex()
	// A name of its own until it is verified: the same snapshot may arrive
	// twice, and a bad copy must not replace a good one.
	f, err := os.CreateTemp(filepath.Join(dir, "snap"), fmt.Sprintf("%016x-%016x.tmp*", term, index))
	if err != nil {
		return err
	}
	err = errors.Join(writeAndSync(f, snap.GetData()), verifyState(f.Name(), term, index))
	if err == nil {
		err = os.Rename(f.Name(), incomingPath(dir, term, index))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	snap.Data = nil
	return syncDir(filepath.Join(dir, "snap"))
}

func writeAndSync(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func verifyState(path string, term, index uint64) error {
	st, err := readStateFile(path)
	if err != nil {
		return err
	}
	if st.index != index || st.term != term {
		return fmt.Errorf("state of term %d and index %d came as that of term %d and index %d", st.term, st.index, term, index)
	}
	return nil
}
