//go:build unix

package main

import (
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"slices"
	"sync"
	"testing"
	"time"
)

// Guarantee: additions, appends, transactions, deletions by prefix and times to live are
// linearizable among each other and with writes and reads, whatever the network and the
// nodes do: a request whose outcome is unknown happens at most once, two appends never get
// one key, and no key goes before its time.
func TestSimChaosCommands(t *testing.T) {
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) { simChaosCommands(t) })
	}
}

// TestSoakSimChaosCommands is the same, many times.
func TestSoakSimChaosCommands(t *testing.T) {
	for range testkit.SoakOr(1, 1000) {
		simChaosCommands(t)
	}
}

func simChaosCommands(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount, cfg.CheckInterval = 20, 100*time.Millisecond }
	simulateWith(t, 3, small, func(c *simCluster) {
		c.awaitCommands()
		c.Net.SpoilSnapshots(0.3)
		c.RandomFaults(c.commandClients(0))
	})
}

// Guarantee: where nothing fails, a key is gone two seconds after its time has passed,
// counted from when the request was sent, whatever commands come meanwhile.
func TestSimCalmCommands(t *testing.T) {
	for round := range 2 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			simulate(t, 3, func(c *simCluster) {
				c.awaitCommands()
				<-c.commandClients(2 * time.Second)
				time.Sleep(4 * time.Second) // all that goes away by itself has to be gone in the check
			})
		})
	}
}

// awaitCommands waits until the cluster takes all commands.
func (c *simCluster) awaitCommands() {
	c.T.Helper()
	c.Leader()
	c.Await("all nodes to know that all know all commands", func() bool {
		return !slices.ContainsFunc(c.Up(), func(id uint64) bool { return c.Nodes[id].Life.kv.Status().Level < state.ProgramLevel })
	})
}

// commandClients starts clients, and returns what is closed when they have ended.
func (c *simCluster) commandClients(grace time.Duration) <-chan struct{} {
	var clients sync.WaitGroup
	for i := range 5 {
		clients.Go(func() { c.CommandClient(i, grace) })
	}
	done := make(chan struct{})
	go func() { clients.Wait(); close(done) }()
	return done
}
