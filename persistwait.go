package main

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// awaitRoom returns when the disk has room for storage messages. Until then this
// node is like one with a slow disk: what nobody has written, nobody has
// acknowledged. Refusing writes early (room.go) makes it rare. It is called on the
// persist loop, and takes over from it what may make room.
func (n *raftNode) awaitRoom(ctx context.Context, msgs []*raftpb.Message) error {
	room := n.storage.room
	size, entries := sizeOf(msgs)
	if room.admits(size, entries) {
		return nil
	}
	n.log.Error("the disk has no room for the log: this node takes nothing more until there is some", zap.Int64("bytes", size))
	room.waiting.Store(true)
	defer room.waiting.Store(false)
	again := time.NewTicker(n.tick)
	defer again.Stop()
	for {
		select {
		case st := <-n.writtenC:
			if err := n.storage.written(st); err != nil {
				return fmt.Errorf("cannot store: %w", err)
			}
		case <-again.C:
			room.tend()
		case <-ctx.Done():
			// What is behind it in the queue must not be written without it.
			return fmt.Errorf("stopped while it waited: %w; free some before the next start", errNoRoom)
		}
		if room.admits(size, entries) {
			n.log.Info("the disk has room for the log again")
			return nil
		}
	}
}
