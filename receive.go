package main

import (
	"context"
	"errors"
	"net/http"
	"raftkv/internal/problem"
	"raftkv/internal/refusal"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// What may come in from a peer: the methods that rafthttp calls.

// Process takes a message from a peer (rafthttp.Raft). What cannot be meant
// for this node, or would stop it, does not get to raft.
func (n *raftNode) Process(ctx context.Context, m *raftpb.Message) error {
	n.links.Hear(m.GetFrom())
	err := n.admission.Admit(m)
	if err == nil && m.GetType() == raftpb.MsgSnap && errors.Is(n.kv.Fault(), problem.ErrHistories) {
		err = refusal.Refusal{Status: http.StatusServiceUnavailable, Kind: refusal.NotHostile, Reason: problem.ErrHistories.Error()}
	}
	if m.GetType() == raftpb.MsgSnap {
		err = n.admitSnapshot(m, err)
	}
	if err != nil {
		n.refusals.Note(m.GetFrom(), err)
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

// admitSnapshot takes in the file of a snapshot message, or removes it when
// the message is refused.
func (n *raftNode) admitSnapshot(m *raftpb.Message, refused error) error {
	var committed uint64
	if st := n.status.Load(); st != nil {
		committed = st.Commit
	}
	err := n.inbox.Take(m, committed, refused)
	if err == nil || refused != nil {
		return err
	}
	n.log.Warn("refused a snapshot", zap.Uint64("from", m.GetFrom()), zap.Error(err))
	return refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.NotHostile, Reason: err.Error()}
}

// IsIDRemoved implements rafthttp.Raft: rafthttp tells removed nodes so.
func (n *raftNode) IsIDRemoved(id uint64) bool { return n.kv.isRemoved(id) }

// ReportUnreachable implements rafthttp.Raft. It must not wait for the raft
// loop: rafthttp calls it from within Send, which the raft loop calls.
func (n *raftNode) ReportUnreachable(id uint64) {
	n.reports.put(func(rn *raft.RawNode) { rn.ReportUnreachable(id) })
}

// ReportSnapshot implements rafthttp.Raft. It does nothing: rafthttp does not
// report every outcome, so the courier does, and it should be done once.
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
