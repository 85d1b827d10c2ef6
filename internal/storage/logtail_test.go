package storage

import (
	"errors"
	"raftkv/internal/testkit"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// tailOf is a storage whose log in memory has entries 1 to n of a size.
func tailOf(t *testing.T, n uint64, size int) *Storage {
	t.Helper()
	s := &Storage{Mem: raft.NewMemoryStorage(), Tail: logTail{Limit: TailWeight}}
	data := make([]byte, size)
	var entries []*raftpb.Entry
	for i := range n {
		entries = append(entries, &raftpb.Entry{Term: new(uint64(1)), Index: new(i + 1), Data: data})
	}
	testkit.Must(t, s.Mem.Append(entries))
	s.Tail.add(entries)
	return s
}

// Without this the log in memory grows with the number or the size of the
// entries, instead of being a bounded tail; is dropped whole, so that a follower
// a little behind needs a snapshot; or loses what raft has not applied.
func TestLogTail(t *testing.T) {
	const none = ^uint64(0)
	mib := uint64(1 << 20)
	for name, c := range map[string]struct {
		entries         uint64
		size            uint64
		applied, needed uint64
		snapshot        int64
		first           uint64
	}{
		"few":                       {entries: 100, size: 1, applied: 90, needed: none, first: 1},
		"not yet worth it":          {entries: 40, size: mib, applied: 40, needed: none, first: 1},
		"large":                     {entries: 64, size: mib - EntryWeight, applied: 64, needed: none, first: 33},
		"many":                      {entries: 60000, size: 0, applied: 60000, needed: none, first: 60000 - TailWeight/EntryWeight + 1},
		"the last is too large":     {entries: 3, size: 40 * mib, applied: 3, needed: none, first: 4},
		"unapplied":                 {entries: 64, size: mib, applied: 10, needed: none, first: 11},
		"nothing applied":           {entries: 200, size: mib, applied: 0, needed: none, first: 1},
		"a follower needs it":       {entries: 64, size: mib, applied: 64, needed: 20, first: 21},
		"one that is too far off":   {entries: 200, size: mib - EntryWeight, applied: 200, needed: 20, first: 200 - 96 + 1},
		"but nearer than the state": {entries: 200, size: mib - EntryWeight, applied: 200, needed: 20, snapshot: 1 << 30, first: 21},
	} {
		t.Run(name, func(t *testing.T) {
			s := tailOf(t, c.entries, int(c.size))
			s.Tail.Applied.Store(c.applied)
			s.Tail.Needed.Store(c.needed)
			s.Tail.snapshot = c.snapshot
			for range 2 { // a second time changes nothing
				testkit.Must(t, s.Trim())
				if first, err := s.Mem.FirstIndex(); err != nil || first != c.first {
					t.Fatalf("the log begins at %d, not at %d: %v", first, c.first, err)
				}
			}
			if last, err := s.Mem.LastIndex(); err != nil || last != c.entries {
				t.Fatalf("the log ends at %d: %v", last, err)
			}
		})
	}
}

// Without this raft sends a follower a snapshot that the log does not follow on,
// and then another, for ever; or waits long for one that is written at leisure.
func TestLogTailSnapshot(t *testing.T) {
	s := tailOf(t, 64, 1<<20)
	wanted := 0
	log := RaftStorage{s.Mem, s, func(uint64) { wanted++ }}
	snapshotAt := func(index uint64) {
		s.Newest.Store(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(uint64(1))}})
	}
	snapshotAt(10)
	if got := s.Tail.snapshotPace(1 << 30); got != paceRest {
		t.Errorf("a snapshot that nobody waits for rests %d times as long as it works", got)
	}
	if snap, err := log.Snapshot(); err != nil || snap.GetMetadata().GetIndex() != 10 {
		t.Fatalf("got %v, %v", snap, err)
	}
	s.Tail.Applied.Store(64)
	s.Tail.Needed.Store(64)
	testkit.Must(t, s.Trim())
	first, err := s.Mem.FirstIndex()
	testkit.Must(t, err)
	want := func(n int) {
		t.Helper()
		if _, err := log.Snapshot(); !errors.Is(err, raft.ErrSnapshotTemporarilyUnavailable) || wanted != n {
			t.Fatalf("%v, asked %d times, want %d", err, wanted, n)
		}
	}
	want(1)
	s.Tail.Writing.Store(first - 2) // one that is of no use either
	want(2)
	s.Tail.Writing.Store(first - 1)
	want(2)
	if got := s.Tail.snapshotPace(1 << 30); got != paceAwaited {
		t.Errorf("a snapshot that is awaited rests %d times as long as it works", got)
	}
	snapshotAt(first - 1)
	if snap, err := log.Snapshot(); err != nil || snap.GetMetadata().GetIndex() != first-1 {
		t.Fatalf("got %v, %v", snap, err)
	}
}
