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
		c.leader()
		c.awaitLevel(c.up()...)
		c.put(1, "k", c.value())
		c.awaitCheck(c.up()...)
		time.Sleep(time.Minute)
		at := c.nodes[1].srv.kv.Status().Index
		time.Sleep((checker.FullEvery - 10) * 10 * time.Second)
		if now := c.nodes[1].srv.kv.Status().Index; now != at {
			t.Errorf("%d entries were written", now-at)
		}
		time.Sleep(10 * 10 * time.Second)
		if now := c.nodes[1].srv.kv.Status().Index; now == at || now > at+4 {
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
		interval := c.config(c.nodes[1]).CheckInterval
		moveAt := func(at time.Duration, id uint64) {
			time.Sleep(time.Until(began.Add(at)))
			c.mustChange(1, reconfig.Request{Op: membership.OpLead, ID: id})
			c.put(1, "k", c.value())
		}
		c.awaitLevel(c.up()...)
		moveAt(interval/4, 1)
		time.Sleep(time.Until(began.Add(interval / 2)))
		c.crash(2)
		c.start(2)
		const rounds = 6
		for i := time.Duration(1); i <= rounds; i++ {
			moveAt(i*interval-interval/10, 2)
			moveAt(i*interval+interval/10, 1)
		}
		if n := c.nodes[1].srv.kv.agreement.Decided.Load(); n < rounds/2 || n > rounds+1 {
			t.Errorf("%d checks in %d intervals", n, rounds)
		}
	})
}

// Checks can be turned off.
func TestSimNoChecks(t *testing.T) {
	simulateWith(t, 3, func(cfg *config.Config) { cfg.CheckInterval = 0 }, func(c *simCluster) {
		c.leader()
		c.awaitLevel(c.up()...)
		c.put(1, "k", c.value())
		time.Sleep(10 * time.Minute)
		if c.checked(1) != 0 {
			t.Error("there was a check")
		}
	})
}

// A node that starts again does not take a check of the past for one of now.
func TestSimCheckedAtAfterRestart(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.leader()
		c.awaitLevel(c.up()...)
		c.put(1, "k", c.value())
		c.awaitCheck(c.up()...)
		for _, id := range c.up() {
			c.crash(id)
			c.start(id)
			srv := c.nodes[id].srv
			c.await("the node to catch up", srv.caughtUp.Load)
			time.Sleep(srv.cfg.ElectionTimeout) // it has looked
			if st := srv.status(); st.CheckedIndex == 0 || st.CheckedAt != nil {
				t.Errorf("node %d: check %d was seen at %v", id, st.CheckedIndex, st.CheckedAt)
			}
		}
		began := time.Now()
		c.put(1, "k", c.value())
		c.awaitCheck(c.up()...)
		time.Sleep(time.Second)
		for _, id := range c.up() {
			if at := c.nodes[id].srv.status().CheckedAt; at == nil || at.Before(began) || at.After(time.Now()) {
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
		c.leader()
		c.awaitLevel(c.up()...)
		stop := make(chan struct{})
		var writers sync.WaitGroup
		defer writers.Wait()
		defer sync.OnceFunc(func() { close(stop) })()
		for i := range 3 {
			srv := c.nodes[uint64(i)+1].srv
			writers.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					case <-srv.life.Done():
						return
					case <-time.After(7 * time.Millisecond):
						cmd := state.EncodeWrite(state.KindPut, state.Condition{}, fmt.Sprint("w", n%50), []byte(c.value()))
						srv.proposals.Propose(context.Background(), cmd)
					}
				}
			})
		}
		for id := uint64(4); id < 8; id++ {
			via := c.leader()
			if err := c.change(via, addRequest(id)); err != nil {
				t.Fatal(err)
			}
			c.join(id)
			c.awaitVoter(via, id)
			c.crash(id)
			time.Sleep(time.Duration(c.rng.Int64N(int64(time.Second))))
			c.start(id)
			gone := id - 3
			c.await(fmt.Sprint("the removal of ", gone), func() bool {
				return c.change(id, reconfig.Request{Op: membership.OpRemove, ID: gone}) == nil
			})
			if err := c.ended(gone); !errors.Is(err, problem.ErrRemoved) {
				t.Errorf("node %d ended with: %v", gone, err)
			}
		}
		if c.checked(c.leader()) == 0 {
			t.Error("there was no check")
		}
	})
}
