package main

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/durable"
	"raftkv/internal/membership"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/walfile"
	"raftkv/internal/watermark"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// Helpers of the tests of the data directory.

func diskPeers() []address.Peer {
	return []address.Peer{{ID: 1, URL: "http://10.0.0.1:2380"}, {ID: 2, URL: "http://10.0.0.2:2380"}, {ID: 3, URL: "http://10.0.0.3:2380"}}
}

func diskIdentity() identity {
	return identity{Format: dirFormat, Node: 1, ClusterID: 0xabc, Initial: address.FormatPeers(diskPeers())}
}

// newDisk is the data directory of a node that has not run yet.
func newDisk(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	testkit.Must(t, createStorage(zap.NewNop(), dir, diskIdentity(), state.First(diskPeers())))
	return dir
}

// openDisk starts a life. Closing it early is allowed.
func openDisk(t testing.TB, dir string) *openedStorage {
	t.Helper()
	o, err := openStorage(zap.NewNop(), dir, anyIdentity)
	testkit.Must(t, err)
	t.Cleanup(func() { o.close() })
	wantOneSnapshot(t, o)
	return o
}

// wantOneSnapshot checks that raft, the state and the storage speak of the
// same snapshot: with two, entries would be applied twice or never.
func wantOneSnapshot(t testing.TB, o *openedStorage) {
	t.Helper()
	snap, err := o.mem.Snapshot()
	testkit.Must(t, err)
	meta := snap.GetMetadata()
	if meta.GetIndex() != o.state.Index || meta.GetTerm() != o.state.Term || o.snapIndex.Load() > o.state.Index {
		t.Fatalf("raft has the snapshot %d/%d, the state is %d/%d, the storage says %d",
			meta.GetIndex(), meta.GetTerm(), o.state.Index, o.state.Term, o.snapIndex.Load())
	}
	if want := o.state.Membership.ConfState(); o.state.Index > 0 && !proto.Equal(meta.GetConfState(), want) {
		t.Fatalf("raft has the members %v, the state has %v", meta.GetConfState(), want)
	}
	last, err := o.mem.LastIndex()
	testkit.Must(t, err)
	if last != o.last {
		t.Fatalf("raft's log ends at %d, the storage's at %d", last, o.last)
	}
}

// wantRefused checks that a start is refused with a message that has all of
// words in it, and that the directory is as it was.
func wantRefused(t *testing.T, dir string, words ...string) {
	t.Helper()
	before := testkit.Sums(t, dir)
	o, err := openStorage(zap.NewNop(), dir, anyIdentity)
	if err == nil {
		testkit.Must(t, o.close())
		t.Fatalf("started, with a log up to %d", o.last)
	}
	for _, w := range append(words, dir, "The way out", "remove this member", "new ID") {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in the message: %v", w, err)
		}
	}
	// And raftkv inspect sees it, too.
	f, err := examineDir(dir)
	testkit.Must(t, err)
	for _, w := range words {
		if damage := fmt.Sprint(f.damage); !strings.Contains(damage, w) {
			t.Errorf("no %q in the damage found by reading: %s", w, damage)
		}
	}
	testkit.WantUnchanged(t, dir, before)
}

// someState is a state at an index, with a key that tells it from others.
func someState(t testing.TB, term, index uint64) *state.State {
	return statetest.At(t, diskPeers(), term, index)
}

func wantState(t *testing.T, o *openedStorage, index uint64) {
	t.Helper()
	if at := o.snapIndex.Load(); at != index || o.state.Index < at {
		t.Fatalf("the snapshot is of index %d, the state of %d, not %d", at, o.state.Index, index)
	}
	if index == state.FirstIndex {
		return
	}
	if it := o.state.Get("key"); it == nil || string(it.Value) != fmt.Sprintf("as of %d", index) {
		t.Fatalf("the state of index %d holds something else", index)
	}
}

func writeSomeState(t *testing.T, dir string, st *state.State) {
	t.Helper()
	testkit.Must(t, durable.WriteFile(statePath(dir, st.Term, st.Index), func(w io.Writer) error { return state.Write(w, st) }))
}

// takeSnapshot goes the way of a snapshot of this node's own.
func takeSnapshot(t *testing.T, o *openedStorage, st *state.State) {
	t.Helper()
	writeSomeState(t, o.dir, st)
	testkit.Must(t, o.written(st))
	testkit.Must(t, o.clean(st.Index))
}

// snapMessage is a snapshot message as it comes from another node.
func snapMessage(term, index uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgSnap.Enum(), Snapshot: &raftpb.Snapshot{
		Metadata: &raftpb.SnapshotMetadata{
			Term: new(term), Index: new(index), ConfState: membership.New(diskPeers()).ConfState(),
		},
	}}
}

// receive lets a snapshot come in: the file, then the message.
func receive(t *testing.T, s *storage, term, index uint64, data []byte) error {
	t.Helper()
	b := newInbox(zap.NewNop(), s)
	_, err := b.SaveDBFrom(bytes.NewReader(data), index)
	testkit.Must(t, err)
	return b.take(snapMessage(term, index), 0, nil)
}

// received takes in the snapshot of a state, and returns what raft then tells
// the storage.
func received(t *testing.T, s *storage, st *state.State, term, vote uint64, entries ...*raftpb.Entry) *raftpb.Message {
	t.Helper()
	testkit.Must(t, receive(t, s, st.Term, st.Index, statetest.Bytes(t, st)))
	app := testkit.AppendMessage(term, vote, st.Index, entries...)
	app.Snapshot = snapMessage(st.Term, st.Index).GetSnapshot()
	return app
}

// wantEntries checks that the log ends with exactly these entries.
func wantEntries(t *testing.T, o *openedStorage, want []*raftpb.Entry) {
	t.Helper()
	last, err := o.mem.LastIndex()
	testkit.Must(t, err)
	if last != walfile.LastIndex(want) {
		t.Fatalf("the log ends at %d, not at %d", last, walfile.LastIndex(want))
	}
	got, err := o.mem.Entries(want[0].GetIndex(), last+1, ^uint64(0))
	testkit.Must(t, err)
	for i, e := range got {
		if !proto.Equal(e, want[i]) {
			t.Fatalf("entry %d is not what was written", want[i].GetIndex())
		}
	}
}

func wantHard(t *testing.T, o *openedStorage, term, vote, minCommit uint64) {
	t.Helper()
	h, _, err := o.mem.InitialState()
	testkit.Must(t, err)
	if h.GetTerm() != term || h.GetVote() != vote || h.GetCommit() < minCommit {
		t.Fatalf("the hard state is %v, not term %d, vote %d, commit %d or more", h, term, vote, minCommit)
	}
}

// markOf is the mark as it is on disk.
func markOf(t *testing.T, dir string) watermark.Mark {
	t.Helper()
	f, m, err := watermark.OpenFile(filepath.Join(dir, "mark"))
	testkit.Must(t, err)
	testkit.Must(t, f.Close())
	return m
}

// flushMark does what watermark.Keeper.run does every tenth of a second.
func flushMark(t *testing.T, o *openedStorage) {
	t.Helper()
	o.mark.Mu.Lock()
	defer o.mark.Mu.Unlock()
	testkit.Must(t, o.mark.Write())
}

// anyIdentity accepts every directory.
func anyIdentity(identity, bool) error { return nil }
