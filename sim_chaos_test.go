//go:build unix

package main

import (
	"fmt"
	"math/rand/v2"
	"raftkv/internal/config"
	"raftkv/internal/history"
	"slices"
	"sync"
	"testing"
	"time"
)

// simChaosOps are the operations of one client of the random test.
const simChaosOps = 60

// Random faults under random requests: whatever the network and the nodes do,
// the history is linearizable, and the cluster comes back. The schedule is
// drawn from the seed.
func TestSimChaos(t *testing.T) {
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) { simChaos(t) })
	}
}

// simChaos is one such run.
func simChaos(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount, cfg.CheckInterval = 20, 100*time.Millisecond }
	simulateWith(t, 3, small, func(c *simCluster) {
		c.Leader()
		c.Net.SpoilSnapshots(0.3)
		var clients sync.WaitGroup
		for i := range 5 {
			clients.Go(func() { c.RandomClient(i) })
		}
		done := make(chan struct{})
		go func() { clients.Wait(); close(done) }()
		c.RandomFaults(done)
	})
}

// RandomClient sends requests to random nodes, one after the other.
func (c *simCluster) RandomClient(client int) {
	rng := rand.New(rand.NewPCG(c.Seed, uint64(client)+100))
	for range simChaosOps {
		time.Sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
		id := rng.Uint64N(3) + 1
		in := history.Input{Key: fmt.Sprintf("k%d", rng.IntN(3)), Value: c.Value()}
		switch n := rng.IntN(10); {
		case n < 4:
			in.Kind = history.Get
		case n < 8:
			in.Kind = history.Put
		case n < 9:
			in.Kind = history.Create
		default:
			in.Kind = history.Delete
		}
		c.lives <- struct{}{}
		srv := c.Nodes[id].Life
		<-c.lives
		if srv != nil {
			c.DoOn(client, srv, in)
		}
	}
}

// RandomFaults makes trouble until done is closed.
func (c *simCluster) RandomFaults(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(c.Rng.Int64N(int64(time.Second)))):
		}
		id := c.Rng.Uint64N(3) + 1
		others := slices.DeleteFunc([]uint64{1, 2, 3}, func(o uint64) bool { return o == id })
		switch c.Rng.IntN(8) {
		case 0:
			c.Net.Isolate(id, others...)
		case 1:
			c.Net.Sever(id, others[c.Rng.IntN(2)])
		case 2:
			c.Net.Disturb(0.2*c.Rng.Float64(), 0.3*c.Rng.Float64(), 100*time.Millisecond)
		case 3, 4:
			c.Net.Heal()
		case 5, 6:
			c.Restart(id)
		case 7:
			for _, id := range []uint64{1, 2, 3} {
				c.Restart(id)
			}
		}
	}
}

// Restart crashes a node and starts it again.
func (c *simCluster) Restart(id uint64) {
	c.lives <- struct{}{}
	defer func() { <-c.lives }()
	c.Crash(id)
	c.Start(id)
}
