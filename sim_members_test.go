//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/sim"
	"raftkv/internal/state"
	"slices"
	"testing"
	"time"
)

// change asks a node for a membership change.
func (c *simCluster) change(via uint64, r reconfig.Request) error {
	_, err := c.Nodes[via].Life.members.Change(context.Background(), r)
	return err
}

func addRequest(id uint64) reconfig.Request {
	return reconfig.Request{Op: membership.OpAdd, ID: id, PeerURL: sim.URL(id)}
}

func (c *simCluster) awaitVoter(via, id uint64) {
	c.T.Helper()
	c.Await(fmt.Sprintf("node %d to be a voter on node %d", id, via), func() bool {
		m, _ := c.Nodes[via].Life.kv.Membership()
		return slices.Contains(m.Voters(), id)
	})
}

// A new node enters as a learner, becomes a voter by itself, and serves; one
// that is removed at once ends by itself and says why.
func TestSimAddAndRemove(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		v := c.Value()
		c.Put(c.Leader(), "k", v)
		via := c.Followers()[0]
		if err := c.change(via, addRequest(4)); err != nil {
			t.Fatal(err)
		}
		if err := c.change(via, addRequest(4)); err != nil {
			t.Errorf("adding the same node again: %v", err)
		}
		c.Join(4)
		victim := c.Followers()[1]
		if victim == 4 {
			victim = c.Followers()[2]
		}
		if err := c.change(c.Leader(), reconfig.Request{Op: membership.OpRemove, ID: victim}); err != nil {
			t.Fatal(err)
		}
		if err := c.Ended(victim); !errors.Is(err, problem.ErrRemoved) {
			t.Errorf("the removed node ended with: %v", err)
		}
		c.awaitVoter(c.Leader(), 4)
		m, _ := c.Nodes[c.Leader()].Life.kv.Membership()
		if m.Members[4].Instance == 0 {
			t.Error("node 4 votes before the cluster knows whose directory has its ID")
		}
		c.Want(4, "k", v)
		c.Put(4, "k", c.Value())
	})
}

// The refusals: each says which, and changes nothing.
func TestSimRefusedChanges(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		if err := c.change(leader, reconfig.Request{Op: membership.OpRemove, ID: 3, Force: true}); err != nil {
			t.Fatal(err)
		}
		cases := []struct {
			r    reconfig.Request
			want error
		}{
			{reconfig.Request{Op: membership.OpAdd, ID: 3, PeerURL: sim.URL(3)}, problem.ErrMemberRemoved},
			{reconfig.Request{Op: membership.OpAdd, ID: 2, PeerURL: sim.URL(9)}, problem.ErrMemberExists},
			{reconfig.Request{Op: membership.OpAdd, ID: 9, PeerURL: sim.URL(2)}, problem.ErrMemberExists},
			{reconfig.Request{Op: membership.OpAdd, ID: 9, PeerURL: sim.URL(9) + "/"}, problem.ErrBadPeerURL},
			{reconfig.Request{Op: membership.OpRemove, ID: 9}, problem.ErrMemberUnknown},
			{reconfig.Request{Op: membership.OpRemove, ID: 3}, nil},
		}
		for _, tc := range cases {
			for _, via := range []uint64{1, 2} {
				if err := c.change(via, tc.r); problem.CodeOf(err) != problem.CodeOf(tc.want) {
					t.Errorf("%+v via node %d: %v, want %v", tc.r, via, err, tc.want)
				}
			}
		}
		if err := c.change(1, reconfig.Request{Op: membership.OpRemove, ID: 2, Force: true}); err != nil {
			t.Fatal(err)
		}
		if err := c.change(1, reconfig.Request{Op: membership.OpRemove, ID: 1, Force: true}); !errors.Is(err, problem.ErrLastVoter) {
			t.Errorf("removing the last voter: %v", err)
		}
	})
}

// Removing a node while another voter is down would leave no majority.
func TestSimQuorumGuard(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		for _, ago := range []time.Duration{time.Nanosecond, 100 * time.Millisecond, 800 * time.Millisecond, 2 * time.Second} {
			followers := c.Followers()
			c.Put(leader, "k", c.Value())
			c.Crash(followers[0])
			time.Sleep(ago)
			leader = c.Leader()
			if err := c.change(leader, reconfig.Request{Op: membership.OpRemove, ID: followers[1]}); !errors.Is(err, problem.ErrWouldLose) {
				t.Fatalf("removing a healthy node beside one that died %v ago: %v", ago, err)
			}
			v := c.Value()
			c.Put(leader, "k", v)
			c.Start(followers[0])
			c.Want(followers[0], "k", v)
		}
		dead := c.Followers()[0]
		c.Crash(dead)
		if err := c.change(leader, reconfig.Request{Op: membership.OpRemove, ID: dead}); err != nil {
			t.Errorf("removing the dead node: %v", err)
		}
		c.Put(leader, "k", c.Value())
	})
}

// The leader can be removed like any other: it hands over first.
func TestSimRemoveLeader(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		c.Put(leader, "k", c.Value())
		if err := c.change(leader, reconfig.Request{Op: membership.OpRemove, ID: leader}); err != nil {
			t.Fatal(err)
		}
		if err := c.Ended(leader); !errors.Is(err, problem.ErrRemoved) {
			t.Errorf("the removed leader ended with: %v", err)
		}
		c.Put(c.Leader(), "k", c.Value())
	})
}

// A node that was down while it was removed learns of it when it comes back,
// and disturbs nobody until then.
func TestSimRemovedWhileDown(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		down := c.Followers()[0]
		c.Crash(down)
		leader := c.Leader()
		if err := c.change(leader, reconfig.Request{Op: membership.OpRemove, ID: down}); err != nil {
			t.Fatal(err)
		}
		_, term, _ := c.Nodes[leader].Life.node.leaders.Get()
		c.Start(down)
		if err := c.Ended(down); !errors.Is(err, problem.ErrRemoved) {
			t.Errorf("it ended with: %v", err)
		}
		if now, after, _ := c.Nodes[leader].Life.node.leaders.Get(); now != leader || after != term {
			t.Errorf("leader %d in term %d became %d in term %d", leader, term, now, after)
		}
	})
}

// A node that is added but not up does not cost the cluster its quorum.
func TestSimAddNodeThatIsNotUp(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		c.Leader()
		if err := c.change(1, addRequest(2)); err != nil {
			t.Fatal(err)
		}
		c.Put(1, "k", c.Value())
		c.Crash(1)
		c.Start(1)
		c.Put(1, "k", c.Value())
		if err := c.change(1, reconfig.Request{Op: membership.OpRemove, ID: 2}); err != nil {
			t.Fatal(err)
		}
	})
}

// Changes asked for at the same time, on all nodes, all happen.
func TestSimConcurrentChanges(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Leader()
		errs := make(chan error)
		for i := range uint64(3) {
			go func() { errs <- c.change(i+1, addRequest(4+i)) }()
		}
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		m, _ := c.Nodes[c.Leader()].Life.kv.Membership()
		if len(m.Members) != 6 {
			t.Errorf("members: %+v", m.Sorted())
		}
		for i := range uint64(3) {
			c.Join(4 + i)
		}
		for i := range uint64(3) {
			c.awaitVoter(1, 4+i)
		}
	})
}

// A change survives snapshots and restarts with the old command line, on nodes
// that were there and on the one that joined.
func TestSimRestartAfterChanges(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 10 }
	simulateWith(t, 3, small, func(c *simCluster) {
		if err := c.change(c.Leader(), addRequest(4)); err != nil {
			t.Fatal(err)
		}
		c.Join(4)
		c.awaitVoter(c.Leader(), 4)
		for range 60 {
			c.Put(c.Leader(), "k", c.Value())
		}
		for id := range uint64(4) {
			c.Crash(id + 1)
		}
		for id := range uint64(4) {
			c.Start(id + 1)
		}
		v := c.Value()
		c.Put(4, "k", v)
		c.Want(1, "k", v)
		if c.Nodes[1].Life.storage.SnapIndex.Load() <= state.FirstIndex {
			t.Error("no snapshot was taken")
		}
	})
}
