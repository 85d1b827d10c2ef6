package storage

import (
	"context"
	"fmt"
	"raftkv/internal/state"
	"raftkv/internal/storage/walroom"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// AwaitRoom returns when the disk has room for storage messages. Until then this
// node is like one with a slow disk: what nobody has written, nobody has
// acknowledged. Refusing writes early (package room) makes it rare. It is called on the
// persist loop, and takes over from it what may make room: it looks again each
// tick, and when a snapshot has been written.
func (s *Storage) AwaitRoom(ctx context.Context, msgs []*raftpb.Message, tick time.Duration, written <-chan *state.State) error {
	room := s.Room
	size, entries := walroom.SizeOf(msgs)
	if room.Admits(size, entries) {
		return nil
	}
	s.log.Error("the disk has no room for the log: this node takes nothing more until there is some", zap.Int64("bytes", size))
	room.Waiting.Store(true)
	defer room.Waiting.Store(false)
	again := time.NewTicker(tick)
	defer again.Stop()
	for {
		select {
		case st := <-written:
			if err := s.Written(st); err != nil {
				return fmt.Errorf("cannot store: %w", err)
			}
		case <-again.C:
			room.Tend()
		case <-ctx.Done():
			// What is behind it in the queue must not be written without it.
			return fmt.Errorf("stopped while it waited: %w; free some before the next start", walroom.ErrNoRoom)
		}
		if room.Admits(size, entries) {
			s.log.Info("the disk has room for the log again")
			return nil
		}
	}
}
