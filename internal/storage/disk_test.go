package storage

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

func diskIdentity() Identity {
	return Identity{Format: DirFormat, Node: 1, ClusterID: 0xabc, Initial: address.FormatPeers(diskPeers())}
}

// newDisk is the data directory of a node that has not run yet.
func newDisk(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	testkit.Must(t, Create(zap.NewNop(), dir, diskIdentity(), state.First(diskPeers())))
	return dir
}

// openDisk starts a life. Closing it early is allowed.
func openDisk(t testing.TB, dir string) *Opened {
	t.Helper()
	o, err := Open(zap.NewNop(), dir, Bounds{}, anyIdentity)
	testkit.Must(t, err)
	t.Cleanup(func() { o.Close() })
	wantOneSnapshot(t, o)
	return o
}

func wantOneSnapshot(t testing.TB, o *Opened) {
	t.Helper()
	testkit.WantOneSnapshot(t, o.Mem, o.State.Index, o.State.Term, o.State.Membership.ConfState(), o.SnapIndex.Load(), o.Last)
}

// wantRefused checks that a start is refused with a message that has all of
// words in it, and that the directory is as it was.
func wantRefused(t *testing.T, dir string, words ...string) {
	t.Helper()
	before := testkit.Sums(t, dir)
	o, err := Open(zap.NewNop(), dir, Bounds{}, anyIdentity)
	if err == nil {
		testkit.Must(t, o.Close())
		t.Fatalf("started, with a log up to %d", o.Last)
	}
	for _, w := range append(words, dir, "The way out", "remove this member", "new ID") {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in the message: %v", w, err)
		}
	}
	// And raftkv inspect sees it, too.
	f, err := Examine(dir)
	testkit.Must(t, err)
	for _, w := range words {
		if damage := fmt.Sprint(f.Damage); !strings.Contains(damage, w) {
			t.Errorf("no %q in the damage found by reading: %s", w, damage)
		}
	}
	testkit.WantUnchanged(t, dir, before)
}

// someState is a state at an index, with a key that tells it from others.
func someState(t testing.TB, term, index uint64) *state.State {
	return statetest.At(t, diskPeers(), term, index)
}

func wantState(t *testing.T, o *Opened, index uint64) {
	t.Helper()
	if at := o.SnapIndex.Load(); at != index || o.State.Index < at {
		t.Fatalf("the snapshot is of index %d, the state of %d, not %d", at, o.State.Index, index)
	}
	if index == state.FirstIndex {
		return
	}
	if it := o.State.Get("key"); it == nil || string(it.Value) != fmt.Sprintf("as of %d", index) {
		t.Fatalf("the state of index %d holds something else", index)
	}
}

func writeSomeState(t *testing.T, dir string, st *state.State) {
	t.Helper()
	testkit.Must(t, durable.WriteFile(StatePath(dir, st.Term, st.Index), func(w io.Writer) error { return state.Write(w, st) }))
}

// takeSnapshot goes the way of a snapshot of this node's own.
func takeSnapshot(t *testing.T, o *Opened, st *state.State) {
	t.Helper()
	writeSomeState(t, o.Dir, st)
	testkit.Must(t, o.Written(st))
	testkit.Must(t, o.clean(t.Context(), st.Index))
}

func snapMessage(term, index uint64) *raftpb.Message {
	return testkit.SnapMessage(term, index, membership.New(diskPeers()).ConfState())
}

// receive lets a snapshot come in: the file, then the message.
func receive(t *testing.T, s *Storage, term, index uint64, data []byte) error {
	t.Helper()
	b := NewInbox(zap.NewNop(), s)
	_, err := b.SaveDBFrom(bytes.NewReader(data), index)
	testkit.Must(t, err)
	return b.Take(snapMessage(term, index), 0, nil)
}

// received takes in the snapshot of a state, and returns what raft then tells
// the storage.
func received(t *testing.T, s *Storage, st *state.State, term, vote uint64, entries ...*raftpb.Entry) *raftpb.Message {
	t.Helper()
	testkit.Must(t, receive(t, s, st.Term, st.Index, statetest.Bytes(t, st)))
	app := testkit.AppendMessage(term, vote, st.Index, entries...)
	app.Snapshot = snapMessage(st.Term, st.Index).GetSnapshot()
	return app
}

// wantEntries checks that the log ends with exactly these entries.
func wantEntries(t *testing.T, o *Opened, want []*raftpb.Entry) {
	t.Helper()
	last, err := o.Mem.LastIndex()
	testkit.Must(t, err)
	if last != walfile.LastIndex(want) {
		t.Fatalf("the log ends at %d, not at %d", last, walfile.LastIndex(want))
	}
	got, err := o.Mem.Entries(want[0].GetIndex(), last+1, ^uint64(0))
	testkit.Must(t, err)
	for i, e := range got {
		if !proto.Equal(e, want[i]) {
			t.Fatalf("entry %d is not what was written", want[i].GetIndex())
		}
	}
}

func wantHard(t *testing.T, o *Opened, term, vote, minCommit uint64) {
	t.Helper()
	h, _, err := o.Mem.InitialState()
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
func flushMark(t *testing.T, o *Opened) {
	t.Helper()
	o.Mark.Mu.Lock()
	defer o.Mark.Mu.Unlock()
	testkit.Must(t, o.Mark.Write())
}

// anyIdentity accepts every directory.
func anyIdentity(Identity, bool) error { return nil }
