//go:build unix

package main

import (
	"context"
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/entry"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
)

// Random faults under random requests: whatever the network and the nodes do,
// the history is linearizable, and the cluster comes back. The schedule is
// drawn from the seed.
func TestSimChaos(t *testing.T) {
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) { simChaos(t) })
	}
}

// simChaos is one such run.
func simChaos(t *testing.T) { simChaosOn(t, func(*simCluster) {}) }

func simChaosOn(t *testing.T, set func(*simCluster)) {
	small := func(c *simCluster) {
		c.tweak = func(cfg *config.Config) { cfg.SnapshotCount, cfg.CheckInterval = 20, 100*time.Millisecond }
		set(c)
	}
	simulateSet(t, 3, small, func(c *simCluster) {
		c.Leader()
		c.Net.SpoilSnapshots(0.3)
		var clients sync.WaitGroup
		for i := range 5 {
			clients.Go(func() { c.RandomClient(i) })
		}
		done := make(chan struct{})
		go func() { clients.Wait(); close(done) }()
		c.RandomFaults(done)
		c.Ask = nil // the global check asks the nodes themselves
	})
}

// Healthy clusters on their worst days. Each test ends in the global check, which
// includes that no node doubted a message, and none was ended or accused.

// Whatever the network delays, repeats and reorders, and whoever crashes, no node
// takes it for a sign that another has forgotten something.
func TestSoakSimChaos(t *testing.T) {
	for range testkit.SoakOr(2, 1000) {
		simChaos(t)
	}
}

// Nodes that crash under load, leaders and followers, come back with all that
// they have promised.
func TestSoakSimCrashes(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Leader()
		done := make(chan struct{})
		var clients sync.WaitGroup
		for i := range 3 {
			clients.Go(func() {
				for {
					select {
					case <-done:
						return
					case <-time.After(time.Millisecond):
					}
					c.Lives.Lock()
					srv := c.Nodes[uint64(i)+1].Life
					c.Lives.Unlock()
					if srv != nil {
						srv.proposals.Propose(context.Background(), state.EncodeWrite(state.KindPut, state.Condition{}, fmt.Sprint("k", i), []byte("v")))
					}
				}
			})
		}
		for n := range testkit.SoakOr(10, 1000) {
			id := c.Rng.Uint64N(3) + 1
			c.Restart(id)
			if n%4 == 0 {
				time.Sleep(time.Duration(c.Rng.Int64N(int64(2 * time.Second))))
				continue
			}
			c.Await("the node is back", func() bool { return c.Nodes[id].Life.caughtUp.Load() })
		}
		close(done)
		clients.Wait()
	})
}

// A follower that is far behind hears of a commit index far beyond its log, and
// catches up, by the log or by a snapshot.
func TestSoakSimFarBehind(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		behind := c.Followers()[0]
		for n := range testkit.SoakOr(2, 100) {
			entries := testkit.SoakOr(3000, 100_000)
			if n%2 == 0 {
				entries /= 5 // few enough to be in the leader's memory
			}
			c.Net.Isolate(behind, 6-leader-behind, leader)
			c.fill(leader, entries)
			c.Net.Heal()
			for range 20 {
				c.Put(leader, "k", c.Value())
			}
			c.Await("it has caught up", func() bool {
				return c.Nodes[behind].Life.kv.applied.Get() >= c.Nodes[leader].Life.kv.applied.Get()
			})
		}
	})
}

// fill puts entries into a leader's log that change nothing.
func (c *simCluster) fill(leader uint64, entries int) {
	c.T.Helper()
	node := c.Nodes[leader].Life.node
	want := c.Nodes[leader].Life.kv.applied.Get()
	for left := entries; left > 0; {
		n := min(left, 500)
		err := node.call(context.Background(), func(rn *raft.RawNode) {
			for range n {
				// Of a node that is no member, so nobody waits for it.
				data := entry.AppendCommand(entry.AppendHeader(nil, state.BatchID{Node: 99}), state.EncodeWrite(state.KindPut, state.Condition{}, "k", nil))
				if err := rn.Propose(data); err != nil {
					c.T.Error(err)
				}
			}
		})
		if err != nil {
			c.T.Fatal(err)
		}
		left -= n
		want += uint64(n)
		c.Await("the entries are applied", func() bool { return c.Nodes[leader].Life.kv.applied.Get() >= want })
	}
}
