package storage

import (
	"raftkv/internal/membership"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// Without this a start needs memory for the whole log since the last snapshot, several times; or it applies what may
// yet be overwritten, or drops what raft still has to hand over.
func TestLogLoader(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	entries := testkit.Entries(2, 2, 101, 100<<10)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 81, entries...)}))
	testkit.Must(t, o.Close())
	const tail = 1 << 20 // ten entries
	o, err := Open(zap.NewNop(), dir, Bounds{Tail: tail}, anyIdentity)
	testkit.Must(t, err)
	defer o.Close()
	first, err := o.Mem.FirstIndex()
	testkit.Must(t, err)
	if o.State.Index != 81 || o.SnapIndex.Load() != state.FirstIndex || first != 82 || o.Last != 101 {
		t.Errorf("the state is of entry %d, the snapshot of %d, in memory are entries %d to %d", o.State.Index, o.SnapIndex.Load(), first, o.Last)
	}
	wantEntries(t, o, entries[80:])
	hard, members, err := o.Mem.InitialState()
	if err != nil || hard.GetCommit() != 81 || !proto.Equal(members, o.State.Membership.ConfState()) {
		t.Errorf("raft begins with %v, %v; %v", hard, members, err)
	}
	if o.Due.Bytes < 100*100<<10 {
		t.Errorf("the log of 10 MB counts as %d bytes towards the next snapshot", o.Due.Bytes)
	}
	if o.Worked != state.FirstIndex {
		t.Errorf("entries without a command count as work: %d", o.Worked)
	}
}

// How a node ends that was removed while it was down is not the loader's business: raft hands over that entry.
func TestLogLoaderStopsBeforeItsRemoval(t *testing.T) {
	for id, want := range map[uint64]uint64{1: 2, 3: 4} {
		dir := newDisk(t)
		o := openDisk(t, dir)
		data, err := proto.Marshal(membership.Change{Op: membership.OpRemove, ID: id}.ConfChange())
		testkit.Must(t, err)
		entries := testkit.Entries(2, 2, 4, 10)
		entries[1] = &raftpb.Entry{Term: new(uint64(2)), Index: new(uint64(3)), Type: raftpb.EntryConfChange.Enum(), Data: data}
		testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 4, entries...)}))
		testkit.Must(t, o.Close())
		o = openDisk(t, dir)
		if o.State.Index != want || !o.Reconfigured {
			t.Errorf("node %d is removed: the state is of entry %d, want %d", id, o.State.Index, want)
		}
	}
}
