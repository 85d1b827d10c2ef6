package storage

import (
	"errors"
	"raftkv/internal/durable"
	"raftkv/internal/entry"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Guarantee: a directory whose log has a command of a newer version is refused
// as it is, whether the command was committed or not.
func TestStorageNewerCommandIsRefused(t *testing.T) {
	for _, commit := range []uint64{2, 3} {
		dir := newDisk(t)
		o := openDisk(t, dir)
		entries := testkit.Entries(2, 2, 3, 10)
		entries[1].Data = entry.AppendCommand(entry.AppendHeader(nil, state.BatchID{Node: 1, Boot: 1}), []byte{99})
		testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 3, commit, entries...)}))
		crash := testkit.Crashed(t, dir)
		before := testkit.Sums(t, crash)
		if _, err := Open(zap.NewNop(), crash, Bounds{}, anyIdentity); !errors.Is(err, durable.ErrNewer) ||
			!strings.Contains(err.Error(), "entry 3") || !strings.Contains(err.Error(), "upgrade this node") {
			t.Errorf("committed to %d: %v", commit, err)
		}
		testkit.WantUnchanged(t, crash, before)
	}
}
