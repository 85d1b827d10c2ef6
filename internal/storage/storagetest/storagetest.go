// Package storagetest makes data directories for tests of other packages.
package storagetest

import (
	"io"
	"raftkv/internal/address"
	"raftkv/internal/durable"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/testkit"
	"testing"

	"go.uber.org/zap"
)

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
	o, err := storage.Open(zap.NewNop(), dir, AnyIdentity)
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
