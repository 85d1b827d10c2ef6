//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/testkit"
	"raftkv/internal/transport"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// lagBehind lets a follower need a snapshot: it is down while the log moves on
// for longer than the others keep it in memory.
func (c *simCluster) lagBehind(id uint64) {
	c.T.Helper()
	c.Crash(id)
	for range 60 {
		c.Put(c.Leader(), "k", c.Value())
	}
}

// wantOneStateFile checks that nothing is left in a node's snap directory but
// the snapshot that counts.
func (c *simCluster) wantOneStateFile(id uint64) {
	c.T.Helper()
	c.Await("only one file in snap/", func() bool {
		files, err := os.ReadDir(filepath.Join(c.Nodes[id].Dir, "snap"))
		return err == nil && len(files) == 1 && strings.HasSuffix(files[0].Name(), ".state")
	})
}

// Transfers that break off, and ones that arrive with a bit flipped, leave
// nothing behind, do not reach raft, and are tried again until one is good.
func TestSimSnapshotSpoiled(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 10 }
	simulateWith(t, 3, small, func(c *simCluster) {
		follower := c.Followers()[0]
		c.lagBehind(follower)
		c.Net.SpoilSnapshots(1)
		c.Start(follower)
		before := c.Nodes[follower].Life.storage.SnapIndex.Load()
		c.Await("transfers to fail, in both ways", func() bool { return c.Net.Transfers() >= 12 })
		if at := c.Nodes[follower].Life.storage.SnapIndex.Load(); at != before {
			t.Errorf("node %d has a snapshot at %d, and none came whole", follower, at)
		}
		c.Net.SpoilSnapshots(0)
		v := c.Value()
		c.Put(follower, "k", v)
		c.Want(follower, "k", v)
		for _, id := range c.Up() {
			c.wantOneStateFile(id)
		}
	})
}

// The node that sends a snapshot, or the one that receives it, is killed in the
// middle of it; after a restart all goes on.
func TestSimSnapshotCrashMidway(t *testing.T) {
	for _, who := range []string{"sender", "receiver"} {
		t.Run(who, func(t *testing.T) {
			small := func(cfg *config.Config) { cfg.SnapshotCount = 10 }
			simulateWith(t, 3, small, func(c *simCluster) {
				follower := c.Followers()[0]
				c.lagBehind(follower)
				crashed := make(chan uint64, 1)
				var once sync.Once
				c.Net.Midway(func(from, to uint64) {
					once.Do(func() {
						victim := from
						if who == "receiver" {
							victim = to
						}
						c.Crash(victim)
						crashed <- victim
					})
				})
				c.Start(follower)
				victim := <-crashed
				if who == "receiver" {
					files, err := os.ReadDir(filepath.Join(c.Nodes[victim].Dir, "snap"))
					if err != nil || len(files) < 2 {
						t.Errorf("it was not in the middle of receiving: %v, %v", files, err)
					}
				}
				c.Start(victim)
				v := c.Value()
				c.Put(c.Leader(), "k", v)
				c.Want(follower, "k", v)
				for _, id := range c.Up() {
					c.wantOneStateFile(id)
				}
			})
		})
	}
}

// slowTransfer makes the next snapshots stand still in the middle, the first for
// a time.
func (c *simCluster) slowTransfer(first time.Duration) {
	var slept atomic.Bool
	c.Net.Midway(func(uint64, uint64) {
		if slept.CompareAndSwap(false, true) {
			time.Sleep(first)
		}
	})
}

// While a snapshot is on its way, the log behind it is kept, although it grows
// far beyond the tail: when it has arrived, the follower needs no other.
func TestSimSnapshotSlow(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 100 }
	simulateWith(t, 3, small, func(c *simCluster) {
		follower := c.Followers()[0]
		c.Crash(follower)
		for range 300 {
			c.Put(c.Leader(), "k", c.Value())
		}
		c.slowTransfer(8 * time.Second) // many election timeouts
		c.Start(follower)
		c.Await("the transfer to begin", func() bool { return c.Net.Transfers() == 1 })
		for range 240 {
			c.Put(c.Leader(), "k", c.Value())
			time.Sleep(30 * time.Millisecond)
		}
		v := c.Value()
		c.Put(follower, "k", v)
		c.Want(follower, "k", v)
		if n := c.Net.Transfers(); n != 1 {
			t.Errorf("it took %d transfers", n)
		}
	})
}

// A transfer that stands still, as to a peer that is gone without a word, is
// given up and tried again, long before the kernel would; and until then there
// is no second one to the same node.
func TestSimSnapshotStalled(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 10 }
	simulateWith(t, 3, small, func(c *simCluster) {
		follower := c.Followers()[0]
		c.lagBehind(follower)
		c.slowTransfer(10 * time.Minute)
		c.Start(follower)
		time.Sleep(transport.StallLimit - 2*time.Second)
		if n := c.Net.Transfers(); n != 1 {
			t.Errorf("%d transfers while one stood still", n)
		}
		v := c.Value()
		c.Put(c.Leader(), "k", v)
		c.Await("the follower to catch up", func() bool {
			it, _ := c.Nodes[follower].Life.kv.Get("k")
			return it != nil && string(it.Value) == v
		})
		time.Sleep(10 * time.Minute) // the goroutine that stood still ends
	})
}

// stateNames are the names of the state files in a node's snap directory.
func (c *simCluster) stateNames(id uint64) []string {
	c.T.Helper()
	names, err := filepath.Glob(filepath.Join(c.Nodes[id].Dir, "snap", "*.state"))
	if err != nil {
		c.T.Fatal(err)
	}
	return names
}

// A snapshot is on its way to a slow follower while two newer ones are taken: its
// file stays until the follower has it, and goes then. When the sender is killed
// meanwhile, its next start removes it.
func TestSimSnapshotOutlivesNewerOnes(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprint("killed=", killed), func(t *testing.T) {
			small := func(cfg *config.Config) { cfg.SnapshotCount = 10 }
			simulateWith(t, 3, small, func(c *simCluster) {
				follower := c.Followers()[0]
				c.lagBehind(follower)
				leader := c.Leader()
				begun, goOn := make(chan []string, 1), make(chan struct{})
				var once sync.Once
				c.Net.Midway(func(uint64, uint64) {
					once.Do(func() {
						begun <- c.stateNames(leader)
						<-goOn
					})
				})
				c.Start(follower)
				sent := (<-begun)[0]
				st := c.Nodes[leader].Life.storage
				for range 2 {
					at := st.SnapIndex.Load()
					for st.SnapIndex.Load() == at {
						c.Put(leader, "k", c.Value())
					}
				}
				time.Sleep(transport.StallLimit / 2) // for all that goes by itself
				if names := c.stateNames(leader); len(names) != 2 || names[0] != sent {
					t.Errorf("while %s is on its way: %v", sent, names)
				}
				if killed {
					c.Crash(leader)
				}
				close(goOn)
				if killed {
					c.Start(leader)
				}
				v := c.Value()
				c.Put(c.Leader(), "k", v)
				c.Want(follower, "k", v)
				for _, id := range c.Up() {
					c.wantOneStateFile(id)
				}
			})
		})
	}
}

// Guarantee: a snapshot that a leader was about to send when another came to lead is not sent
// in the name of the earlier term, and nobody takes its sender for a stranger.
func TestSimSnapshotOfADeposedLeader(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		old := c.Leader()
		c.Put(old, "k", c.Value())
		srv, to := c.Nodes[old].Life, c.Followers()[0]
		m := &raftpb.Message{
			Type: raftpb.MsgSnap.Enum(), From: new(old), To: new(to), Term: new(srv.node.status.Load().Term),
			Snapshot: srv.storage.Newest.Load(),
		}
		srv.HandOver()
		c.Await("another leader", func() bool { return c.Leader() != old })
		c.Put(old, "k", c.Value())
		index := srv.kv.applied.Get()
		srv.kv.AskForSnapshot(index)
		c.Await("a snapshot with entries of that leader's", func() bool { return srv.storage.SnapIndex.Load() >= index })
		testkit.Must(t, srv.node.call(context.Background(), func(rn *raft.RawNode) { srv.node.courier.Deliver(rn, m) }))
		c.Await("the end of the transfer", func() bool { return srv.storage.Snapshots.Unsent.Load() > 0 })
		if n := c.Net.Transfers(); n != 0 {
			t.Errorf("%d snapshots were sent", n)
		}
	})
}
