// Package storagetest makes data directories for tests of other packages.
package storagetest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/durable"
	"raftkv/internal/entry"
	"raftkv/internal/membership"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage"
	"raftkv/internal/testkit"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// A segment of the log is 64 MB long. Tests make do with less, so that a few
// writes rotate it. It is a variable of etcd's package, so it is set here, before
// any test runs, for every program of tests that imports this package.
func init() { wal.SegmentSizeBytes = 1 << 20 }

// Peers are the members of the cluster that New makes a node of.
func Peers() []address.Peer {
	return []address.Peer{{ID: 1, URL: "http://10.0.0.1:2380"}, {ID: 2, URL: "http://10.0.0.2:2380"}, {ID: 3, URL: "http://10.0.0.3:2380"}}
}

// Identity is that of node 1 of those.
func Identity() storage.Identity {
	return storage.Identity{Format: storage.DirFormat, Node: 1, ClusterID: 0xabc, Initial: address.FormatPeers(Peers())}
}

// New is the data directory of a node that has not run yet.
func New(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	testkit.Must(t, storage.Create(zap.NewNop(), dir, Identity(), state.First(Peers())))
	return dir
}

// AnyIdentity accepts every directory.
func AnyIdentity(storage.Identity, bool) error { return nil }

// Open starts a life. Closing it early is allowed.
func Open(t testing.TB, dir string) *storage.Opened {
	t.Helper()
	o, err := storage.Open(zap.NewNop(), dir, storage.Bounds{}, AnyIdentity)
	testkit.Must(t, err)
	t.Cleanup(func() { _ = o.Close() })
	return o
}

// TakeSnapshot goes the way of a snapshot of the node's own.
func TakeSnapshot(t testing.TB, o *storage.Opened, st *state.State) {
	t.Helper()
	testkit.Must(t, durable.WriteFile(storage.StatePath(o.Dir, st.Term, st.Index), func(w io.Writer) error { return state.Write(w, st) }))
	testkit.Must(t, o.Written(st))
}

// URL is a peer URL for a node.
func URL(id uint64) string { return fmt.Sprintf("http://10.0.0.%d:2380", id) }

// Old is a directory with a snapshot and a log behind it, not all of which
// is known to be committed.
func Old(t testing.TB) string {
	t.Helper()
	dir := New(t)
	o := Open(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 20, PutEntries(3, 2, 30)...)}))
	st := statetest.At(t, Peers(), 3, 15)
	st.Membership = membership.New(Peers())
	TakeSnapshot(t, o, st)
	testkit.Must(t, o.Close())
	return dir
}

// PutEntries are entries of node 1 that each put a key.
func PutEntries(term, from, to uint64) []*raftpb.Entry {
	var entries []*raftpb.Entry
	for i := from; i <= to; i++ {
		data := entry.AppendHeader(nil, state.BatchID{Node: 1, Boot: 1, Seq: i})
		data = entry.AppendCommand(data, state.EncodeWrite(state.KindPut, state.Condition{}, fmt.Sprint("key/", i), []byte("value")))
		entries = append(entries, &raftpb.Entry{Term: new(term), Index: new(i), Data: data})
	}
	return entries
}

// Same returns nil if two directories hold the same, else what they do not agree on.
func Same(dir, other string) error {
	f, err := storage.Examine(dir)
	if err != nil {
		return err
	}
	g, err := storage.Examine(other)
	if err != nil {
		return err
	}
	if *f.Identity != *g.Identity || f.Digest != g.Digest || f.Log.Last() != g.Log.Last() || len(f.Damage) > 0 {
		return fmt.Errorf("%s is not %s any more: %+v %v", dir, other, f.Identity, f.Damage)
	}
	return nil
}

// WantRefounded checks that a directory is that of a new cluster with the keys
// of an old state.
func WantRefounded(t testing.TB, dir string, old *state.State, voters []address.Peer) storage.Identity {
	t.Helper()
	var id storage.Identity
	o, err := storage.Open(zap.NewNop(), dir, storage.Bounds{}, func(have storage.Identity, reconfigured bool) error {
		if id = have; reconfigured {
			return errors.New("its members came or went since")
		}
		return nil
	})
	testkit.Must(t, err)
	defer func() { _ = o.Close() }()
	testkit.WantOneSnapshot(t, o.Mem, o.State.Index, o.State.Term, o.State.Membership.ConfState(), o.SnapIndex.Load(), o.Last)
	want := old.Copy()
	want.Index, want.Term, want.Revision = state.FirstIndex, state.FirstTerm, old.Revision+1_000_000_000
	want.Membership, want.Windows = membership.New(voters), nil
	want.Level, want.Checks = 0, state.Checks{}
	if old.Leases.Last > 0 {
		want.Leases.Last = old.Leases.Last + 1_000_000_000
	}
	if got := statetest.Describe(o.State); got != statetest.Describe(want) {
		t.Errorf("the state is\n%s\nwant\n%s", got, statetest.Describe(want))
	}
	if id.Format != storage.DirFormat || id.Instance == 0 || id.ClusterID == 0 || o.Boot != 1 || o.Last != state.FirstIndex {
		t.Errorf("identity %+v, boot %d, last entry %d", id, o.Boot, o.Last)
	}
	return id
}

// BackupFile writes a state into a file.
func BackupFile(t testing.TB, st *state.State) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backup.state")
	testkit.Must(t, os.WriteFile(path, statetest.Bytes(t, st), 0o600))
	return path
}
