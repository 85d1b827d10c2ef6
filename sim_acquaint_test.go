//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/peerport"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/refusal"
	"raftkv/internal/sim"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// replace replaces a member by a new one while others may be down.
func (c *simCluster) replace(old, id uint64) {
	c.T.Helper()
	via := func() uint64 { return c.Leader() }
	if err := c.change(via(), addRequest(id)); err != nil {
		c.T.Fatal(err)
	}
	c.Join(id)
	c.awaitVoter(id, id)
	if err := c.change(via(), reconfig.Request{Op: membership.OpRemove, ID: old}); err != nil {
		c.T.Fatal(err)
	}
	if err := c.Ended(old); !errors.Is(err, problem.ErrRemoved) {
		c.T.Errorf("node %d ended with: %v", old, err)
	}
}

// Guarantee: a node that slept while all others were replaced comes back. None
// of the members that it knows is there any more, so it has to take a stranger's
// word, as far as that can be relied on. With a log that reaches back, and with
// one that does not, so that it needs a snapshot from a stranger.
func TestSimSleeperAmongStrangers(t *testing.T) {
	for _, every := range []uint64{10, 100000} {
		t.Run(fmt.Sprintf("snapshots every %d", every), func(t *testing.T) {
			simulateWith(t, 3, func(cfg *config.Config) { cfg.SnapshotCount = every }, func(c *simCluster) {
				c.Put(c.Leader(), "k", c.Value())
				sleeper := c.Followers()[0]
				c.Crash(sleeper)
				others := c.Up()
				c.replace(others[0], 4)
				c.replace(others[1], 5)
				var v string
				for range 30 {
					v = c.Value()
					c.Put(c.Leader(), "k", v)
				}
				c.Start(sleeper)
				c.Want(sleeper, "k", v)
				m, _ := c.Nodes[sleeper].Life.kv.Membership()
				if voters := m.Voters(); !slices.Equal(voters, []uint64{sleeper, 4, 5}) {
					t.Errorf("voters %v", voters)
				}
				// It counts: without it there is no majority.
				c.Crash(4)
				c.Put(sleeper, "k", c.Value())
			})
		})
	}
}

// A leader that was added while this node was away is asked for from a member
// that this node knows, at once: at its start, or when it can be reached again.
func TestSimSleeperAsksMembers(t *testing.T) {
	for _, down := range []bool{true, false} {
		t.Run(fmt.Sprintf("down %v", down), func(t *testing.T) {
			simulate(t, 3, func(c *simCluster) {
				c.Put(c.Leader(), "k", c.Value())
				away := c.Followers()[0]
				if down {
					c.Crash(away)
				} else {
					c.Net.Isolate(away, 1, 2, 3, 4)
				}
				leader := c.Leader()
				if err := c.change(leader, addRequest(4)); err != nil {
					t.Fatal(err)
				}
				c.Join(4)
				c.awaitVoter(4, 4)
				if _, err := c.Nodes[leader].Life.members.MoveLeader(context.Background(), 4); err != nil {
					t.Fatal(err)
				}
				v := c.Value()
				c.Put(4, "k", v)
				if down {
					c.Start(away)
				} else {
					c.Net.Heal()
				}
				began := time.Now()
				c.Want(away, "k", v)
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("the node came back after %v", took)
				}
				if n := c.Refusals(refusal.RefusedSender); n == 0 && !down {
					t.Error("it knew node 4 already: this tests nothing")
				}
			})
		})
	}
}

// A stranger that says it is a member is not believed while the cluster can be
// asked: no peer is made of it, and nobody asks it.
func TestSimStranger(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Attacked = true
		leader := c.Leader()
		for _, id := range c.Up() {
			node := c.Nodes[id].Life.node
			asked := node.known.AskPeer
			node.known.AskPeer = func(ctx context.Context, url string) (reconfig.ClusterInfo, error) {
				if url != sim.URL(1) && url != sim.URL(2) && url != sim.URL(3) {
					t.Errorf("node %d asks %s", id, url)
				}
				return asked(ctx, url)
			}
		}
		for round := range uint64(200) {
			for _, id := range c.Up() {
				node := c.Nodes[id].Life.node
				stranger := 1000 + round
				m := &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(stranger), To: new(id), Term: new(uint64(1))}
				node.known.Claim(stranger, "http://10.9.9.9:80", "10.9.9.9:4711")
				var r refusal.Refusal
				if err := node.Process(context.Background(), m); !errors.As(err, &r) || r.Kind != refusal.RefusedSender {
					t.Fatalf("a message of node %d: %v", stranger, err)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		for _, id := range c.Up() {
			if n := len(c.Nodes[id].Life.node.known.Learned); n > 0 {
				t.Errorf("node %d has learned of %d strangers", id, n)
			}
		}
		if now := c.Leader(); now != leader {
			t.Errorf("leader %d became %d", leader, now)
		}
	})
}

// A cluster whose term was driven up, by 2^32 at a time, still takes in nodes
// that begin in term 0, and those that were away meanwhile.
func TestSimTermDrivenUp(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Attacked = true
		c.Put(c.Leader(), "k", c.Value())
		sleeper := c.Followers()[0]
		c.Crash(sleeper)
		for range 3 {
			leader := c.Leader()
			_, term, _ := c.Nodes[leader].Life.node.leaders.Get()
			from := c.Followers()[0]
			m := &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(from), To: new(leader), Term: new(term + peerport.MaxTermLeap)}
			if err := c.Nodes[leader].Life.node.Process(context.Background(), m); err != nil {
				t.Fatal(err)
			}
			c.Await("a leader in a higher term", func() bool {
				_, now, _ := c.Nodes[c.Leader()].Life.node.leaders.Get()
				return now > term+peerport.MaxTermLeap
			})
		}
		c.Start(sleeper)
		v := c.Value()
		c.Put(c.Leader(), "k", v)
		c.Want(sleeper, "k", v)
		if err := c.change(c.Leader(), addRequest(4)); err != nil {
			t.Fatal(err)
		}
		c.Join(4)
		c.awaitVoter(4, 4)
		c.Want(4, "k", v)
		if c.Refusals(refusal.RefusedTerm) == 0 {
			t.Error("no term was refused at first: this tests nothing")
		}
	})
}
