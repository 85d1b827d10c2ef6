package reconfig

import (
	"raftkv/internal/logging"
	"raftkv/internal/membership"

	"go.uber.org/zap"
)

// SayChange says what a change that was committed at an index has made of a member. One
// without an ID is not there.
func SayChange(log *zap.Logger, index uint64, before, after membership.Member) {
	about := []zap.Field{logging.News, zap.Uint64("member", max(before.ID, after.ID)), zap.Uint64("index", index)}
	where := append(about, zap.String("peer-url", after.PeerURL))
	switch {
	case before.ID == 0 && after.ID == 0:
		return
	case after.ID == 0:
		log.Info("member removed", about...)
		return
	case before.ID == 0:
		log.Info("member added", append(where, zap.Bool("learner", after.Learner))...)
		return
	case before.Learner && !after.Learner:
		log.Info("member promoted to voter", where...)
	case !before.Learner && after.Learner:
		log.Info("member demoted to learner", where...)
	}
	if before.PeerURL != after.PeerURL {
		log.Info("member moved", append(where, zap.String("from", before.PeerURL))...)
	}
}
