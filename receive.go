package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// What may come in from a peer: the methods that rafthttp calls.

// Process takes a message from a peer (rafthttp.Raft). What cannot be meant
// for this node, or would stop it, does not get to raft.
func (n *raftNode) Process(ctx context.Context, m *raftpb.Message) error {
	err := n.admit(m)
	if err == nil && m.GetType() == raftpb.MsgSnap && n.kv.agreement.split.Load() {
		err = refusal{http.StatusServiceUnavailable, errHistories.Error()}
	}
	if m.GetType() == raftpb.MsgSnap {
		err = n.admitSnapshot(m, err)
	}
	if err != nil {
		return err
	}
	select {
	case n.recvC <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.life.Done():
		return raft.ErrStopped
	}
}

func (n *raftNode) admit(m *raftpb.Message) error {
	switch {
	case m.GetTo() != n.id:
		return refusal{http.StatusBadRequest, fmt.Sprintf("message for node %d came to node %d", m.GetTo(), n.id)}
	case m.GetFrom() == raft.None || raft.IsLocalMsgTarget(m.GetFrom()) || raft.IsLocalMsg(m.GetType()):
		return refusal{http.StatusBadRequest, fmt.Sprintf("a %s message does not come from a peer", m.GetType())}
	case n.kv.isRemoved(m.GetFrom()):
		// rafthttp takes this status for the word that ends the sender.
		return refusal{http.StatusForbidden, fmt.Sprintf("node %d was removed from the cluster", m.GetFrom())}
	case !n.gate.passes(m.GetFrom()):
		return refusal{http.StatusServiceUnavailable, "this node is still asking whether its ID is its own"}
	case m.GetType() == raftpb.MsgProp:
		return checkProposal(m)
	}
	return nil
}

// admitSnapshot takes in the file of a snapshot message, or removes it when
// the message is refused.
func (n *raftNode) admitSnapshot(m *raftpb.Message, refused error) error {
	err := n.inbox.take(m, refused)
	if err == nil || refused != nil {
		return err
	}
	n.log.Warn("refused a snapshot", zap.Uint64("from", m.GetFrom()), zap.Error(err))
	return refusal{http.StatusBadRequest, err.Error()}
}

// refusal is an error that rafthttp answers with a status of its own.
type refusal struct {
	status int
	reason string
}

func (r refusal) Error() string { return r.reason }

// WriteTo has the signature that rafthttp looks for.
func (r refusal) WriteTo(w http.ResponseWriter) { http.Error(w, r.reason, r.status) }

// checkProposal keeps entries that no node could apply out of the log, where
// they would stop every node at every start.
func checkProposal(m *raftpb.Message) error {
	for _, e := range m.GetEntries() {
		if e.GetType() != raftpb.EntryNormal {
			return refusal{http.StatusBadRequest, "membership changes are proposed by the leader alone"}
		}
		if _, _, err := decodeBatch(e.GetData()); err != nil {
			return refusal{http.StatusBadRequest, err.Error()}
		}
	}
	return nil
}

// IsIDRemoved implements rafthttp.Raft: rafthttp tells removed nodes so.
func (n *raftNode) IsIDRemoved(id uint64) bool { return n.kv.isRemoved(id) }

// ReportUnreachable implements rafthttp.Raft. It must not wait for the raft
// loop: rafthttp calls it from within Send, which the raft loop calls.
func (n *raftNode) ReportUnreachable(id uint64) {
	n.reports.put(func(rn *raft.RawNode) { rn.ReportUnreachable(id) })
}

// ReportSnapshot implements rafthttp.Raft. It does nothing: rafthttp does not
// report every outcome, so sendSnapshot does, and it should be done once.
func (n *raftNode) ReportSnapshot(uint64, raft.SnapshotStatus) {}

// mailbox holds what must not be lost and whose senders must not wait.
type mailbox struct {
	kick chan struct{}

	mu    sync.Mutex
	items []func(*raft.RawNode)
}

func (b *mailbox) put(f func(*raft.RawNode)) {
	b.mu.Lock()
	b.items = append(b.items, f)
	b.mu.Unlock()
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

func (b *mailbox) empty(rn *raft.RawNode) {
	b.mu.Lock()
	items := b.items
	b.items = nil
	b.mu.Unlock()
	for _, f := range items {
		f(rn)
	}
}
