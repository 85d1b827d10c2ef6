package main

import (
	"bytes"
	"errors"
	"raftkv/internal/address"
	"raftkv/internal/boot"
	"raftkv/internal/config"
	"raftkv/internal/durable"
	"raftkv/internal/peerclient"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// Without this a node would run on the log of another node or cluster, under
// its own ID: it would vote and acknowledge for a log it does not have.
func TestIdentityOfAnother(t *testing.T) {
	others := []address.Peer{{ID: 1, URL: "http://10.0.0.1:2380"}, {ID: 2, URL: "http://10.0.0.2:2380"}, {ID: 4, URL: "http://10.0.0.4:2380"}}
	for name, c := range map[string]struct {
		change func(*config.Config)
		words  []string
	}{
		"node":       {func(c *config.Config) { c.ID = 2 }, []string{"node 1", "--id is 2", "use the directory of node 2"}},
		"cluster id": {func(c *config.Config) { c.ClusterID = 0xdef }, []string{"cluster abc", "--cluster-id is def"}},
		"members":    {func(c *config.Config) { c.Cluster = others }, []string{address.FormatPeers(others), "use an empty --data-dir"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := storagetest.New(t)
			cfg := config.Config{ID: 1, ClusterID: 0xabc, DataDir: dir, Cluster: storagetest.Peers()}
			c.change(&cfg)
			before := testkit.Sums(t, dir)
			_, err := openServer(t.Context(), cfg, zap.NewNop(), reconfig.ClusterInfo{}, 0, peerclient.New(), nil)
			if err == nil {
				t.Fatal("opened")
			}
			for _, w := range append(c.words, dir) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("no %q in the message: %v", w, err)
				}
			}
			testkit.WantUnchanged(t, dir, before)
		})
	}
}

// Guarantee: a program that does not know the cluster's commands says so before
// it takes part, and one that learns it later stops.
func TestLevelOfTheFuture(t *testing.T) {
	s := state.New(testkit.Peers())
	s.Level = state.ProgramLevel + 1
	_, err := state.Read(bytes.NewReader(statetest.Bytes(t, s)))
	if !errors.Is(err, durable.ErrNewer) || !bytes.Contains([]byte(err.Error()), []byte("upgrade this node")) {
		t.Errorf("reading it: %v", err)
	}
	if err := boot.CheckJoinLevel(reconfig.ClusterInfo{Level: state.ProgramLevel + 1}); !errors.Is(err, durable.ErrNewer) {
		t.Errorf("joining: %v", err)
	}
	if err := boot.CheckJoinLevel(reconfig.ClusterInfo{Level: state.ProgramLevel}); err != nil {
		t.Errorf("joining: %v", err)
	}
	kv := newTestStore()
	if err := kv.checkLevel(); err != nil {
		t.Error(err)
	}
	kv.state.Level = state.ProgramLevel + 1
	if err := kv.checkLevel(); err == nil {
		t.Error("it goes on")
	}
}
