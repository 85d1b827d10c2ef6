//go:build unix

package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"raftkv/internal/address"
	"raftkv/internal/history"
	"raftkv/internal/refusal"
	"raftkv/internal/state"

	"go.etcd.io/raft/v3/raftpb"
)

// A server is a node of a simulation: the methods with capitals are those of
// sim.Node, which says what they promise.

// ID implements sim.Node.
func (s *server) ID() uint64 { return s.cfg.ID }

// PeerURL implements sim.Node.
func (s *server) PeerURL() string { return s.cfg.PeerURL }

// String implements sim.Node.
func (s *server) String() string {
	m, index := s.kv.Membership()
	return fmt.Sprintf("%+v applied %d members %+v removed %v", *s.node.status.Load(), index, m.Sorted(), m.Removed)
}

// Start implements sim.Node.
func (s *server) Start() error { return s.start() }

// Wait implements sim.Node.
func (s *server) Wait() error {
	<-s.life.Done()
	return s.group.Wait()
}

// End implements sim.Node.
func (s *server) End() { s.end() }

// HandOver does what server.drain does when nobody serves. It stops all the same.
func (s *server) HandOver() {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if m, _ := s.kv.Membership(); len(m.Voters()) > 1 {
		_, _ = s.members.Transfer(ctx, 0)
	}
}

// Close implements sim.Node.
func (s *server) Close() error { return s.storage.Close() }

// CloseInOrder implements sim.Node.
func (s *server) CloseInOrder(ended error) error { return s.closeStorage(ended) }

// Receive implements sim.Node.
func (s *server) Receive(ctx context.Context, m *raftpb.Message) error { return s.node.Process(ctx, m) }

// ReceiveSnapshot puts the file into the snap directory, as the snapshot route does.
func (s *server) ReceiveSnapshot(ctx context.Context, file io.Reader, m *raftpb.Message) error {
	if _, err := s.node.inbox.SaveDBFrom(file, m.GetSnapshot().GetMetadata().GetIndex()); err != nil {
		return err
	}
	return s.node.Process(ctx, m)
}

// Unreachable implements sim.Node.
func (s *server) Unreachable(id uint64) { s.node.ReportUnreachable(id) }

// Refuse implements sim.Node.
func (s *server) Refuse(err error) {
	select {
	case s.node.errorC <- err:
	default:
	}
}

// Claim implements sim.Node.
func (s *server) Claim(from uint64, url string) {
	s.node.known.Claim(from, url, address.HostPortOf(url))
}

// MeetAgain implements sim.Node.
func (s *server) MeetAgain() { s.node.doubts.MeetAgain() }

// Do implements sim.Node.
func (s *server) Do(ctx context.Context, in history.Input) (res state.Result, it *state.Item) {
	switch in.Kind {
	case history.Get:
		if res.Err = s.reads.Confirm(ctx); res.Err == nil {
			it, _ = s.kv.Get(in.Key)
		}
	case history.Delete:
		res = s.proposals.Propose(ctx, state.EncodeWrite(state.KindDelete, state.Condition{}, in.Key, nil))
	case history.Create:
		res = s.proposals.Propose(ctx, state.EncodeWrite(state.KindPut, state.Condition{Kind: state.IfMissing}, in.Key, []byte(in.Value)))
	default:
		res = s.proposals.Propose(ctx, state.EncodeWrite(state.KindPut, state.Condition{}, in.Key, []byte(in.Value)))
	}
	return res, it
}

// Leader implements sim.Node.
func (s *server) Leader() uint64 {
	leader, _, _ := s.node.leaders.Get()
	return leader
}

// IsRemoved implements sim.Node.
func (s *server) IsRemoved(id uint64) bool { return s.kv.isRemoved(id) }

// Hash implements sim.Node.
func (s *server) Hash() (hash string, index uint64) {
	s.kv.mu.Lock()
	st := s.kv.state.Copy()
	s.kv.mu.Unlock()
	h := sha256.New()
	if err := state.Write(h, st); err != nil {
		return err.Error(), st.Index
	}
	return string(h.Sum(nil)), st.Index
}

// Fault implements sim.Node.
func (s *server) Fault() error { return s.kv.Fault() }

// Refused implements sim.Node.
func (s *server) Refused(kind refusal.Kind) uint64 { return s.node.refusals.Count(kind) }
