package storage

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/state"
	"raftkv/internal/storage/disposal"
	"raftkv/internal/storage/snapshots"
	"raftkv/internal/storage/walroom"
	"raftkv/internal/wait"
	"raftkv/internal/walfile"
	"raftkv/internal/watermark"
	"syscall"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Opened is what Open found.
type Opened struct {
	*Storage
	Identity Identity
	State    *state.State // as of the last entry that was known to be committed
	Boot     uint64       // which life of this node begins now
	logFacts              // of the log behind the snapshot
	end      walfile.Tail
	proven   walfile.Place    // see walfile.Contents
	Due      snapshots.Policy // when the next snapshot is
	Worked   uint64           // the last entry applied that was more than a check
}

// Bounds are how much of the past a node keeps in memory, in bytes.
type Bounds struct {
	Tail    int64 // of the log; 0: TailWeight
	Changes int64 // of what entries changed in the state; 0: none
}

// Open opens the log of a data directory that Create made, and loads the newest snapshot. It
// repairs a torn tail and refuses other damage. check is asked whether the directory is the
// right one; reconfigured says whether members came or went since the first start. Until it
// has agreed, and all that can be seen by reading is in order, nothing is changed.
func Open(log *zap.Logger, dir string, within Bounds, check func(id Identity, reconfigured bool) error) (*Opened, error) {
	within.Tail = cmp.Or(within.Tail, TailWeight)
	keeper, m, err := watermark.Open(filepath.Join(dir, "mark"))
	if err != nil {
		return nil, Refused(dir, err)
	}
	o, err := inspect(log, dir, m, within, check)
	if err == nil {
		o.Mark = keeper
		err = o.open()
	}
	if err != nil {
		return nil, errors.Join(err, keeper.Close())
	}
	o.Boot = m.Boot + 1
	if err := errors.Join(o.begin(), o.sweep(o.Newest.Load())); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// inspect reads everything, judges it, and fills raft's view of it.
func inspect(log *zap.Logger, dir string, m watermark.Mark, within Bounds, check func(Identity, bool) error) (*Opened, error) {
	j, l, err := followLog(dir, m, within)
	if err != nil {
		j, l = loadLog(dir, m, within)
	}
	if len(j.Damage) > 0 {
		return nil, Refused(dir, j.Damage[0])
	}
	c, id := j.Log, *j.Identity
	if err := check(id, l.facts.Reconfigured); err != nil {
		return nil, err
	}
	s := &Storage{
		log: log, Dir: dir, Mem: raft.NewMemoryStorage(), Hard: c.Hard, Last: c.Last(), Recorded: new(wait.Index),
		Tail: logTail{Limit: within.Tail, scarce: within.Tail < TailWeight, weight: l.weight}, Trouble: snapshots.Trouble{Log: log, Disk: durable.DiskOf},
		Snaps: disposal.New(filepath.Join(dir, "snap")),
	}
	s.SnapIndex.Store(c.Snapshot.GetIndex())
	if err := errors.Join(s.noteSnapshot(c.Snapshot), l.fill(s.Mem, c.Hard)); err != nil {
		return nil, Refused(dir, err)
	}
	return &Opened{
		Storage: s, Identity: id, State: j.Snapshot, logFacts: l.facts, end: j.Tail, proven: c.Proven, Due: l.due, Worked: l.worked,
	}, nil
}

// loadLog reads the log twice: first to judge it, then for its entries.
func loadLog(dir string, m watermark.Mark, within Bounds) (*judgement, *logLoader) {
	j := judge(dir, &m, false)
	if len(j.Damage) > 0 {
		return j, nil
	}
	l := newLogLoader(j.Identity.Node, j.Snapshot, j.Log.Hard.GetCommit(), within)
	j.entries(l.take)
	l.replay.Flush()
	return j, l
}

// open opens the WAL for appending. A torn frame at the very end is wiped out:
// nothing that was synced lies there, as inspect has seen.
func (o *Opened) open() error {
	walDir := filepath.Join(o.Dir, "wal")
	// The WAL reuses half-made segments without emptying them, and what is
	// left in one would look like the remains of a torn write.
	if err := walfile.RemoveTemps(walDir); err != nil {
		return err
	}
	if o.end.NonZero {
		o.log.Warn("the log ends in a torn write, as a crash leaves it; wiping it out", zap.String("file", o.end.File))
		if err := durable.Wipe(o.end.File, o.end.End); err != nil {
			return fmt.Errorf("write-ahead log: %w", err)
		}
	}
	if err := walfile.Rewrite(walDir, o.proven, o.end.End); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	term, err := o.Mem.Term(o.Last)
	if err != nil {
		return err
	}
	// It reads its last segments once more, to find its end, and keeps the
	// entries behind the snapshot that it is given: so it is given the last
	// entry, and says that there is no snapshot of that.
	from := &walpb.Snapshot{Index: new(o.Last), Term: new(term)}
	w, room, err := openToEnd(o.log, walDir, from)
	if errors.Is(err, syscall.ENOSPC) {
		// It gave the blocks behind the log's end back, to have zeros there, and
		// others took them. There is nothing to give back a second time.
		w, room, err = openToEnd(o.log, walDir, from)
	}
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("data directory %s: write-ahead log: %w", o.Dir, err)
	}
	if err != nil {
		return Refused(o.Dir, fmt.Errorf("write-ahead log: %w", err))
	}
	room.Begin(o.end)
	o.Wal, o.Room, o.Zeros = w, room, walfile.NewZeroer(o.log, walDir, wal.SegmentSizeBytes)
	return nil
}

// openToEnd opens the WAL, and reads it only to get to its end: walfile.Read knows
// better what it holds.
func openToEnd(log *zap.Logger, walDir string, from *walpb.Snapshot) (*wal.WAL, *walroom.Room, error) {
	room, err := walroom.New(log, walDir, wal.SegmentSizeBytes, durable.DiskOf)
	if err != nil {
		return nil, nil, err
	}
	w, err := wal.Open(log.Named("wal"), walDir, from)
	if err != nil {
		return nil, nil, room.Close(func() error { return err })
	}
	if _, _, _, err := w.ReadAll(); err != nil && !errors.Is(err, wal.ErrSnapshotNotFound) {
		return nil, nil, errors.Join(err, room.Close(w.Close))
	}
	return w, room, nil
}

// begin makes durable what this life starts from.
func (o *Opened) begin() error {
	// After a crash of the process alone, the end of the log may be in the
	// page cache and not on the disk. From here on it counts as durable; and
	// walfile.InspectTail relies on nothing being written behind what is not.
	if err := o.Wal.Sync(); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	// The WAL repeats in each new segment the hard state that it last saved,
	// not the one that it read: without this, a segment cut early in this
	// life would leave term and vote only in segments that get removed.
	if err := o.saveWAL(o.Hard, nil); err != nil {
		return fmt.Errorf("data directory %s: %w", o.Dir, err)
	}
	if err := o.Wal.Sync(); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	o.unsynced = false
	return o.Mark.Start(watermark.Mark{Boot: o.Boot, Index: o.Last, Term: o.Hard.GetTerm(), Vote: o.Hard.GetVote()})
}

// noteSnapshot notes which snapshot counts.
func (s *Storage) noteSnapshot(r *walpb.Snapshot) error {
	if r.GetIndex() == 0 {
		return nil
	}
	info, err := os.Stat(StatePath(s.Dir, r.GetTerm(), r.GetIndex()))
	if err != nil {
		return err
	}
	s.Tail.snapshot = info.Size()
	s.Snapshots.Newest(info)
	s.Newest.Store(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(r.GetIndex()), Term: new(r.GetTerm()), ConfState: r.GetConfState(),
	}})
	return nil
}
