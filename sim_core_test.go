//go:build unix

package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/history"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/walfile"
	"testing"
	"time"
)

// A write on one node is read at once on every other.
func TestSimReadYourWritesEverywhere(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.leader()
		for i := range 20 {
			writer, v := uint64(i%3+1), c.value()
			c.put(writer, "k", v)
			for id := range uint64(3) {
				c.want(id+1, "k", v)
			}
		}
	})
}

// An isolated leader acknowledges nothing and serves no linearizable read; its
// unacknowledged writes do not come back as acknowledged ones.
func TestSimIsolatedLeader(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		old := c.leader()
		c.put(old, "k", c.value())
		for _, id := range c.up() {
			if ms, ok := c.nodes[id].srv.api.fresh.LeaderContact(); !ok || ms > 250 { // two heartbeats, and how long messages take
				t.Errorf("node %d has heard from a leader %d ms ago, %t", id, ms, ok)
			}
		}
		c.net.isolate(old, c.followers()...)
		isolated := time.Now()
		// What a stale read there says of its age holds, while it still takes
		// itself for the leader and later.
		contact := func() {
			t.Helper()
			ms, ok := c.nodes[old].srv.api.fresh.LeaderContact()
			if since := time.Since(isolated).Milliseconds(); !ok || ms < since {
				t.Errorf("cut off for %d ms, it says %d, %t", since, ms, ok)
			}
		}
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			for range 40 {
				time.Sleep(50 * time.Millisecond)
				contact()
			}
		}()
		res, _ := c.do(1, old, history.Input{Kind: history.Put, Key: "k", Value: c.value()})
		if !errors.Is(res.Err, problem.ErrOutcomeUnknown) {
			t.Errorf("write on an isolated leader: %v", res.Err)
		}
		if res, it := c.do(1, old, history.Input{Kind: history.Get, Key: "k"}); res.Err == nil {
			t.Errorf("read on an isolated leader: %+v", it)
		}
		<-watched
		var other uint64
		c.await("another leader", func() bool {
			for _, id := range c.up() {
				l, _, _ := c.nodes[id].srv.node.leaders.Get()
				if id != old && l != 0 && l != old {
					other = l
				}
			}
			return other != 0
		})
		v := c.value()
		c.put(other, "k", v)
		contact()
		c.net.heal()
		c.await("the old leader to follow", func() bool {
			l, _, _ := c.nodes[old].srv.node.leaders.Get()
			return l != 0 && l != old
		})
		c.want(old, "k", v)
	})
}

// A leader that dies in the middle of writes costs time, not writes: requests
// on the other nodes wait for the next leader, and succeed.
func TestSimLeaderCrashUnderLoad(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.leader()
		followers := c.followers()
		done := make(chan error, 16)
		for i := range 16 {
			go func() {
				for n := range 40 {
					id := followers[(i+n)%2]
					key := fmt.Sprintf("k%d", i%4)
					res, _ := c.do(i, id, history.Input{Kind: history.Put, Key: key, Value: c.value()})
					if res.Err != nil {
						done <- fmt.Errorf("write %d of client %d on node %d: %w", n, i, id, res.Err)
						return
					}
					time.Sleep(time.Millisecond)
				}
				done <- nil
			}()
		}
		time.Sleep(20 * time.Millisecond)
		c.crash(leader)
		for range 16 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// A read that comes when a new leader has not committed anything yet is answered
// as soon as it has; it is not lost, to be asked for again much later.
func TestSimReadsWhileALeaderBegins(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		for range 5 {
			old := c.leader()
			v := c.value()
			c.put(old, "k", v)
			_, term, _ := c.nodes[old].srv.node.leaders.Get()
			c.crash(old)
			done := make(chan struct{})
			for _, id := range c.up() {
				go func() {
					defer func() { done <- struct{}{} }()
					leaders := c.nodes[id].srv.node.leaders
					for l, now, changed := leaders.Get(); l == 0 || now == term; l, now, changed = leaders.Get() {
						<-changed
					}
					began := time.Now()
					c.want(id, "k", v)
					if took := time.Since(began); took > 250*time.Millisecond { // half of retryAfter
						t.Errorf("a read on node %d took %v", id, took)
					}
				}()
			}
			<-done
			<-done
			c.start(old)
		}
	})
}

// Without a majority a request ends, in time and with the right error, and
// nothing that was refused happens later.
func TestSimNoQuorum(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.leader()
		c.put(leader, "k", c.value())
		for _, id := range c.followers() {
			c.crash(id)
		}
		began := time.Now()
		res, _ := c.do(1, leader, history.Input{Kind: history.Put, Key: "k", Value: c.value()})
		if !errors.Is(res.Err, problem.ErrNoLeader) && !errors.Is(res.Err, problem.ErrOutcomeUnknown) {
			t.Errorf("write without a quorum: %v", res.Err)
		}
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("it took %v", took)
		}
		res, _ = c.do(1, leader, history.Input{Kind: history.Put, Key: "k", Value: c.value()})
		if !errors.Is(res.Err, problem.ErrNoLeader) {
			t.Errorf("write when the leader has stepped down: %v", res.Err)
		}
		if res, _ := c.do(1, leader, history.Input{Kind: history.Get, Key: "k"}); res.Err == nil {
			t.Error("read without a quorum succeeded")
		}
	})
}

// Everything acknowledged survives the crash of all nodes at once.
func TestSimCrashAll(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		v := ""
		for i := range 5 {
			v = c.value()
			c.put(c.leader(), "k", v)
			for id := range uint64(3) {
				c.crash(id + 1)
			}
			for id := range uint64(3) {
				c.start(id + 1)
			}
			c.want(uint64(i%3+1), "k", v)
		}
	})
}

// A single node serves what it acknowledged right after a crash: the commit
// index on its disk may be older than that, and a read must wait for the log.
func TestSimSingleNodeReadsAfterCrash(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		for range 10 {
			v := c.value()
			c.put(1, "k", v)
			c.crash(1)
			c.start(1)
			c.want(1, "k", v)
			if ms, ok := c.nodes[1].srv.api.fresh.LeaderContact(); ms != 0 || !ok {
				t.Fatalf("alone, it has heard from a leader %d ms ago, %t", ms, ok)
			}
		}
	})
}

// Conflicting log ends are overwritten: entries that only a minority got do
// not survive the majority's.
func TestSimDivergentLogs(t *testing.T) {
	simulate(t, 5, func(c *simCluster) {
		for range 4 {
			old := c.leader()
			c.net.isolate(old, c.followers()...)
			c.do(1, old, history.Input{Kind: history.Put, Key: "a", Value: c.value()})
			c.await("another leader", func() bool {
				for _, id := range c.up() {
					l, _, _ := c.nodes[id].srv.node.leaders.Get()
					if id != old && l != 0 && l != old {
						return true
					}
				}
				return false
			})
			for _, id := range c.up() {
				if id != old {
					c.put(id, "a", c.value())
				}
			}
			c.crash(old)
			c.net.heal()
			c.start(old)
		}
	})
}

// A follower that was down for longer than the log reaches back catches up by
// a snapshot, and so do its retry windows: writes through it go on.
func TestSimSnapshotCatchUp(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 10 }
	simulateWith(t, 3, small, func(c *simCluster) {
		c.leader()
		c.crash(3)
		for range 60 { // more than the log keeps in memory
			c.put(c.leader(), "k", c.value())
		}
		c.await("the log to be compacted", func() bool {
			first, err := c.nodes[c.leader()].srv.storage.Mem.FirstIndex()
			return err == nil && first > 5
		})
		c.start(3)
		v := c.value()
		c.put(3, "k", v)
		c.want(3, "k", v)
		if c.nodes[3].srv.storage.SnapIndex.Load() <= state.FirstIndex {
			t.Error("node 3 caught up without a snapshot")
		}
		c.crash(3) // what it installed must be on its disk
		c.start(3)
		c.want(3, "k", v)
	})
}

// A graceful stop hands leadership over, so that writes hardly wait.
func TestSimGracefulStop(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.leader()
		c.put(leader, "k", c.value())
		other := c.followers()[0]
		c.stop(leader)
		began := time.Now()
		c.put(other, "k", c.value())
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("after a graceful stop of the leader a write took %v", took)
		}
	})
}

// A node that ends in order has written the commit index, although that alone
// wakes nobody: inspect and recover go by it.
func TestSimCommitIndexIsWritten(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		c.awaitPublished(1)
		for range 5 {
			c.put(1, "k", c.value())
			want := c.nodes[1].srv.node.status.Load().Commit
			c.stop(1)
			log, err := walfile.Read(filepath.Join(c.nodes[1].dir, "wal"))
			if err != nil || log.Hard.GetCommit() < want {
				t.Errorf("commit index %d, want %d; %v", log.Hard.GetCommit(), want, err)
			}
			c.start(1)
		}
	})
}
