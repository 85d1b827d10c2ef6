package storage

import (
	"raftkv/internal/testkit"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// syncedLog counts how often the log is synced beside what Save does.
type syncedLog struct {
	WriteAheadLog
	syncs int
}

func (l *syncedLog) Sync() error {
	l.syncs++
	return l.WriteAheadLog.Sync()
}

// A node that was killed while nothing was written knows all that it knew to be
// committed. Without this it comes back with less, and takes another history that
// contradicts the rest for a lawful one.
func TestRestKeepsTheCommitIndex(t *testing.T) {
	const soon = time.Hour // nothing was written for that long: never in this test
	dir := newDisk(t)
	o := openDisk(t, dir)
	log := &syncedLog{WriteAheadLog: o.Wal}
	o.Wal = log
	rest := func(while time.Duration, syncs int, commit uint64) {
		t.Helper()
		testkit.Must(t, o.Rest(while))
		if log.syncs != syncs {
			t.Errorf("synced %d times, want %d", log.syncs, syncs)
		}
		after := openDisk(t, testkit.Crashed(t, dir))
		if got := after.Hard.GetCommit(); got != commit {
			t.Errorf("after a kill it knows that entries up to %d are committed, want %d", got, commit)
		}
		testkit.Must(t, after.Close())
	}
	rest(0, 0, 1) // nothing was written
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 3, testkit.Entries(2, 2, 9, 100)...)}))
	rest(0, 0, 3) // the entries have brought it along
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 9)}))
	rest(soon, 0, 3)
	rest(0, 1, 9)
	rest(0, 1, 9) // once is enough
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 9, testkit.Entries(2, 10, 12, 100)...)}))
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 11)}))
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 12)}))
	rest(soon, 1, 9)
	rest(0, 2, 12)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 12)})) // a vote is synced at once
	rest(0, 2, 12)
}
