package main

import (
	"raftkv/internal/address"
	"raftkv/internal/logging"
	"raftkv/internal/membership"
	"raftkv/internal/version"
	"strconv"

	"go.uber.org/zap"
)

// sayChange says what a committed change made of a member. What was committed
// before this node started, its former life has said.
func (kv *kvstore) sayChange(index uint64, before, after membership.Member) {
	if index <= kv.toldBefore {
		return
	}
	about := []zap.Field{logging.News, zap.Uint64("member", max(before.ID, after.ID)), zap.Uint64("index", index)}
	where := append(about, zap.String("peer-url", after.PeerURL))
	switch {
	case before.ID == 0 && after.ID == 0:
		return
	case after.ID == 0:
		kv.log.Info("member removed", about...)
		return
	case before.ID == 0:
		kv.log.Info("member added", append(where, zap.Bool("learner", after.Learner))...)
		return
	case before.Learner && !after.Learner:
		kv.log.Info("member promoted to voter", where...)
	case !before.Learner && after.Learner:
		kv.log.Info("member demoted to learner", where...)
	}
	if before.PeerURL != after.PeerURL {
		kv.log.Info("member moved", append(where, zap.String("from", before.PeerURL))...)
	}
}

// sayStarted says what this node is and what it found in its directory.
func (s *server) sayStarted(clients, peers string) {
	m, index := s.kv.Membership()
	s.log.Info("started", zap.String("version", version.This().Version), zap.Uint64("id", s.cfg.ID), zap.String("data-dir", s.cfg.DataDir),
		zap.String("cluster", strconv.FormatUint(s.node.cluster, 16)), zap.String("members", address.FormatPeers(m.Peers())),
		zap.Uint64("index", index), zap.Uint64("boot", s.storage.Boot), zap.String("clients", clients), zap.String("peers", peers))
}
