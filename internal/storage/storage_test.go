package storage

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"raftkv/internal/membership"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/walfile"
	"strings"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// Without this an append could be answered before it is in a file: what was
// acknowledged would be gone after a kill.
func TestStorageAppendSurvivesCrash(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	entries := testkit.Entries(4, 2, 9, 100)
	testkit.Must(t, o.Append([]*raftpb.Message{
		testkit.AppendMessage(4, 2, 1, entries[:3]...),
		testkit.AppendMessage(0, 0, 0, entries[3:5]...),
		testkit.AppendMessage(4, 2, 3),
		testkit.AppendMessage(4, 2, 4, entries[5:]...),
	}))
	o = openDisk(t, testkit.Crashed(t, dir))
	wantEntries(t, o, entries)
	wantHard(t, o, 4, 2, 4)
	wantState(t, o, state.FirstIndex)

	// A vote alone: without it a node could vote twice in a term.
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(5, 3, 4)}))
	wantHard(t, openDisk(t, testkit.Crashed(t, o.Dir)), 5, 3, 0)
}

// Without this a state file that no record names would count (raft and the
// state at different indexes), or stay for ever.
func TestStorageCrashBetweenStateFileAndRecord(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	entries := testkit.Entries(2, 2, 20, 100)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 20, entries...)}))
	writeSomeState(t, dir, someState(t, 2, 15))
	crash := testkit.Crashed(t, dir)
	o = openDisk(t, crash)
	wantState(t, o, state.FirstIndex)
	wantEntries(t, o, entries)
	wantOnlyFirstSnapshot(t, crash)
	// The next one is none the worse for it.
	takeSnapshot(t, o, someState(t, 2, 15))
	o = openDisk(t, testkit.Crashed(t, crash))
	wantState(t, o, 15)
	wantEntries(t, o, entries[14:])
}

func wantOnlyFirstSnapshot(t *testing.T, dir string) {
	t.Helper()
	for _, name := range testkit.SnapFiles(t, dir) {
		if name != filepath.Base(StatePath(dir, state.FirstTerm, state.FirstIndex)) {
			t.Errorf("%s is left over", name)
		}
	}
}

// Without this each crash while a snapshot is written or received leaves a file
// as large as the state, under a new name: they fill the disk.
func TestStorageLeftoversAreRemovedAtStart(t *testing.T) {
	dir := newDisk(t)
	for _, path := range []string{
		StatePath(dir, 1, 1) + ".tmp1", StatePath(dir, 2, 50) + ".tmp1", StatePath(dir, 2, 50) + ".tmp2",
		StatePath(dir, 2, 60), incomingPath(dir, 1, 1), incomingPath(dir, 2, 70),
		strings.TrimSuffix(incomingPath(dir, 2, 80), ".incoming") + ".tmp3",
	} {
		testkit.Must(t, os.WriteFile(path, []byte("half"), 0o600))
	}
	wantState(t, openDisk(t, dir), state.FirstIndex)
	wantOnlyFirstSnapshot(t, dir)
}

// Without this the WAL would go on in a half-made segment of an earlier life,
// which it does not empty: what is left in it looks like damage to the next
// start.
func TestStorageHalfMadeSegmentIsRemoved(t *testing.T) {
	dir := newDisk(t)
	for _, name := range []string{"0.tmp", "1.tmp"} {
		testkit.Must(t, os.WriteFile(filepath.Join(dir, "wal", name), bytes.Repeat([]byte{0xa5}, 2<<20), 0o600))
	}
	o := openDisk(t, dir)
	var entries []*raftpb.Entry
	for i := uint64(2); len(testkit.Segments(t, dir)) < 3; i++ {
		e := testkit.Entries(2, i, i, 600<<10)
		testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 1, e...)}))
		entries = append(entries, e...)
		wantEntries(t, openDisk(t, testkit.Crashed(t, dir)), entries)
	}
}

// Without this a crash after a snapshot is recorded, before or while the files
// that it replaces are removed, leaves a directory that does not start, or
// files that stay.
func TestStorageCrashDuringRemoval(t *testing.T) {
	t.Parallel()
	dir := newDisk(t)
	o := openDisk(t, dir)
	takeSnapshotAfter(t, o, 2, 2, 3, 400<<10) // to have an older state file than the first
	entries := testkit.Entries(3, 4, 14, 400<<10)
	for _, e := range entries {
		testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 3, e)}))
	}
	writeSomeState(t, dir, someState(t, 3, 12))
	old := testkit.Segments(t, dir)
	testkit.Must(t, o.record(o.Hard, 12, 3, membership.New(diskPeers()).ConfState()))
	recorded := testkit.Crashed(t, dir)
	testkit.Must(t, walfile.RemoveSegments(filepath.Join(dir, "wal"), 12))
	keep := len(testkit.Segments(t, dir))
	if len(old) < 4 || keep == len(old) {
		t.Fatalf("only %d segments, and %d after removal", len(old), keep)
	}
	for removed := 0; removed <= len(old)-keep; removed++ {
		crash := testkit.Crashed(t, recorded)
		for _, path := range old[:removed] {
			testkit.Must(t, os.Remove(filepath.Join(crash, "wal", filepath.Base(path))))
		}
		o := openDisk(t, crash)
		wantState(t, o, 12)
		wantEntries(t, o, entries[9:])
		wantHard(t, o, 3, 2, 12)
		if n := len(testkit.Segments(t, crash)); n != keep {
			t.Errorf("%d segments are left, %d are needed", n, keep)
		}
		if files := testkit.SnapFiles(t, crash); len(files) != 1 {
			t.Errorf("in snap/: %v", files)
		}
	}
}

// takeSnapshotAfter appends entries, commits them, and takes a snapshot.
func takeSnapshotAfter(t *testing.T, o *Opened, term, from, to uint64, size int) {
	t.Helper()
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(term, 0, to, testkit.Entries(term, from, to, size)...)}))
	takeSnapshot(t, o, someState(t, term, to))
}

// Without this a follower that has acknowledged a snapshot and is killed comes
// back without it, and cannot start: the leader speaks of entries that it
// never had (raftexample, and etcd-io/raft 174). The new hard state differs in
// commit only, which alone the WAL would not even write.
func TestStorageInstalledSnapshotSurvivesCrash(t *testing.T) {
	for name, behind := range map[string][]*raftpb.Entry{"alone": nil, "with entries": testkit.Entries(4, 101, 103, 100)} {
		t.Run(name, func(t *testing.T) {
			dir := newDisk(t)
			o := openDisk(t, dir)
			testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(4, 2, 1, testkit.Entries(4, 2, 5, 10)...)}))
			testkit.Must(t, o.Append([]*raftpb.Message{received(t, o.Storage, someState(t, 4, 100), 4, 2, behind...)}))
			live, err := o.Mem.Snapshot()
			testkit.Must(t, err)
			if live.GetMetadata().GetIndex() != 100 || o.SnapIndex.Load() != 100 {
				t.Fatalf("raft has the snapshot %d", live.GetMetadata().GetIndex())
			}
			again := openDisk(t, testkit.Crashed(t, dir))
			wantState(t, again, 100)
			wantHard(t, again, 4, 2, 100)
			if behind != nil {
				wantEntries(t, again, behind)
			} else if again.Last != 100 {
				t.Fatalf("the log ends at %d", again.Last)
			}
			if files := testkit.SnapFiles(t, again.Dir); len(files) != 1 {
				t.Errorf("in snap/: %v", files)
			}
			// The log goes on behind it.
			next := testkit.Entries(5, again.Last+1, again.Last+2, 10)
			testkit.Must(t, again.Append([]*raftpb.Message{testkit.AppendMessage(5, 3, 100, next...)}))
			wantEntries(t, openDisk(t, testkit.Crashed(t, again.Dir)), next)
		})
	}
}

// Without this a node that joins would lose its first snapshot, and with it
// everything it was told.
func TestStorageJoiningNodeInstallsSnapshot(t *testing.T) {
	dir := t.TempDir()
	testkit.Must(t, Create(zap.NewNop(), dir, diskIdentity(), state.First(nil)))
	o := openDisk(t, dir)
	// Everything in one run: the batch before, the snapshot, the batch after.
	behind := testkit.Entries(7, 501, 503, 10)
	testkit.Must(t, o.Append([]*raftpb.Message{
		testkit.AppendMessage(7, 0, 0), received(t, o.Storage, someState(t, 7, 500), 0, 0), testkit.AppendMessage(7, 0, 501, behind...),
	}))
	o = openDisk(t, testkit.Crashed(t, dir))
	wantState(t, o, 500)
	wantHard(t, o, 7, 0, 501)
	wantEntries(t, o, behind)
}

// Without this the mark vouches for nothing of an acknowledged snapshot: damage
// to its record would look like a torn write, and the node would start from
// before it.
func TestStorageMarkCoversInstalledSnapshot(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{received(t, o.Storage, someState(t, 4, 100), 4, 2)}))
	flushMark(t, o)
	if m := markOf(t, dir); m.Index != 100 || m.Term != 4 || m.Vote != 2 {
		t.Errorf("the mark is %+v", m)
	}
}

// Without this a crash right behind a snapshot's record, before a hard state
// that commits it, would cost the snapshot, which was acknowledged if it came
// from the leader; or raft would panic on a log that begins behind what is
// committed.
func TestStorageSnapshotBeyondCommitCounts(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	entries := testkit.Entries(2, 2, 20, 10)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 8, entries...)}))
	writeSomeState(t, dir, someState(t, 2, 15))
	testkit.Must(t, o.Wal.SaveSnapshot(&walpb.Snapshot{
		Index: new(uint64(15)), Term: new(uint64(2)), ConfState: membership.New(diskPeers()).ConfState(),
	}))
	o = openDisk(t, testkit.Crashed(t, dir))
	wantState(t, o, 15)
	wantEntries(t, o, entries[14:])
	wantHard(t, o, 2, 1, 15)
}

// Without this a snapshot of this node's own that was overtaken by one from the
// leader would set the log back.
func TestStorageOvertakenSnapshot(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 10, testkit.Entries(2, 2, 10, 10)...)}))
	writeSomeState(t, dir, someState(t, 2, 10))
	testkit.Must(t, o.Append([]*raftpb.Message{received(t, o.Storage, someState(t, 2, 40), 2, 1)}))
	testkit.Must(t, o.Written(someState(t, 2, 10)))
	if o.SnapIndex.Load() != 40 {
		t.Errorf("the snapshot that counts is %d", o.SnapIndex.Load())
	}
	wantState(t, openDisk(t, testkit.Crashed(t, dir)), 40)
}

// Without this entries of a former leader come back after a new one has
// overwritten them, or the mark takes the shorter log for a damaged one.
func TestStorageOverwrittenLog(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	old := testkit.Entries(2, 2, 20, 100)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 5, old...)}))
	flushMark(t, o)
	if m := markOf(t, dir); m.Index != 20 || m.Term != 2 || m.Vote != 1 {
		t.Fatalf("the mark is %+v", m)
	}
	// A crash between the two writes: the mark is lower, the log is as it was.
	between := testkit.Crashed(t, dir)
	m := openDisk(t, between)
	testkit.Must(t, m.Mark.Lower(9))
	if got := markOf(t, between).Index; got != 9 {
		t.Fatalf("lowered to %d", got)
	}
	wantEntries(t, openDisk(t, testkit.Crashed(t, between)), old)

	shorter := testkit.Entries(3, 10, 12, 100)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 5, shorter...)}))
	if got := markOf(t, dir).Index; got > 9 {
		t.Errorf("the mark still says %d", got)
	}
	crash := testkit.Crashed(t, dir)
	flushMark(t, o)
	for _, dir := range []string{crash, testkit.Crashed(t, dir)} {
		again := openDisk(t, dir)
		wantEntries(t, again, append(old[:8:8], shorter...))
		wantHard(t, again, 3, 2, 5)
	}
}

// Without this the mark stays above the log when appends of two leaders wait
// for one fsync, the later one shorter: the next start is refused as damage,
// though nothing is lost.
func TestStorageOverwrittenLogInOneRun(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	old := testkit.Entries(2, 2, 20, 10)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 5, old...)}))
	flushMark(t, o)
	shorter := testkit.Entries(3, 10, 12, 10)
	testkit.Must(t, o.Append([]*raftpb.Message{
		testkit.AppendMessage(0, 0, 0, testkit.Entries(2, 21, 22, 10)...),
		testkit.AppendMessage(3, 2, 5, shorter...),
	}))
	wantEntries(t, o, append(old[:8:8], shorter...))
	if m := markOf(t, dir); m.Index > 12 {
		t.Errorf("the log ends at 12, but the mark says %d", m.Index)
	}
	wantEntries(t, openDisk(t, testkit.Crashed(t, dir)), append(old[:8:8], shorter...))
}

// Without this entries that a new leader overwrote come back when the snapshot
// is of the last entry: wal.ReadAll does not look at entries up to the snapshot,
// so not at those that did the overwriting. This node would seem to have a log
// that ends in an old term, and vote for a candidate that lacks what it
// acknowledged: with its vote, committed entries are lost.
func TestStorageOverwrittenLogBehindSnapshot(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 5, testkit.Entries(2, 2, 40, 10)...)}))
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 20, testkit.Entries(3, 10, 20, 10)...)}))
	takeSnapshot(t, o, someState(t, 3, 20))
	if o.Last != 20 {
		t.Fatalf("the log ends at %d", o.Last)
	}
	o = openDisk(t, testkit.Crashed(t, dir))
	wantState(t, o, 20)
	term, err := o.Mem.Term(o.Last)
	testkit.Must(t, err)
	if o.Last != 20 || term != 3 {
		t.Errorf("the log ends at %d in term %d, but %d in term 3 was acknowledged", o.Last, term, 20)
	}
}

// Without this a snapshot in place of a log that conflicts with it could bring
// the conflicting entries back behind newer ones.
func TestStorageSnapshotReplacesConflictingLog(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 5, testkit.Entries(2, 2, 40, 10)...)}))
	flushMark(t, o)
	testkit.Must(t, o.Append([]*raftpb.Message{received(t, o.Storage, someState(t, 4, 30), 4, 2)}))
	if last, err := o.Mem.LastIndex(); err != nil || last != 30 {
		t.Fatalf("raft's log ends at %d: %v", last, err)
	}
	o = openDisk(t, testkit.Crashed(t, dir)) // the mark of before must not refuse it
	wantState(t, o, 30)
	if o.Last != 30 {
		t.Errorf("the log ends at %d", o.Last)
	}
	next := testkit.Entries(4, 31, 32, 10)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(4, 2, 30, next...)}))
	wantEntries(t, openDisk(t, testkit.Crashed(t, o.Dir)), next)
}

// Without this a node's disk fills up, or, once the segments of the life that
// wrote them are gone, its term and vote are forgotten and it may vote twice.
func TestStorageRotation(t *testing.T) {
	t.Parallel()
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(7, 3, 1, testkit.Entries(7, 2, 3, 10)...)}))
	dir = testkit.Crashed(t, dir)
	first := filepath.Base(testkit.Segments(t, dir)[0])
	o = openDisk(t, dir)
	last := uint64(3)
	for round := range 6 {
		for range 6 { // 1.5 MB, without a hard state
			testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(0, 0, 0, testkit.Entries(7, last+1, last+4, 64<<10)...)}))
			last += 4
		}
		takeSnapshot(t, o, someState(t, 7, last-1))
		if size := diskSize(t, dir); size > 5*wal.SegmentSizeBytes {
			t.Fatalf("round %d: %d bytes on disk", round, size)
		}
		if files := testkit.SnapFiles(t, dir); len(files) != 1 {
			t.Fatalf("in snap/: %v", files)
		}
	}
	if filepath.Base(testkit.Segments(t, dir)[0]) == first {
		t.Fatal("the segment of the former life is still there")
	}
	o = openDisk(t, testkit.Crashed(t, dir))
	wantHard(t, o, 7, 3, last-1)
	wantState(t, o, last-1)
	wantEntries(t, o, testkit.Entries(7, last, last, 64<<10))
	if o.Identity != diskIdentity() {
		t.Errorf("identity %+v", o.Identity)
	}
}

// Without this a segment that is cut before any snapshot lacks the hard state
// that an earlier life wrote: the WAL repeats only what it saved itself.
func TestStorageNewSegmentRepeatsHardState(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(7, 3, 1)}))
	dir = testkit.Crashed(t, dir)
	o = openDisk(t, dir)
	for i := uint64(2); len(testkit.Segments(t, dir)) < 2; i++ {
		testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(0, 0, 0, testkit.Entries(7, i, i, 300<<10)...)}))
	}
	f, err := os.Open(testkit.Segments(t, dir)[1])
	testkit.Must(t, err)
	defer f.Close()
	d, rec, first := wal.NewDecoder(fileutil.NewFileReader(f)), &walpb.Record{}, &raftpb.HardState{}
	for rec.GetType() != wal.StateType {
		testkit.Must(t, d.Decode(rec))
		if rec.GetType() == wal.CrcType {
			d.UpdateCRC(rec.GetCrc())
		}
	}
	testkit.Must(t, proto.Unmarshal(rec.GetData(), first))
	if first.GetTerm() != 7 || first.GetVote() != 3 {
		t.Errorf("the new segment begins with the hard state %v", first)
	}
}

func diskSize(t *testing.T, dir string) int64 {
	t.Helper()
	var size int64
	testkit.Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		size += info.Size()
		return err
	}))
	return size
}
