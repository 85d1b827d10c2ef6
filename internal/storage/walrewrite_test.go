package storage

import (
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"raftkv/internal/walfile"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// provenIndex is the last entry or snapshot in the part of a log that a start does not write again, as a WAL that
// ended there would say.
func provenIndex(t *testing.T, dir string) uint64 {
	t.Helper()
	walDir := filepath.Join(dir, "wal")
	c, err := walfile.Survey(walDir, markOf(t, dir).Index)
	testkit.Must(t, err)
	if c.Proven.Segment < 0 {
		return 0
	}
	short := testkit.Crashed(t, dir)
	for i, path := range testkit.Segments(t, short) {
		switch {
		case i == c.Proven.Segment:
			testkit.Must(t, os.Truncate(path, c.Proven.Offset))
		case i > c.Proven.Segment:
			testkit.Must(t, os.Remove(path))
		}
	}
	c, err = walfile.Read(filepath.Join(short, "wal"))
	testkit.Must(t, err)
	return c.Last()
}

// What the mark vouches for was synced with all before it, and nothing else counts as durable: not what was written
// later, and not an entry that was overwritten since.
func TestProvenPart(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	want := func(what string, index uint64) {
		t.Helper()
		if got := provenIndex(t, dir); got != index {
			t.Errorf("%s: proven up to %d, want %d", what, got, index)
		}
	}
	want("at the first start", 1)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 2, testkit.Entries(2, 2, 20, 10)...)}))
	want("behind the mark", 1)
	flushMark(t, o)
	want("with the mark", 20)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 1, 5, testkit.Entries(3, 11, 30, 10)...)}))
	want("overwritten", 10)
	flushMark(t, o)
	want("overwritten, with the mark", 30)

	c, err := walfile.Survey(filepath.Join(dir, "wal"), 30)
	testkit.Must(t, err)
	before := c.Proven
	takeSnapshot(t, o, someState(t, 3, 30))
	if c, err = walfile.Survey(filepath.Join(dir, "wal"), 30); err != nil || c.Proven != before {
		t.Errorf("a snapshot of the last entry, recorded behind the mark: proven up to %v, was %v; %v", c.Proven, before, err)
	}
	testkit.Must(t, o.Append([]*raftpb.Message{received(t, o.Storage, someState(t, 4, 80), 4, 2)}))
	want("a snapshot installed behind the mark", 30)
	flushMark(t, o)
	want("with the mark", 80)
}

// Without this writing the log again would change it, or a crash in the midst of that would leave a directory that
// does not start.
func TestRewriteChangesNothing(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	var entries []*raftpb.Entry
	for i := uint64(2); len(testkit.Segments(t, dir)) < 4; i++ {
		e := testkit.Entries(2, i, i, 300<<10)
		testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, i, e...)}))
		entries = append(entries, e...)
	}
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(0, 0, 0, testkit.Entries(2, walfile.LastIndex(entries)+1, walfile.LastIndex(entries)+1, 99)...)}))
	tail, err := walfile.InspectTail(filepath.Join(dir, "wal"))
	testkit.Must(t, err)
	dir = testkit.Crashed(t, dir)
	before := testkit.Sums(t, dir)
	walDir := filepath.Join(dir, "wal")
	for _, from := range []walfile.Place{{Segment: -1, Offset: 0}, {Segment: 0, Offset: 0}, {Segment: 0, Offset: 1}, {Segment: 1, Offset: 4097}, {Segment: 2, Offset: 300 << 10}, {Segment: 3, Offset: tail.End - 8}, {Segment: 3, Offset: tail.End}} {
		testkit.Must(t, walfile.Rewrite(walDir, from, tail.End))
		testkit.WantUnchanged(t, dir, before)
	}

	// A crash leaves a part of a copy.
	testkit.Must(t, os.WriteFile(testkit.Segments(t, dir)[3]+".tmp", []byte("part"), 0o600))
	o = openDisk(t, dir)
	wantEntries(t, o, append(entries, testkit.Entries(2, walfile.LastIndex(entries)+1, walfile.LastIndex(entries)+1, 99)...))
	if left, err := filepath.Glob(filepath.Join(walDir, "*.wal.tmp")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
