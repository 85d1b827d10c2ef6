//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/history"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// Guarantee: a node that survived alone goes on as a cluster of its own, with
// all that it had acknowledged or may have, and grows again.
func TestSimRecover(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		survivor := c.leader()
		acked := c.value()
		c.put(survivor, "acknowledged", acked)
		for _, id := range c.followers() {
			c.crash(id)
			delete(c.nodes, id) // for good
		}
		unknown := c.value()
		if res, _ := c.do(0, survivor, history.Input{Kind: history.Put, Key: "unknown", Value: unknown}); !errors.Is(res.Err, problem.ErrOutcomeUnknown) {
			t.Fatalf("a write without a majority: %v", res.Err)
		}
		c.crash(survivor)
		n := c.nodes[survivor]
		before, err := storage.Examine(n.dir)
		testkit.Must(t, err)

		code, out, errs := runCommand(t, "recover", "--data-dir", n.dir)
		if code != config.ExitFault || !strings.Contains(out, "Nothing was done") {
			t.Fatalf("without the flag: exit %d\n%s%s", code, out, errs)
		}
		code, out, errs = runCommand(t, "recover", "--data-dir", n.dir, "--force-new-cluster")
		if code != config.ExitOK {
			t.Fatalf("exit %d\n%s%s", code, out, errs)
		}
		for id := range uint64(3) {
			if dropped := strings.Contains(out, fmt.Sprintf("dropped          node %d ", id+1)); dropped == (id+1 == survivor) {
				t.Errorf("node %d, with %d recovered:\n%s", id+1, survivor, out)
			}
		}
		c.start(survivor) // with its old command line
		cluster := c.nodes[survivor].srv.node.cluster
		if cluster == before.Identity.ClusterID {
			t.Error("it is still the same cluster")
		}
		c.want(survivor, "acknowledged", acked)
		c.want(survivor, "unknown", unknown)
		for id := range uint64(3) {
			if id+1 != survivor {
				c.joinCluster(survivor, id+1, cluster)
			}
		}
		c.crash(survivor)
		c.start(survivor)
		res, _ := c.do(0, c.followers()[0], history.Input{Kind: history.Put, Key: "acknowledged", Value: c.value()})
		if res.Err != nil || res.Revision <= before.Snapshot.Revision+state.RevisionJump {
			t.Errorf("a new write: %+v", res)
		}
	})
}

// joinCluster adds a node with an empty directory to a cluster that has another
// ID than its members say.
func (c *simCluster) joinCluster(via, id, cluster uint64) {
	c.t.Helper()
	if err := c.change(via, addRequest(id)); err != nil {
		c.t.Fatal(err)
	}
	n := &simNode{id: id, join: true, dir: c.nodeDir(id, 100)}
	testkit.Must(c.t, os.MkdirAll(n.dir, 0o700))
	testkit.Must(c.t, storage.Create(zap.NewNop(), n.dir, storage.Identity{Format: storage.DirFormat, Node: id, Instance: storage.NewInstance(), ClusterID: cluster}, state.First(nil)))
	c.nodes[id] = n
	c.start(id)
	c.awaitVoter(via, id)
}

// Guarantee: what was restored on every node starts as one cluster, with the
// keys of the backup and revisions above its.
func TestSimRestore(t *testing.T) {
	simulate(t, 0, func(c *simCluster) {
		old := statetest.Full(t, 5, 77)
		file := storagetest.BackupFile(t, old)
		for id := range uint64(3) {
			c.peers = append(c.peers, address.Peer{ID: id + 1, URL: simURL(id + 1)})
		}
		for _, p := range c.peers {
			n := &simNode{id: p.ID, dir: c.nodeDir(p.ID, 0)}
			if code, out, errs := runCommand(t, "restore", file, "--id", fmt.Sprint(p.ID), "--data-dir", n.dir, "--cluster", address.FormatPeers(c.peers)); code != config.ExitOK {
				t.Fatalf("exit %d\n%s%s", code, out, errs)
			}
			c.nodes[p.ID] = n
			c.start(p.ID)
		}
		res, _ := c.do(0, c.leader(), history.Input{Kind: history.Put, Key: "new", Value: c.value()})
		if res.Err != nil || res.Revision != old.Revision+state.RevisionJump+1 {
			t.Errorf("the first write: %+v", res)
		}
		old.Scan(func(key string, it *state.Item) bool {
			for _, id := range c.up() {
				if got, _ := c.nodes[id].srv.kv.get(key); got == nil || string(got.Value) != string(it.Value) || got.ModRevision != it.ModRevision {
					t.Errorf("node %d has %+v under %q", id, got, key)
				}
			}
			return true
		})
	})
}

// runCommand runs the program with a command.
func runCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), args, func(string) (string, bool) { return "", false }, &out, &errs)
	return code, out.String(), errs.String()
}
