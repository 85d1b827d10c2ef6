package main

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/transport"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// How raft and the transport follow the membership, and how a node that is no
// longer in it ends.

// reconfigure tells raft and the transport of a membership change; see the
// type of that name. It runs on the apply loop.
func (n *raftNode) reconfigure(index uint64, cc *raftpb.ConfChange, m membership.Membership) error {
	// A new member must be known to the transport before raft sends to it,
	// and a former one until raft has stopped.
	n.addPeers(m)
	if cc != nil {
		var cs *raftpb.ConfState
		err := n.call(context.Background(), func(rn *raft.RawNode) {
			if index > n.loop.restored { // else raft is past this change
				cs = rn.ApplyConfChange(cc)
			}
		})
		if errors.Is(err, problem.ErrStopping) {
			return nil
		}
		if want := m.ConfState(); err == nil && cs != nil && !proto.Equal(cs, want) {
			return fmt.Errorf("raft has members %v, the state has %v", cs, want)
		}
	}
	n.dropPeers(m)
	if cc == nil || cc.GetNodeId() == n.id {
		n.noteMove(m)
	}
	if m.Removed[n.id] {
		return problem.ErrRemoved
	}
	return nil
}

// addPeers tells the transport where the members are.
func (n *raftNode) addPeers(m membership.Membership) {
	for id, url := range n.links.Connect(m) {
		n.known.Gate.Learn(id, url)
	}
	for _, id := range n.known.Settle(n.transport, m) {
		n.links.RemoveLater(n.life, id)
	}
}

// noteMove says that this node's own peer URL was changed. It goes on: the
// connections that it has stay, and it makes its own.
func (n *raftNode) noteMove(m membership.Membership) {
	me, ok := m.Members[n.id]
	if !ok || me.PeerURL == n.url {
		return
	}
	n.log.Warn("this node's peer URL was changed; restart it with the new one in --cluster",
		zap.String("new", me.PeerURL), zap.String("old", n.url))
}

// dropPeers forgets who is no longer a member.
func (n *raftNode) dropPeers(m membership.Membership) {
	for _, id := range n.links.Drop(n.life, m) {
		n.known.Gate.Forget(id)
		n.reports.put(func(*raft.RawNode) {
			n.contacts.Forget(id)
			n.courier.Forget(id)
			n.loop.outbox.Forget(id)
		})
	}
}

// watchRemoval ends the node when a peer says that it was removed: it may have
// been down while that happened. If it was not, its own log is about to say so.
func (n *raftNode) watchRemoval(ctx context.Context) error {
	select {
	case err := <-n.errorC:
		select {
		case <-time.After(transport.FarewellTicks * n.tick):
			return fmt.Errorf("%w (a peer says: %w)", problem.ErrRemoved, err)
		case <-ctx.Done():
			return nil
		}
	case <-ctx.Done():
		return nil
	}
}
