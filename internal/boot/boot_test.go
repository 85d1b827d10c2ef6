package boot

import (
	"raftkv/internal/config"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// Without this a --cluster that is stale because members came or went would
// stop a node that is sound.
func TestIdentityAfterAChange(t *testing.T) {
	dir := storagetest.New(t)
	cfg := config.Config{ID: 1, DataDir: dir, Cluster: storagetest.Peers()[:2]}
	o := storagetest.Open(t, dir)
	if err := CheckIdentity(cfg, o.Identity, o.Reconfigured); err == nil {
		t.Fatal("another --cluster passes")
	}
	entry := testkit.Entries(1, 2, 2, 0)[0]
	entry.Type = raftpb.EntryConfChange.Enum()
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(0, 0, 0, entry)}))
	o = storagetest.Open(t, testkit.Crashed(t, dir))
	testkit.Must(t, CheckIdentity(cfg, o.Identity, o.Reconfigured))
	cfg.Join, cfg.ClusterID = true, 0xabc
	testkit.Must(t, CheckIdentity(cfg, o.Identity, false))
}
