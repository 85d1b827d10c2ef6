//go:build unix

package main

import (
	"fmt"
	"raftkv/internal/config"
	"sync"
	"testing"
	"time"
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
