package storage

import (
	"fmt"
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

// The shape of a log is that of its entries, whatever overwrites what.
func TestLogShape(t *testing.T) {
	var s walfile.Shape
	if s.Last() != 0 || s.Has(0, 0) || s.Has(1, 1) {
		t.Error("an empty log has entries")
	}
	add := func(index, term uint64, ok bool) {
		t.Helper()
		if err := s.Add(index, term); (err == nil) != ok {
			t.Errorf("entry %d of term %d: %v", index, term, err)
		}
	}
	want := func(first uint64, terms ...uint64) {
		t.Helper()
		if last := first + uint64(len(terms)) - 1; s.First != first || s.Last() != last {
			t.Errorf("entries %d to %d, want %d to %d", s.First, s.Last(), first, last)
		}
		for i, term := range terms {
			for _, other := range []uint64{term - 1, term, term + 1} {
				if index := first + uint64(i); s.Has(index, other) != (other == term) {
					t.Errorf("entry %d of term %d: %v", index, other, s.Has(index, other))
				}
			}
		}
		if s.Has(first-1, terms[0]) || s.Has(s.Next, terms[len(terms)-1]) {
			t.Error("it has an entry beside its ends")
		}
	}
	add(5, 1, true)
	add(7, 1, false)
	add(6, 1, true)
	add(7, 2, true)
	add(8, 4, true)
	want(5, 1, 1, 2, 4)
	add(7, 5, true)
	want(5, 1, 1, 5)
	add(8, 5, true)
	add(9, 6, true)
	for cut, left := range [][]uint64{{1, 1, 5, 5, 6}, {1, 5, 5, 6}, {5, 5, 6}, {5, 6}, {6}} {
		s := s
		s.Runs = append([]walfile.TermRun(nil), s.Runs...)
		s.DropTo(uint64(4 + cut))
		if got := fmt.Sprint(s.First, s.Last(), len(left)); got != fmt.Sprint(5+cut, 9, 5-cut) {
			t.Errorf("cut behind %d: %s", 4+cut, got)
		}
		for i, term := range left {
			if !s.Has(uint64(5+cut+i), term) {
				t.Errorf("cut behind %d: no entry %d of term %d", 4+cut, 5+cut+i, term)
			}
		}
	}
	add(3, 7, true)
	want(3, 7)
	s.DropTo(3)
	if !s.Empty() {
		t.Error("not empty")
	}
}
