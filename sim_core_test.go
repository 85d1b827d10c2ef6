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
		c.Leader()
		for i := range 20 {
			writer, v := uint64(i%3+1), c.Value()
			c.Put(writer, "k", v)
			for id := range uint64(3) {
				c.Want(id+1, "k", v)
			}
		}
	})
}

// An isolated leader acknowledges nothing and serves no linearizable read; its
// unacknowledged writes do not come back as acknowledged ones.
func TestSimIsolatedLeader(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		old := c.Leader()
		c.Put(old, "k", c.Value())
		for _, id := range c.Up() {
			if ms, ok := c.Nodes[id].Life.api.keys.Fresh.LeaderContact(); !ok || ms > 250 { // two heartbeats, and how long messages take
				t.Errorf("node %d has heard from a leader %d ms ago, %t", id, ms, ok)
			}
		}
		c.Net.Isolate(old, c.Followers()...)
		isolated := time.Now()
		// What a stale read there says of its age holds, while it still takes
		// itself for the leader and later.
		contact := func() {
			t.Helper()
			ms, ok := c.Nodes[old].Life.api.keys.Fresh.LeaderContact()
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
		res, _ := c.Do(1, old, history.Input{Kind: history.Put, Key: "k", Value: c.Value()})
		if !errors.Is(res.Err, problem.ErrOutcomeUnknown) {
			t.Errorf("write on an isolated leader: %v", res.Err)
		}
		if res, it := c.Do(1, old, history.Input{Kind: history.Get, Key: "k"}); res.Err == nil {
			t.Errorf("read on an isolated leader: %+v", it)
		}
		<-watched
		var other uint64
		c.Await("another leader", func() bool {
			for _, id := range c.Up() {
				l, _, _ := c.Nodes[id].Life.node.leaders.Get()
				if id != old && l != 0 && l != old {
					other = l
				}
			}
			return other != 0
		})
		v := c.Value()
		c.Put(other, "k", v)
		contact()
		c.Net.Heal()
		c.Await("the old leader to follow", func() bool {
			l, _, _ := c.Nodes[old].Life.node.leaders.Get()
			return l != 0 && l != old
		})
		c.Want(old, "k", v)
	})
}

// A leader that dies in the middle of writes costs time, not writes: requests
// on the other nodes wait for the next leader, and succeed.
func TestSimLeaderCrashUnderLoad(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		followers := c.Followers()
		done := make(chan error, 16)
		for i := range 16 {
			go func() {
				for n := range 40 {
					id := followers[(i+n)%2]
					key := fmt.Sprintf("k%d", i%4)
					res, _ := c.Do(i, id, history.Input{Kind: history.Put, Key: key, Value: c.Value()})
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
		c.Crash(leader)
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
			old := c.Leader()
			v := c.Value()
			c.Put(old, "k", v)
			_, term, _ := c.Nodes[old].Life.node.leaders.Get()
			c.Crash(old)
			done := make(chan struct{})
			for _, id := range c.Up() {
				go func() {
					defer func() { done <- struct{}{} }()
					leaders := c.Nodes[id].Life.node.leaders
					for l, now, changed := leaders.Get(); l == 0 || now == term; l, now, changed = leaders.Get() {
						<-changed
					}
					began := time.Now()
					c.Want(id, "k", v)
					if took := time.Since(began); took > 250*time.Millisecond { // half of retryAfter
						t.Errorf("a read on node %d took %v", id, took)
					}
				}()
			}
			<-done
			<-done
			c.Start(old)
		}
	})
}

// A round of reads asks no more followers than it takes. When one of these hears nothing
// any more, reads go on, late by a few milliseconds once.
func TestSimReadsAskAQuorum(t *testing.T) {
	for _, size := range []int{3, 5} {
		simulate(t, size, func(c *simCluster) {
			leader, v := c.Leader(), c.Value()
			c.Put(leader, "k", v)
			const reads = 200
			before := c.Net.ReadQuestions()
			for range reads {
				c.Want(leader, "k", v)
			}
			asked, least := c.Net.ReadQuestions()-before, reads*(size/2)
			if asked < least || asked > least*3/2 {
				t.Errorf("%d reads of %d nodes asked %d times, %d would do", reads, size, asked, least)
			}
			for _, id := range c.Followers() {
				c.Net.Isolate(id, c.Up()...)
				for range 3 {
					began := time.Now()
					c.Want(leader, "k", v)
					if took := time.Since(began); took > 50*time.Millisecond { // a tenth of retryAfter
						t.Errorf("with node %d cut off, a read took %v", id, took)
					}
				}
				c.Net.Heal()
			}
		})
	}
}

// Without a majority a request ends, in time and with the right error, and
// nothing that was refused happens later.
func TestSimNoQuorum(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		c.Put(leader, "k", c.Value())
		for _, id := range c.Followers() {
			c.Crash(id)
		}
		began := time.Now()
		res, _ := c.Do(1, leader, history.Input{Kind: history.Put, Key: "k", Value: c.Value()})
		if !errors.Is(res.Err, problem.ErrNoLeader) && !errors.Is(res.Err, problem.ErrOutcomeUnknown) {
			t.Errorf("write without a quorum: %v", res.Err)
		}
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("it took %v", took)
		}
		res, _ = c.Do(1, leader, history.Input{Kind: history.Put, Key: "k", Value: c.Value()})
		if !errors.Is(res.Err, problem.ErrNoLeader) {
			t.Errorf("write when the leader has stepped down: %v", res.Err)
		}
		if res, _ := c.Do(1, leader, history.Input{Kind: history.Get, Key: "k"}); res.Err == nil {
			t.Error("read without a quorum succeeded")
		}
	})
}

// Everything acknowledged survives the crash of all nodes at once.
func TestSimCrashAll(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		v := ""
		for i := range 5 {
			v = c.Value()
			c.Put(c.Leader(), "k", v)
			for id := range uint64(3) {
				c.Crash(id + 1)
			}
			for id := range uint64(3) {
				c.Start(id + 1)
			}
			c.Want(uint64(i%3+1), "k", v)
		}
	})
}

// A single node serves what it acknowledged right after a crash: the commit
// index on its disk may be older than that, and a read must wait for the log.
func TestSimSingleNodeReadsAfterCrash(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		for range 10 {
			v := c.Value()
			c.Put(1, "k", v)
			c.Crash(1)
			c.Start(1)
			c.Want(1, "k", v)
			if ms, ok := c.Nodes[1].Life.api.keys.Fresh.LeaderContact(); ms != 0 || !ok {
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
			old := c.Leader()
			c.Net.Isolate(old, c.Followers()...)
			c.Do(1, old, history.Input{Kind: history.Put, Key: "a", Value: c.Value()})
			c.Await("another leader", func() bool {
				for _, id := range c.Up() {
					l, _, _ := c.Nodes[id].Life.node.leaders.Get()
					if id != old && l != 0 && l != old {
						return true
					}
				}
				return false
			})
			for _, id := range c.Up() {
				if id != old {
					c.Put(id, "a", c.Value())
				}
			}
			c.Crash(old)
			c.Net.Heal()
			c.Start(old)
		}
	})
}

// A follower that was down for longer than the log reaches back catches up by
// a snapshot, and so do its retry windows: writes through it go on.
func TestSimSnapshotCatchUp(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 10 }
	simulateWith(t, 3, small, func(c *simCluster) {
		c.Leader()
		c.Crash(3)
		for range 60 { // more than the log keeps in memory
			c.Put(c.Leader(), "k", c.Value())
		}
		c.Await("the log to be compacted", func() bool {
			first, err := c.Nodes[c.Leader()].Life.storage.Mem.FirstIndex()
			return err == nil && first > 5
		})
		c.Start(3)
		v := c.Value()
		c.Put(3, "k", v)
		c.Want(3, "k", v)
		if c.Nodes[3].Life.storage.SnapIndex.Load() <= state.FirstIndex {
			t.Error("node 3 caught up without a snapshot")
		}
		c.Crash(3) // what it installed must be on its disk
		c.Start(3)
		c.Want(3, "k", v)
	})
}

// A graceful stop hands leadership over, so that writes hardly wait.
func TestSimGracefulStop(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		c.Put(leader, "k", c.Value())
		other := c.Followers()[0]
		c.Stop(leader)
		began := time.Now()
		c.Put(other, "k", c.Value())
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
			c.Put(1, "k", c.Value())
			want := c.Nodes[1].Life.node.status.Load().Commit
			c.Stop(1)
			log, err := walfile.Read(filepath.Join(c.Nodes[1].Dir, "wal"))
			if err != nil || log.Hard.GetCommit() < want {
				t.Errorf("commit index %d, want %d; %v", log.Hard.GetCommit(), want, err)
			}
			c.Start(1)
		}
	})
}
