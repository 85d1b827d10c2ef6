//go:build unix

package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"raftkv/internal/address"
	"raftkv/internal/history"
	"raftkv/internal/once"
	"raftkv/internal/refusal"
	"raftkv/internal/state"
	"raftkv/internal/txn"
	"time"

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
	look := func(look func(*state.State)) {
		if res.Err = s.reads.Confirm(ctx); res.Err == nil {
			res.Err = s.kv.Look(look)
		}
	}
	switch in.Kind {
	case history.Get:
		look(func(st *state.State) { it = st.Get(in.Key) })
		return res, it
	case history.Look, history.List:
		var err error
		look(func(st *state.State) { res.Txn, _, err = simTxn(in).Plan(st, st.Revision) })
		res.Err = cmp.Or(res.Err, err)
		return res, nil
	}
	cmd := simCommand(in)
	if in.Once != "" {
		cmd = state.EncodeOnce(once.Key{Name: in.Once}, once.TenMinutes, cmd, cmd)
	}
	return s.proposals.Propose(ctx, cmd), nil
}

// simCommand encodes an operation that writes.
func simCommand(in history.Input) []byte {
	life := state.Lifetime{}
	if in.TTL > 0 {
		life = state.Lifetime{Kind: state.ForTTL, Value: uint64(in.TTL / time.Millisecond)}
	}
	switch in.Kind {
	case history.Delete:
		return state.EncodeWrite(state.KindDelete, state.Condition{}, in.Key, nil)
	case history.Create:
		return state.EncodeWrite(state.KindPut, state.Condition{Kind: state.IfMissing}, in.Key, []byte(in.Value))
	case history.Add:
		return state.EncodeAdd(state.Condition{}, life, in.Key, in.Delta)
	case history.Exchange:
		return state.EncodeTxn(simTxn(in))
	case history.Append:
		return append(state.AppendAppendHead(nil, life, in.Key), in.Value...)
	case history.Clear:
		return state.EncodeDeletePrefix(in.Key, 0, "")
	}
	if in.TTL > 0 {
		return append(state.AppendLeasedPutHead(nil, state.Condition{}, life, in.Key), in.Value...)
	}
	return state.EncodeWrite(state.KindPut, state.Condition{}, in.Key, []byte(in.Value))
}

// simTxn is the transaction for an operation on several keys.
func simTxn(in history.Input) *txn.Txn {
	t := &txn.Txn{MaxBytes: 1 << 20}
	both := []txn.Op{{Kind: txn.Get, Key: in.Key}, {Kind: txn.Get, Key: in.Key2}}
	switch in.Kind {
	case history.List:
		t.Then = []txn.Op{{Kind: txn.List, Key: in.Key, Limit: txn.MaxItems}}
	case history.Look:
		t.Then = both
	default:
		t.If = []txn.Comparison{simHolds(in.Key, in.Expect), simHolds(in.Key2, in.Expect2)}
		t.Then = []txn.Op{{Kind: txn.Put, Key: in.Key, Value: []byte(in.Value)}, {Kind: txn.Put, Key: in.Key2, Value: []byte(in.Value2)}}
		t.Else = both
	}
	return t
}

// simHolds compares what a key holds; "" asks whether it is missing.
func simHolds(key, value string) txn.Comparison {
	if value == "" {
		return txn.Comparison{Field: txn.Exists, Key: key}
	}
	return txn.Comparison{Field: txn.HasValue, Key: key, Value: []byte(value)}
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
