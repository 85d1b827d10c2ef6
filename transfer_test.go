package main

import (
	"context"
	"raftkv/internal/storage"
	"raftkv/internal/testkit"
	"raftkv/internal/transport"
	"raftkv/internal/wait"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// Without this a node that was added since the newest snapshot waits long for
// one that knows it, written at leisure.
func TestSnapshotForANewMemberIsAwaited(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		life, end := context.WithCancel(t.Context())
		defer end()
		kv := newTestStore()
		kv.wanted = make(chan struct{}, 1)
		s := &storage.Storage{Recorded: new(wait.Index)}
		c := transport.NewCourier(transport.CourierConfig{Tick: time.Second, Members: kv, Storage: s, Life: life})
		snapshotOf := func(index uint64, voters ...uint64) {
			s.Newest.Store(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
				Index: new(index), ConfState: &raftpb.ConfState{Voters: voters}}})
			s.Recorded.Advance(index)
		}
		snapshotOf(1, 1)
		got := make(chan *raftpb.Snapshot)
		go func() {
			snap, err := c.SnapshotWith(2)
			if err != nil {
				t.Error(err)
			}
			got <- snap
		}()
		for range 2 { // when the writing begins it is set back, and it must come again
			time.Sleep(c.Tick)
			synctest.Wait()
			if !s.Tail.Awaited.Swap(false) {
				t.Error("it is not awaited")
			}
		}
		snapshotOf(2, 1, 2)
		if snap := <-got; snap.GetMetadata().GetIndex() != 2 {
			t.Errorf("got %v", snap)
		}
	})
}
