//go:build unix

package main

import (
	"context"
	"raftkv/internal/refusal"
	"raftkv/internal/rounds"
	"raftkv/internal/testkit"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// hostileKinds are the refusals that no cluster without a stranger at its peer
// ports has, however bad its network is.
var hostileKinds = []refusal.Kind{refusal.RefusedAddress, refusal.RefusedTerm, refusal.RefusedMalformed, refusal.RefusedSize, refusal.RefusedBusy, refusal.RefusedRoom}

// noteRefusals adds up what a node refused in the life that has ended.
func (c *simCluster) noteRefusals(srv *server) {
	if c.refused == nil {
		c.refused = make(map[refusal.Kind]uint64)
	}
	for _, kind := range append(hostileKinds, refusal.RefusedSender) {
		c.refused[kind] += srv.node.refusals.Count(kind)
	}
}

// Refusals returns how much all nodes have refused for one reason.
func (c *simCluster) Refusals(kind refusal.Kind) uint64 {
	sum := c.refused[kind]
	for _, id := range c.Up() {
		sum += c.Nodes[id].Life.node.refusals.Count(kind)
	}
	return sum
}

// checkRefusals reports refusals of what nodes themselves have sent.
func (c *simCluster) checkRefusals() {
	c.T.Helper()
	for _, kind := range hostileKinds {
		if n := c.Refusals(kind); n > 0 && !c.Attacked {
			c.T.Errorf("%d messages between nodes were refused: %s", n, kind)
		}
	}
}

// What a node proposed or asked before it came to lead, and a former leader passes
// on, does not come back to it: it would be taken for forged.
func TestSimNothingComesBack(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		former := c.Followers()[0]
		node := c.Nodes[former].Life.node
		for _, m := range []*raftpb.Message{
			{Type: raftpb.MsgProp.Enum(), Entries: []*raftpb.Entry{{Data: putBatch("k", "v")}}},
			{Type: raftpb.MsgReadIndex.Enum(), Entries: []*raftpb.Entry{{Data: make([]byte, rounds.RoundContext)}}},
		} {
			m.From, m.To = new(leader), new(former)
			testkit.Must(t, node.Process(context.Background(), m))
		}
		time.Sleep(time.Second)
		if n := c.Nodes[leader].Life.node.refusals.Count(refusal.RefusedAddress); n != 0 {
			t.Errorf("%d messages came back to the node that had sent them", n)
		}
	})
}
