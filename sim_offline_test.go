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
	"raftkv/internal/offline"
	"raftkv/internal/problem"
	"raftkv/internal/sim"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// Guarantee: a node that survived alone goes on as a cluster of its own, with
// all that it had acknowledged or may have, and grows again.
func TestSimRecover(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		survivor := c.Leader()
		acked := c.Value()
		c.Put(survivor, "acknowledged", acked)
		for _, id := range c.Followers() {
			c.Crash(id)
			delete(c.Nodes, id) // for good
		}
		unknown := c.Value()
		if res, _ := c.Do(0, survivor, history.Input{Kind: history.Put, Key: "unknown", Value: unknown}); !errors.Is(res.Err, problem.ErrOutcomeUnknown) {
			t.Fatalf("a write without a majority: %v", res.Err)
		}
		c.Crash(survivor)
		n := c.Nodes[survivor]
		before, err := storage.Examine(n.Dir)
		testkit.Must(t, err)

		code, out, errs := runCommand(t, "recover", "--data-dir", n.Dir)
		if code != config.ExitFault || !strings.Contains(out, "Nothing was done") {
			t.Fatalf("without the flag: exit %d\n%s%s", code, out, errs)
		}
		code, out, errs = runCommand(t, "recover", "--data-dir", n.Dir, "--force-new-cluster")
		if code != config.ExitOK {
			t.Fatalf("exit %d\n%s%s", code, out, errs)
		}
		for id := range uint64(3) {
			if dropped := strings.Contains(out, fmt.Sprintf("dropped          node %d ", id+1)); dropped == (id+1 == survivor) {
				t.Errorf("node %d, with %d recovered:\n%s", id+1, survivor, out)
			}
		}
		c.Start(survivor) // with its old command line
		cluster := c.Nodes[survivor].Life.node.cluster
		if cluster == before.Identity.ClusterID {
			t.Error("it is still the same cluster")
		}
		c.Want(survivor, "acknowledged", acked)
		c.Want(survivor, "unknown", unknown)
		for id := range uint64(3) {
			if id+1 != survivor {
				c.joinCluster(survivor, id+1, cluster)
			}
		}
		c.Crash(survivor)
		c.Start(survivor)
		res, _ := c.Do(0, c.Followers()[0], history.Input{Kind: history.Put, Key: "acknowledged", Value: c.Value()})
		if res.Err != nil || res.Revision <= before.Snapshot.Revision+state.RevisionJump {
			t.Errorf("a new write: %+v", res)
		}
	})
}

// joinCluster adds a node with an empty directory to a cluster that has another
// ID than its members say.
func (c *simCluster) joinCluster(via, id, cluster uint64) {
	c.T.Helper()
	if err := c.change(via, addRequest(id)); err != nil {
		c.T.Fatal(err)
	}
	n := &simPlace{ID: id, Join: true, Dir: c.NodeDir(id, 100)}
	testkit.Must(c.T, os.MkdirAll(n.Dir, 0o700))
	testkit.Must(c.T, storage.Create(zap.NewNop(), n.Dir, storage.Identity{Format: storage.DirFormat, Node: id, Instance: storage.NewInstance(), ClusterID: cluster}, state.First(nil)))
	c.Nodes[id] = n
	c.Start(id)
	c.awaitVoter(via, id)
}

// Guarantee: what was restored on every node starts as one cluster, with the
// keys of the backup and revisions above its.
func TestSimRestore(t *testing.T) {
	simulate(t, 0, func(c *simCluster) {
		old := statetest.Full(t, 5, 77)
		file := storagetest.BackupFile(t, old)
		c.Peers = sim.Peers(3)
		for _, p := range c.Peers {
			n := &simPlace{ID: p.ID, Dir: c.NodeDir(p.ID, 0)}
			if code, out, errs := runCommand(t, "restore", file, "--id", fmt.Sprint(p.ID), "--data-dir", n.Dir, "--cluster", address.FormatPeers(c.Peers)); code != config.ExitOK {
				t.Fatalf("exit %d\n%s%s", code, out, errs)
			}
			c.Nodes[p.ID] = n
			c.Start(p.ID)
		}
		res, _ := c.Do(0, c.Leader(), history.Input{Kind: history.Put, Key: "new", Value: c.Value()})
		if res.Err != nil || res.Revision != old.Revision+state.RevisionJump+1 {
			t.Errorf("the first write: %+v", res)
		}
		old.Scan(func(key string, it *state.Item) bool {
			for _, id := range c.Up() {
				if got, _ := c.Nodes[id].Life.kv.Get(key); got == nil || string(got.Value) != string(it.Value) || got.ModRevision != it.ModRevision {
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
	code = run(context.Background(), args, func(string) (string, bool) { return "", false }, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// Guarantee: two nodes at the same index show the same checksum, which is also
// that of a backup.
func TestSimInspectTellsReplicasAlike(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		for i := range 20 {
			c.Put(c.Leader(), fmt.Sprint("k", i%7), c.Value())
		}
		c.Leader()
		var sums []string
		var dirs []string
		for _, id := range c.Up() {
			node := c.Nodes[id]
			c.Await("all applied", func() bool {
				h, at := node.Life.Hash()
				lh, lat := c.Nodes[c.Leader()].Life.Hash()
				return h == lh && at == lat
			})
		}
		st := c.Nodes[1].Life.kv.copyState()
		for _, id := range c.Up() {
			c.Crash(id)
			dirs = append(dirs, c.Nodes[id].Dir)
		}
		for _, dir := range dirs {
			f, err := storage.Examine(dir)
			testkit.Must(t, err)
			now, err := f.Replay(st.Index)
			testkit.Must(t, err)
			digest, err := offline.DigestOf(now)
			testkit.Must(t, err)
			sums = append(sums, fmt.Sprintf("%x", digest))
		}
		_, out, _ := runCommand(t, "inspect", storagetest.BackupFile(t, st))
		if len(slices.Compact(sums)) != 1 || !strings.Contains(out, sums[0]) {
			t.Errorf("%v\n%s", sums, out)
		}
	})
}
