//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"raftkv/internal/config"
	"raftkv/internal/contact"
	"raftkv/internal/history"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// A founder whose disk is lost and that starts again under its old ID does not
// take part, also when nobody answers at its start: with its forgotten votes
// the cluster would lose acknowledged writes. What it takes is that the first
// peer it meets has heard of it.
func TestSimWipedFounder(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.awaitPublished(1, 2, 3)
		c.Crash(2)
		v := c.Value()
		c.Put(1, "k", v) // on 1 and 3 alone
		c.Crash(1)
		c.Crash(3)
		if err := os.RemoveAll(c.Nodes[1].Dir); err != nil {
			t.Fatal(err)
		}
		c.Start(1) // all alone: nobody can say anything
		time.Sleep(3 * time.Second)
		c.Start(2)
		if err := c.Ended(1); !errors.Is(err, problem.ErrUsedID) {
			t.Errorf("the wiped node ended with: %v", err)
		}
		c.Start(3)
		c.Want(2, "k", v)
		if err := c.change(2, reconfig.Request{Op: membership.OpRemove, ID: 1}); err != nil {
			t.Error(err)
		}
	})
}

// Where a wiped founder is let in by peers that have not heard of it, it ends
// when it meets one that has: two histories are not served as one.
func TestSimWipedFounderAmongStrangers(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Crash(3)
		if err := os.RemoveAll(c.Nodes[3].Dir); err != nil {
			t.Fatal(err)
		}
		c.Put(c.Leader(), "k", c.Value())
		c.awaitPublished(1, 2)
		c.Crash(1)
		c.Crash(2)
		if err := os.RemoveAll(c.Nodes[1].Dir); err != nil {
			t.Fatal(err)
		}
		c.Start(1)
		c.Start(3) // never started before, so it cannot know
		c.Await("the two to agree on something", func() bool { return c.Nodes[1].Life.kv.Proven() })
		c.Start(2)
		if err := c.Ended(1); !errors.Is(err, problem.ErrUsedID) {
			t.Errorf("the wiped node ended with: %v", err)
		}
		// What is left has two histories, of which no check can make one.
		c.GiveUp()
	})
}

// A joiner that loses its directory before it has published anything is refused
// by the leader, which has seen its log; raft would panic.
func TestSimWipedJoiner(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Put(c.Leader(), "k", c.Value())
		if err := c.change(c.Leader(), addRequest(4)); err != nil {
			t.Fatal(err)
		}
		c.Join(4)
		leader := c.Leader()
		c.Await("the leader to have replicated to node 4", func() bool {
			return c.Nodes[leader].Life.members.LeaderView(context.Background())[4].Match > 0
		})
		c.Crash(4)
		if m, _ := c.Nodes[leader].Life.kv.Membership(); m.Members[4].Instance != 0 {
			t.Log("node 4 was faster, and has published")
		}
		if err := os.RemoveAll(c.Nodes[4].Dir); err != nil {
			t.Fatal(err)
		}
		c.Start(4)
		if err := c.Ended(4); !errors.Is(err, problem.ErrUsedID) {
			t.Errorf("the wiped joiner ended with: %v", err)
		}
		if err := c.change(leader, reconfig.Request{Op: membership.OpRemove, ID: 4}); err != nil {
			t.Error(err)
		}
	})
}

func (c *simCluster) awaitPublished(ids ...uint64) {
	c.T.Helper()
	c.Await("all nodes to know all that have published", func() bool {
		for _, on := range ids {
			m, _ := c.Nodes[on].Life.kv.Membership()
			for _, id := range ids {
				if m.Members[id].Instance == 0 {
					return false
				}
			}
		}
		return true
	})
}

// A first start does not need all nodes: a majority is enough, and who comes
// later is let in.
func TestSimFirstStartOfAMajority(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Crash(3)
		if err := os.RemoveAll(c.Nodes[3].Dir); err != nil {
			t.Fatal(err)
		}
		v := c.Value()
		c.Put(c.Leader(), "k", v)
		c.awaitPublished(1, 2)
		c.Start(3)
		c.Want(3, "k", v)
	})
}

// A snapshot that is asked for again and again while it is written slowly
// neither ends the node nor is written more than once; and one asked for by a
// node that has left is not waited for.
func TestSimSnapshotForANewcomer(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		big := string(make([]byte, 1<<20))
		for i := range 8 {
			c.Put(1, fmt.Sprintf("big%d", i), fmt.Sprint(i)+big)
		}
		for id := range uint64(3) {
			if err := c.change(1, addRequest(id+2)); err != nil {
				t.Fatal(err)
			}
		}
		c.Join(2)
		c.Join(3)
		if err := c.change(1, reconfig.Request{Op: membership.OpRemove, ID: 4}); err != nil {
			t.Fatal(err)
		}
		if snap, err := c.Nodes[1].Life.node.courier.SnapshotWith(4); !errors.Is(err, problem.ErrMemberUnknown) {
			t.Errorf("a snapshot for a node that has left: %v, %v", snap, err)
		}
		c.awaitVoter(1, 2)
		c.awaitVoter(1, 3)
	})
}

// A node that installs a snapshot while it writes an older one of its own, and
// one that gets a second snapshot before it has loaded the first, go on.
func TestSimSnapshotsOvertakeOneAnother(t *testing.T) {
	t.Parallel()
	small := func(cfg *config.Config) { cfg.SnapshotCount = 5 }
	simulateWith(t, 3, small, func(c *simCluster) {
		leader := c.Leader()
		slow := c.Followers()[0]
		for range 4 {
			others := slices.DeleteFunc(c.Up(), func(id uint64) bool { return id == slow })
			c.Net.Isolate(slow, others...)
			big := string(make([]byte, 1<<20))
			for i := range 20 {
				res, _ := c.Do(0, leader, history.Input{Kind: history.Put, Key: fmt.Sprintf("big%d", i%2), Value: c.Value() + big})
				if res.Err != nil {
					t.Fatal(res.Err)
				}
			}
			c.Nodes[slow].Life.kv.AskForSnapshot(c.Nodes[slow].Life.kv.applied.Get()) // of its own, older state
			c.Net.Heal()
			for range 20 {
				c.Put(leader, "k", c.Value())
			}
		}
	})
}

// Leadership is handed to a node that is there.
func TestBestFollowerIsAlive(t *testing.T) {
	now := time.Now()
	st := raft.Status{Progress: map[uint64]tracker.Progress{
		1: {Match: 9}, 2: {Match: 9}, 3: {Match: 9}, 4: {Match: 7}, 5: {Match: 9, IsLearner: true}, 6: {Match: 9},
	}}
	st.ID = 1
	heard := &contact.Contacts{Heard: map[uint64]time.Time{2: now.Add(-time.Hour), 3: now, 4: now, 5: now}}
	for range 100 {
		if got := heard.BestFollower(st, now.Add(-time.Second)); got != 3 {
			t.Fatalf("node %d was chosen", got)
		}
	}
	if got := new(contact.Contacts).BestFollower(st, now.Add(-time.Second)); got != 0 {
		t.Errorf("node %d was chosen, of none that was heard of", got)
	}
}

// A membership change that was waiting to be applied when raft took over a
// snapshot from behind it must not set raft's members back: the node would
// count another majority than the others.
func TestReconfigureBehindASnapshot(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		c.Leader()
		if err := c.change(1, addRequest(2)); err != nil {
			t.Fatal(err)
		}
		node := c.Nodes[1].Life.node
		m, index := c.Nodes[1].Life.kv.Membership()
		voters := func() (v, l int) {
			err := node.call(context.Background(), func(rn *raft.RawNode) {
				st := rn.Status()
				v, l = len(st.Config.Voters.IDs()), len(st.Config.Learners)
			})
			if err != nil {
				t.Fatal(err)
			}
			return v, l
		}
		// As if raft had got node 2's membership by a snapshot of this index.
		if err := node.call(context.Background(), func(*raft.RawNode) { node.loop.restored = index }); err != nil {
			t.Fatal(err)
		}
		remove := membership.Change{Op: membership.OpRemove, ID: 2}
		if err := node.reconfigure(index, remove.ConfChange(), m); err != nil {
			t.Fatal(err)
		}
		if v, l := voters(); v != 1 || l != 1 {
			t.Errorf("raft has %d voters and %d learners", v, l)
		}
	})
}

// A panic of raft within a call ends the node, and does not leave the caller
// waiting: the apply loop calls too, and the node could not end without it.
func TestSimPanicWithinCall(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		victim := c.Followers()[0]
		err := c.Nodes[victim].Life.node.call(context.Background(), func(*raft.RawNode) { panic("as raft does") })
		if !errors.Is(err, problem.ErrStopping) {
			t.Errorf("the caller got %v", err)
		}
		if err := c.Ended(victim); err == nil || !strings.Contains(err.Error(), "raft cannot go on") {
			t.Errorf("the node ended with: %v", err)
		}
		c.Start(victim)
		c.Put(victim, "k", c.Value())
	})
}
