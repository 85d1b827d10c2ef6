//go:build unix

package main

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// lagBehind lets a follower need a snapshot: it is down while the log moves on
// for longer than the others keep it in memory.
func (c *simCluster) lagBehind(id uint64) {
	c.t.Helper()
	c.crash(id)
	for range 60 {
		c.put(c.leader(), "k", c.value())
	}
}

// wantOneStateFile checks that nothing is left in a node's snap directory but
// the snapshot that counts.
func (c *simCluster) wantOneStateFile(id uint64) {
	c.t.Helper()
	c.await("only one file in snap/", func() bool {
		files, err := os.ReadDir(filepath.Join(c.nodes[id].dir, "snap"))
		return err == nil && len(files) == 1 && strings.HasSuffix(files[0].Name(), ".state")
	})
}

// Transfers that break off, and ones that arrive with a bit flipped, leave
// nothing behind, do not reach raft, and are tried again until one is good.
func TestSimSnapshotSpoiled(t *testing.T) {
	small := func(cfg *config) { cfg.SnapshotCount = 10 }
	simulateWith(t, 3, small, func(c *simCluster) {
		follower := c.followers()[0]
		c.lagBehind(follower)
		c.net.spoilSnapshots(1)
		c.start(follower)
		c.await("a few transfers to fail", func() bool {
			c.net.mu.Lock()
			defer c.net.mu.Unlock()
			return c.net.transfers >= 5
		})
		if at := c.nodes[follower].srv.storage.snapIndex.Load(); at != c.nodes[follower].srv.storage.newest.Load().GetMetadata().GetIndex() {
			t.Errorf("node %d has a snapshot at %d that it announces as another", follower, at)
		}
		c.net.spoilSnapshots(0)
		v := c.value()
		c.put(follower, "k", v)
		c.want(follower, "k", v)
		for _, id := range c.up() {
			c.wantOneStateFile(id)
		}
	})
}

// The node that sends a snapshot, or the one that receives it, is killed in the
// middle of it; after a restart all goes on.
func TestSimSnapshotCrashMidway(t *testing.T) {
	for _, who := range []string{"sender", "receiver"} {
		t.Run(who, func(t *testing.T) {
			small := func(cfg *config) { cfg.SnapshotCount = 10 }
			simulateWith(t, 3, small, func(c *simCluster) {
				follower := c.followers()[0]
				c.lagBehind(follower)
				crashed := make(chan uint64, 1)
				var once sync.Once
				c.net.mu.Lock()
				c.net.midway = func(from, to uint64) {
					once.Do(func() {
						victim := from
						if who == "receiver" {
							victim = to
						}
						c.crash(victim)
						crashed <- victim
					})
				}
				c.net.mu.Unlock()
				c.start(follower)
				victim := <-crashed
				if who == "receiver" {
					files, err := os.ReadDir(filepath.Join(c.nodes[victim].dir, "snap"))
					if err != nil || len(files) < 2 {
						t.Errorf("it was not in the middle of receiving: %v, %v", files, err)
					}
				}
				c.start(victim)
				v := c.value()
				c.put(c.leader(), "k", v)
				c.want(follower, "k", v)
				for _, id := range c.up() {
					c.wantOneStateFile(id)
				}
			})
		})
	}
}
