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
