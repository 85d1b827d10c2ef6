package main

import (
	"raftkv/internal/address"
	"raftkv/internal/admin"
	"raftkv/internal/state"
	"raftkv/internal/version"
	"strconv"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
)

// What a node says of itself is put together here from its parts.

func (s *server) status() admin.NodeStatus {
	rs, ks := s.node.status.Load(), s.kv.Status()
	return admin.NodeStatus{
		ID: s.cfg.ID, ClusterID: strconv.FormatUint(s.node.cluster, 16),
		Role: s.role(rs.Role), Leader: rs.Leader, Term: rs.Term,
		CommitIndex: max(rs.Commit, ks.Index), AppliedIndex: ks.Index,
		SnapshotIndex: s.storage.SnapIndex.Load(), Revision: ks.Revision, Keys: ks.Keys, Bytes: ks.Bytes,
		Version: version.This().Version, BuildRevision: version.This().Revision, UptimeSeconds: int64(time.Since(s.began).Seconds()),
		Diverged: s.kv.Fault() != nil, Disputed: s.node.doubts.Disputed() != nil, CheckedIndex: ks.Checked, CheckedAt: s.kv.agreement.Seen.Load(), Level: ks.Level,
	}
}

func (s *server) role(role raft.StateType) string {
	m, _ := s.kv.Membership()
	switch {
	case role == raft.StateLeader:
		return "leader"
	case role != raft.StateFollower:
		return "candidate"
	case m.Members[s.cfg.ID].Learner:
		return "learner"
	}
	return "follower"
}

// readyChecks are what a node must be to be ready.
func (s *server) readyChecks() []admin.Check {
	m, _ := s.kv.Membership()
	_, isMember := m.Members[s.cfg.ID]
	fault, disputed, lacking := s.kv.Fault(), s.node.doubts.Disputed(), s.kv.doors.MayServe()
	return []admin.Check{ // those first for which others fail
		{Name: "agrees with the other replicas", Ok: fault == nil, Why: fault},
		{Name: "has a history that no other disputes", Ok: disputed == nil, Why: disputed},
		{Name: "has the rights that its cluster has", Ok: lacking == nil, Why: lacking},
		{Name: "has a leader", Ok: s.node.status.Load().Leader != 0},
		{Name: "is a member", Ok: isMember},
		{Name: "has caught up", Ok: s.caughtUp.Load()},
		{Name: "has loaded its data", Ok: !s.kv.loading.Load()},
		{Name: "has a disk that answers", Ok: !s.node.disk.Hanging.Load()},
		{Name: "is not loading a snapshot", Ok: !s.kv.pulse.Loading()},
	}
}

// copyState returns the state as of now, in constant time.
func (kv *kvstore) copyState() *state.State {
	kv.mu.Lock() // copying marks the tree's nodes as shared
	defer kv.mu.Unlock()
	return kv.state.Copy()
}

// CopyWhole is copyState for a client.
func (kv *kvstore) CopyWhole() (*state.State, error) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if kv.loading.Load() {
		return nil, errLoading
	}
	return kv.state.Copy(), nil
}

// sayStarted says what this node is and what it found in its directory.
func (s *server) sayStarted(clients, peers string) {
	m, index := s.kv.Membership()
	s.log.Info("started", zap.String("version", version.This().Version), zap.Uint64("id", s.cfg.ID), zap.String("data-dir", s.cfg.DataDir),
		zap.String("cluster", strconv.FormatUint(s.node.cluster, 16)), zap.String("members", address.FormatPeers(m.Peers())),
		zap.Uint64("index", index), zap.Uint64("boot", s.storage.Boot), zap.String("clients", clients), zap.String("peers", peers))
}
