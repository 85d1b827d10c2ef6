//go:build unix

package main

import (
	"raftkv/internal/boot"
	"raftkv/internal/contact"
	"raftkv/internal/diskhang"
	"raftkv/internal/sim"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/suspect"
	"raftkv/internal/transport"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// recordingTransport is a transport that keeps what it is to send.
type recordingTransport struct {
	transport.Messenger
	sent []*raftpb.Message
}

func (t *recordingTransport) Send(msgs []*raftpb.Message) { t.sent = append(t.sent, msgs...) }

func notice(commit uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgApp.Enum(), Commit: new(commit)}
}

func readAnswer(index uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgReadIndexResp.Enum(), Index: new(index)}
}

// A message that brings a notice along leaves all others where they belong.
func TestNoticeLosesNoOtherMessage(t *testing.T) {
	tr := &recordingTransport{}
	n := &raftNode{transport: tr, known: boot.NewAcquaintances(boot.Config{}), disk: &diskhang.Watch{}, doubts: &suspect.Doubts{}, loop: raftLoop{outbox: contact.NewOutbox()}}
	n.known.Gate.Open.Store(true)
	n.status.Store(&contact.RaftStatus{Role: raft.StateLeader})
	to := func(node uint64, m *raftpb.Message) *raftpb.Message {
		m.To = new(node)
		return m
	}
	n.route([]*raftpb.Message{to(2, notice(10)), to(3, notice(10))})
	store := to(raft.LocalAppendThread, &raftpb.Message{Type: raftpb.MsgStorageAppend.Enum(), Entries: []*raftpb.Entry{{Index: new(uint64(11)), Data: statetest.Batch(state.BatchID{Node: 1})}}})
	n.route([]*raftpb.Message{to(2, readAnswer(10)), to(3, readAnswer(10)), store})
	if len(tr.sent) != 4 || len(n.loop.appends) != 1 || n.loop.appends[0] != store || !n.loop.urgent {
		t.Errorf("sent %v, to the disk %v", tr.sent, n.loop.appends)
	}
}

// On a network without delay nothing takes as long as a notice may be held: not
// a write through a follower, nor a read there of what the leader acknowledged.
func TestSimNobodyWaitsForNotices(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		c.awaitPublished(1, 2, 3)
		c.Net.Disturb(0, 0, 1)
		time.Sleep(2 * sim.Delay) // what is on its way takes the time that it took before
		for range 10 {
			for _, id := range c.Followers() {
				began := time.Now()
				c.Put(id, "k", c.Value())
				v := c.Value()
				c.Put(leader, "k", v)
				c.Want(id, "k", v)
				if took := time.Since(began); took >= contact.NoticeDelay {
					t.Fatalf("two writes and a read took %v", took)
				}
			}
		}
	})
}

// Writes through the leader, one after the other, need no message without
// entries; still the followers apply all of them soon.
func TestSimNoticesTravelWithEntries(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		c.awaitPublished(1, 2, 3)
		c.Net.Disturb(0, 0, 1)
		time.Sleep(2 * contact.NoticeDelay)
		before := c.Net.EmptyAppends()
		for range 100 {
			c.Put(leader, "k", c.Value())
		}
		if sent := c.Net.EmptyAppends() - before; sent > 10 {
			t.Errorf("100 writes took %d messages that told of commits alone", sent)
		}
		// What the members publish meanwhile is no part of this.
		want := c.Nodes[leader].Life.kv.Status().Index
		time.Sleep(2 * contact.NoticeDelay)
		for _, id := range c.Followers() {
			if has := c.Nodes[id].Life.kv.Status().Index; has < want {
				t.Errorf("node %d has applied %d of %d", id, has, want)
			}
		}
	})
}
