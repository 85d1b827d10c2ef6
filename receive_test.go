package main

import (
	"context"
	"errors"
	"net/http"
	"raftkv/internal/address"
	"raftkv/internal/boot"
	"raftkv/internal/checker"
	"raftkv/internal/entry"
	"raftkv/internal/peerport"
	"raftkv/internal/refusal"
	"raftkv/internal/state"
	"raftkv/internal/transport"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Without this a message for another node, one that only a node itself may
// send, one from a removed node, or a proposal that no node could apply gets
// to raft: it disturbs the cluster, or stops every node at every start.
func TestReceiveRefuses(t *testing.T) {
	st := state.New([]address.Peer{{ID: 1, URL: simLikeURL(1)}, {ID: 2, URL: simLikeURL(2)}})
	st.Membership.Removed[3] = true
	life, stop := context.WithCancel(t.Context())
	defer stop()
	n := &raftNode{
		id: 1, log: zap.NewNop(), kv: &kvstore{state: st, agreement: checker.NewAgreement(zap.NewNop(), 1, 0, 0)}, links: transport.NewLinks(zap.NewNop(), 1, 7, time.Millisecond, time.Second),
		recvC: make(chan *raftpb.Message, 1), life: life, refusals: refusal.NewRefusals(zap.NewNop()),
		known: boot.NewAcquaintances(boot.Config{Self: boot.Self{Node: 1}}),
	}
	n.admission = peerport.Admission{ID: 1, IsRemoved: n.kv.isRemoved, Known: n.known, Role: n.status.Load}
	n.known.Settle(noTransport{}, st.Membership)
	n.known.Gate.Open.Store(true)
	good := entry.AppendCommand(entry.AppendHeader(nil, state.BatchID{Node: 2, Boot: 1}), state.EncodeWrite(state.KindPut, state.Condition{}, "k", []byte("v")))
	entry := func(typ raftpb.EntryType, data []byte) []*raftpb.Entry {
		return []*raftpb.Entry{{Type: typ.Enum(), Data: data}}
	}
	cases := map[string]struct {
		to, from uint64
		typ      raftpb.MessageType
		entries  []*raftpb.Entry
		status   int // 0: it passes
	}{
		"heartbeat":             {1, 2, raftpb.MsgHeartbeat, nil, 0},
		"proposal":              {1, 2, raftpb.MsgProp, entry(raftpb.EntryNormal, good), 0},
		"for another node":      {2, 2, raftpb.MsgHeartbeat, nil, http.StatusBadRequest},
		"from nobody":           {1, raft.None, raftpb.MsgHeartbeat, nil, http.StatusBadRequest},
		"from a storage thread": {1, raft.LocalAppendThread, raftpb.MsgStorageAppendResp, nil, http.StatusBadRequest},
		"a local one":           {1, 2, raftpb.MsgHup, nil, http.StatusBadRequest},
		"from a removed node":   {1, 3, raftpb.MsgVote, nil, http.StatusForbidden},
		"rubbish":               {1, 2, raftpb.MsgProp, entry(raftpb.EntryNormal, []byte("rubbish")), http.StatusBadRequest},
		"empty proposal":        {1, 2, raftpb.MsgProp, entry(raftpb.EntryNormal, nil), http.StatusBadRequest},
		"unknown command":       {1, 2, raftpb.MsgProp, entry(raftpb.EntryNormal, append(good, 1, 99)), http.StatusBadRequest},
		"membership change":     {1, 2, raftpb.MsgProp, entry(raftpb.EntryConfChange, nil), http.StatusBadRequest},
		"its second form":       {1, 2, raftpb.MsgProp, entry(raftpb.EntryConfChangeV2, nil), http.StatusBadRequest},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := &raftpb.Message{To: new(c.to), From: new(c.from), Type: c.typ.Enum(), Entries: c.entries}
			if c.typ != raftpb.MsgProp {
				m.Term = new(uint64(1))
			}
			err := n.Process(t.Context(), m)
			var r refusal.Refusal
			switch {
			case c.status == 0 && err == nil:
				<-n.recvC
			case !errors.As(err, &r) || r.Status != c.status:
				t.Errorf("got %v, want status %d", err, c.status)
			}
		})
	}
	// A node that has not proven its ID takes nothing from a peer not asked.
	n.known.Gate.Open.Store(false)
	n.known.Gate.Expect(false, map[uint64]string{2: simLikeURL(2)})
	m := &raftpb.Message{To: new(uint64(1)), From: new(uint64(2)), Term: new(uint64(1)), Type: raftpb.MsgVote.Enum()}
	if err := n.Process(t.Context(), m); err == nil {
		t.Error("a vote request passed the gate")
	}
	n.known.Gate.Pass(2)
	if err := n.Process(t.Context(), m); err != nil {
		t.Error(err)
	}
}

// noTransport sends nothing.
type noTransport struct{}

func (noTransport) Send([]*raftpb.Message) {}

func (noTransport) SendSnapshot(*snap.Message) {}

func (noTransport) AddPeer(types.ID, []string) {}

func (noTransport) UpdatePeer(types.ID, []string) {}

func (noTransport) RemovePeer(types.ID) {}

func (noTransport) Stop() {}

func simLikeURL(id uint64) string { return "http://10.0.0." + string(rune('0'+id)) + ":2380" }
