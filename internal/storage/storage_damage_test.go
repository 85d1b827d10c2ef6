package storage

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/walfile"
	"raftkv/internal/watermark"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// Without this a power failure during a write leaves a node that never starts
// again (raftexample), or one that lost more than that write.
func TestStorageTornTailIsRepaired(t *testing.T) {
	t.Parallel()
	dir := newDisk(t)
	o := openDisk(t, dir)
	synced := testkit.Entries(2, 2, 9, 700)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 3, 5, synced...)}))
	flushMark(t, o)
	walDir := filepath.Join(dir, "wal")
	from := inspectPath(t, walDir).End
	torn := testkit.Entries(2, 10, 11, 700)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 3, 6, torn...)}))
	to := inspectPath(t, walDir).End
	all := append(synced[:8:8], torn...)

	for cut := from; cut < to; cut += 1 + (to-from)/7 {
		for _, how := range []string{"cut off", "zeroed"} {
			t.Run(fmt.Sprintf("%s at %d", how, cut), func(t *testing.T) {
				crash := testkit.Crashed(t, dir)
				path := testkit.Segments(t, crash)[0]
				if how == "cut off" {
					testkit.Must(t, os.Truncate(path, cut))
				} else {
					at := (cut + walfile.Sector - 1) / walfile.Sector * walfile.Sector
					testkit.Patch(t, path, at, make([]byte, to-at+walfile.Sector))
				}
				tail := inspectPath(t, filepath.Join(crash, "wal"))
				core, logs := observer.New(zap.WarnLevel)
				o, err := Open(zap.New(core), crash, Bounds{}, anyIdentity)
				testkit.Must(t, err)
				defer o.Close()
				wantOneSnapshot(t, o)
				if o.Last < 9 || o.Last > 11 {
					t.Fatalf("the log ends at %d", o.Last)
				}
				wantEntries(t, o, all[:o.Last-1])
				wantHard(t, o, 2, 3, 5)
				if n := logs.FilterMessageSnippet("torn").Len(); tail.NonZero && n != 1 {
					t.Errorf("%d lines in the log about it", n)
				}
				// Life goes on over the tear.
				next := testkit.Entries(3, 10, 12, 300)
				testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 1, 6, next...)}))
				again := openDisk(t, testkit.Crashed(t, crash))
				wantEntries(t, again, append(synced[:8:8], next...))
				wantHard(t, again, 3, 1, 0)
			})
		}
	}
}

// soundDisk is a closed directory with a log of three segments, all of which
// are needed, and a mark that covers it.
func soundDisk(t *testing.T) string {
	t.Helper()
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 1, testkit.Entries(3, 2, 3, 10)...)}))
	takeSnapshot(t, o, someState(t, 3, 2))
	for i := uint64(4); len(testkit.Segments(t, dir)) < 3; i++ {
		testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, i, testkit.Entries(3, i, i, 300<<10)...)}))
	}
	last := o.Last
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, last, testkit.Entries(3, last+1, last+6, 100)...)}))
	testkit.Must(t, o.Close())
	o = openDisk(t, dir)
	wantState(t, o, 2)
	testkit.Must(t, o.Close())
	return dir
}

// Without this a log that lost synced entries, votes or files would pass for a
// shorter log: the node would forget what it acknowledged.
func TestStorageDamageIsRefused(t *testing.T) {
	t.Parallel()
	sound := soundDisk(t)
	seg := func(dir string, n int) string { return testkit.Segments(t, dir)[n] }
	snap := filepath.Base(StatePath("", 3, 2))
	flip := func(path string, off int64) {
		b, err := os.ReadFile(path)
		testkit.Must(t, err)
		testkit.Patch(t, path, off, []byte{b[off] ^ 4})
	}
	middle := func(f testkit.Frame) int64 { return (f.Off + f.End) / 2 }
	name := func(n int) string { return filepath.Base(seg(sound, n)) }
	for what, c := range map[string]struct {
		damage func(dir string)
		words  []string
	}{
		"the last segment is missing":  {func(dir string) { testkit.Must(t, os.Remove(seg(dir, 2))) }, []string{"wal ends", "its end is missing"}},
		"a middle segment is missing":  {func(dir string) { testkit.Must(t, os.Remove(seg(dir, 1))) }, []string{"wal"}},
		"the first segment is missing": {func(dir string) { testkit.Must(t, os.Remove(seg(dir, 0))) }, []string{"wal"}},
		"no segment": {func(dir string) {
			testkit.Must(t, os.RemoveAll(filepath.Join(dir, "wal")))
			testkit.Must(t, os.Mkdir(filepath.Join(dir, "wal"), 0o700))
		}, []string{"no segment in"}},
		"bit in an old entry":          {func(dir string) { flip(seg(dir, 0), middle(testkit.FrameAt(t, seg(dir, 0), -2))) }, []string{name(0)}},
		"bit in an entry":              {func(dir string) { flip(seg(dir, 2), middle(testkit.FrameAt(t, seg(dir, 2), 5))) }, []string{name(2)}},
		"bit in the last hard state":   {func(dir string) { flip(seg(dir, 2), testkit.FrameAt(t, seg(dir, 2), -1).End-1) }, []string{name(2)}},
		"bit in the head":              {func(dir string) { flip(seg(dir, 2), middle(testkit.FrameAt(t, seg(dir, 2), 1))) }, []string{name(2)}},
		"length flipped":               {func(dir string) { flip(seg(dir, 2), testkit.FrameAt(t, seg(dir, 2), 5).Off) }, []string{name(2)}},
		"length flipped to a huge one": {func(dir string) { flip(seg(dir, 2), testkit.FrameAt(t, seg(dir, 2), 5).Off+3) }, []string{name(2)}},
		"length flipped in an old one": {func(dir string) { flip(seg(dir, 0), testkit.FrameAt(t, seg(dir, 0), -2).Off+3) }, []string{"wal"}},
		"length zeroed": {func(dir string) {
			testkit.Patch(t, seg(dir, 2), testkit.FrameAt(t, seg(dir, 2), 5).Off, make([]byte, 8))
		}, []string{name(2)}},
		"length zeroed in an old one": {func(dir string) {
			testkit.Patch(t, seg(dir, 0), testkit.FrameAt(t, seg(dir, 0), -2).Off, make([]byte, 8))
		}, []string{"wal"}},
		"cut off in synced entries": {func(dir string) { testkit.Must(t, os.Truncate(seg(dir, 2), testkit.FrameAt(t, seg(dir, 2), 5).Off)) }, []string{"its end is missing"}},
		"the last segment is all zeros": {func(dir string) {
			testkit.Must(t, os.Truncate(seg(dir, 2), 0))
			testkit.Must(t, os.Truncate(seg(dir, 2), 1<<20))
		}, []string{name(2)}},
		"the last segment is empty": {func(dir string) { testkit.Must(t, os.Truncate(seg(dir, 2), 0)) }, []string{name(2)}},
		"state file missing":        {func(dir string) { testkit.Must(t, os.Remove(filepath.Join(dir, "snap", snap))) }, []string{snap}},
		"state file flipped":        {func(dir string) { flip(filepath.Join(dir, "snap", snap), 30) }, []string{snap, "checksum"}},
		"state file cut":            {func(dir string) { testkit.Must(t, os.Truncate(filepath.Join(dir, "snap", snap), 40)) }, []string{snap, "cut short"}},
		"another state in its place": {func(dir string) {
			testkit.Must(t, os.WriteFile(filepath.Join(dir, "snap", snap), statetest.Bytes(t, someState(t, 3, 3)), 0o600))
		}, []string{snap, "another state"}},
		"snap missing":  {func(dir string) { testkit.Must(t, os.RemoveAll(filepath.Join(dir, "snap"))) }, []string{snap}},
		"mark missing":  {func(dir string) { testkit.Must(t, os.Remove(filepath.Join(dir, "mark"))) }, []string{filepath.Join("", "mark"), "no such file"}},
		"mark cut":      {func(dir string) { testkit.Must(t, os.Truncate(filepath.Join(dir, "mark"), watermark.SlotSize)) }, []string{"mark", "bytes long"}},
		"mark flipped":  {func(dir string) { flip(filepath.Join(dir, "mark"), 2) }, []string{"mark", "magic"}},
		"mark is empty": {func(dir string) { testkit.Must(t, os.Truncate(filepath.Join(dir, "mark"), 0)) }, []string{"mark", "bytes long"}},
	} {
		t.Run(what, func(t *testing.T) {
			dir := testkit.Crashed(t, sound)
			c.damage(dir)
			wantRefused(t, dir, c.words...)
		})
	}
}

// Without this a lost vote or term at the end of the log would pass: the node
// might vote a second time in a term.
func TestStorageLostVoteIsRefused(t *testing.T) {
	for what, vote := range map[string]*raftpb.Message{
		"term": testkit.AppendMessage(4, 0, 3), "vote": testkit.AppendMessage(3, 2, 3),
	} {
		t.Run(what, func(t *testing.T) {
			dir := newDisk(t)
			o := openDisk(t, dir)
			testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 0, 1, testkit.Entries(3, 2, 3, 10)...)}))
			end := inspectPath(t, filepath.Join(dir, "wal")).End
			testkit.Must(t, o.Append([]*raftpb.Message{vote}))
			testkit.Must(t, o.Close())
			testkit.Must(t, os.Truncate(testkit.Segments(t, dir)[0], end))
			wantRefused(t, dir, filepath.Join(dir, "wal"), "its end is missing")
		})
	}
}

// Without this a torn tail would be cut off although the start is then refused
// for another reason, and the evidence is gone.
func TestStorageRefusedBeforeRepair(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 1, testkit.Entries(3, 2, 9, 100)...)}))
	flushMark(t, o)
	crash := testkit.Crashed(t, dir)
	// What was synced, the mark says, is torn.
	testkit.Must(t, os.Truncate(testkit.Segments(t, crash)[0], testkit.FrameAt(t, testkit.Segments(t, crash)[0], -3).End-4))
	wantRefused(t, crash, "its end is missing")
	// The length of a middle frame, made one of the right form that reaches
	// past the end of the file: to the WAL, a torn write.
	crash = testkit.Crashed(t, dir)
	path := testkit.Segments(t, crash)[0]
	testkit.Patch(t, path, testkit.FrameAt(t, path, 6).Off, binary.LittleEndian.AppendUint64(nil, 8<<20))
	wantRefused(t, crash, filepath.Base(path))
	// A torn tail, and a state file that is missing.
	crash = testkit.Crashed(t, dir)
	path = testkit.Segments(t, crash)[0]
	testkit.Must(t, os.Truncate(path, testkit.FrameAt(t, path, -1).End-4))
	testkit.Must(t, os.Remove(StatePath(crash, state.FirstTerm, state.FirstIndex)))
	wantRefused(t, crash, filepath.Base(StatePath("", state.FirstTerm, state.FirstIndex)))
}
