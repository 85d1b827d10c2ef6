//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/checker"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"sync"
	"testing"
	"time"
)

// A cluster in which nothing happens writes nothing, but for a full check now
// and then.
func TestSimIdleClusterRests(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Leader()
		c.awaitLevel(c.Up()...)
		c.Put(1, "k", c.Value())
		c.awaitCheck(c.Up()...)
		time.Sleep(time.Minute)
		at := c.Nodes[1].Life.kv.Status().Index
		time.Sleep((checker.FullEvery - 10) * 10 * time.Second)
		if now := c.Nodes[1].Life.kv.Status().Index; now != at {
			t.Errorf("%d entries were written", now-at)
		}
		time.Sleep(10 * 10 * time.Second)
		if now := c.Nodes[1].Life.kv.Status().Index; now == at || now > at+4 {
			t.Errorf("%d entries were written for a full check", now-at)
		}
		if c.checked(2) <= at {
			t.Error("the full check was not decided")
		}
	})
}

// Checks are made although leadership moves so that whoever leads when its own
// interval ends has only just stopped: nodes 1 and 2, which take turns, count
// from times half an interval apart.
func TestSimCheckWhileLeadersChange(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		began := time.Now()
		interval := c.config(c.Nodes[1]).CheckInterval
		moveAt := func(at time.Duration, id uint64) {
			time.Sleep(time.Until(began.Add(at)))
			c.mustChange(1, reconfig.Request{Op: membership.OpLead, ID: id})
			c.Put(1, "k", c.Value())
		}
		c.awaitLevel(c.Up()...)
		moveAt(interval/4, 1)
		time.Sleep(time.Until(began.Add(interval / 2)))
		c.Crash(2)
		c.Start(2)
		const rounds = 6
		for i := time.Duration(1); i <= rounds; i++ {
			moveAt(i*interval-interval/10, 2)
			moveAt(i*interval+interval/10, 1)
		}
		if n := c.Nodes[1].Life.kv.agreement.Decided.Load(); n < rounds/2 || n > rounds+1 {
			t.Errorf("%d checks in %d intervals", n, rounds)
		}
	})
}

// Checks can be turned off.
func TestSimNoChecks(t *testing.T) {
	simulateWith(t, 3, func(cfg *config.Config) { cfg.CheckInterval = 0 }, func(c *simCluster) {
		c.Leader()
		c.awaitLevel(c.Up()...)
		c.Put(1, "k", c.Value())
		time.Sleep(10 * time.Minute)
		if c.checked(1) != 0 {
			t.Error("there was a check")
		}
	})
}

// A node that starts again does not take a check of the past for one of now.
func TestSimCheckedAtAfterRestart(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Leader()
		c.awaitLevel(c.Up()...)
		c.Put(1, "k", c.Value())
		c.awaitCheck(c.Up()...)
		for _, id := range c.Up() {
			c.Crash(id)
			c.Start(id)
			srv := c.Nodes[id].Life
			c.Await("the node to catch up", srv.caughtUp.Load)
			time.Sleep(srv.cfg.ElectionTimeout) // it has looked
			if st := srv.status(); st.CheckedIndex == 0 || st.CheckedAt != nil {
				t.Errorf("node %d: check %d was seen at %v", id, st.CheckedIndex, st.CheckedAt)
			}
		}
		began := time.Now()
		c.Put(1, "k", c.Value())
		c.awaitCheck(c.Up()...)
		time.Sleep(time.Second)
		for _, id := range c.Up() {
			if at := c.Nodes[id].Life.status().CheckedAt; at == nil || at.Before(began) || at.After(time.Now()) {
				t.Errorf("node %d: the check was seen at %v, between %v and %v", id, at, began, time.Now())
			}
		}
	})
}

// Members that come and go between and within checks, and nodes that get there
// by snapshots, never make a false alarm: simCluster.check looks for one.
func TestSimChecksAmongChanges(t *testing.T) {
	quick := func(cfg *config.Config) { cfg.SnapshotCount, cfg.CheckInterval = 20, 100*time.Millisecond }
	simulateWith(t, 3, quick, func(c *simCluster) {
		c.Leader()
		c.awaitLevel(c.Up()...)
		stop := make(chan struct{})
		var writers sync.WaitGroup
		defer writers.Wait()
		defer sync.OnceFunc(func() { close(stop) })()
		for i := range 3 {
			srv := c.Nodes[uint64(i)+1].Life
			writers.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					case <-srv.life.Done():
						return
					case <-time.After(7 * time.Millisecond):
						cmd := state.EncodeWrite(state.KindPut, state.Condition{}, fmt.Sprint("w", n%50), []byte(c.Value()))
						srv.proposals.Propose(context.Background(), cmd)
					}
				}
			})
		}
		for id := uint64(4); id < 8; id++ {
			via := c.Leader()
			if err := c.change(via, addRequest(id)); err != nil {
				t.Fatal(err)
			}
			c.Join(id)
			c.awaitVoter(via, id)
			c.Crash(id)
			time.Sleep(time.Duration(c.Rng.Int64N(int64(time.Second))))
			c.Start(id)
			gone := id - 3
			c.Await(fmt.Sprint("the removal of ", gone), func() bool {
				return c.change(id, reconfig.Request{Op: membership.OpRemove, ID: gone}) == nil
			})
			if err := c.Ended(gone); !errors.Is(err, problem.ErrRemoved) {
				t.Errorf("node %d ended with: %v", gone, err)
			}
		}
		if c.checked(c.Leader()) == 0 {
			t.Error("there was no check")
		}
	})
}
