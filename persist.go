package main

import (
	"context"
	"fmt"
	"raftkv/internal/liveness"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// stored is the persist loop's answer.
type stored struct {
	responses []*raftpb.Message // for this node's own raft
	installed []stateFile       // state files of snapshots that are now recorded
}

// persist is the persist loop: it takes everything that waits, makes it
// durable with one fsync, and only then sends what depends on it.
func (n *raftNode) persist(ctx context.Context) error {
	trim := time.NewTicker(n.tick)
	defer trim.Stop()
	for {
		select {
		case <-n.persistPulse.Comes():
		case <-trim.C:
			if err := n.storage.Trim(); err != nil {
				return err
			}
			n.storage.Room.Tend()
			if err := n.persistPulse.Excused(liveness.WaitsForDisk, func() error { return n.storage.Rest(n.tick) }); err != nil {
				return fmt.Errorf("cannot store: %w", err)
			}
		case msgs := <-n.appendC:
			if err := n.persistPulse.Excused(liveness.WaitsForDisk, func() error { return n.store(ctx, msgs) }); err != nil {
				return fmt.Errorf("cannot store: %w", err)
			}
			s, err := n.answer(msgs)
			if err != nil {
				return err
			}
			select {
			case n.storedC <- s:
			case <-ctx.Done():
				return nil
			}
			_ = n.persistPulse.Excused(liveness.WaitsForDisk, func() error {
				n.storage.Zeros.Step(n.storage.Room.InUse()) // now that nobody waits for it
				return nil
			})
		case st := <-n.writtenC:
			if err := n.persistPulse.Excused(liveness.WaitsForDisk, func() error { return n.storage.Written(st) }); err != nil {
				return fmt.Errorf("cannot store: %w", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// store makes storage messages durable, once the disk has room for them.
func (n *raftNode) store(ctx context.Context, msgs []*raftpb.Message) error {
	if err := n.storage.AwaitRoom(ctx, msgs, n.tick, n.writtenC); err != nil {
		return err
	}
	return n.storage.Append(msgs)
}

// answer sends the responses that were waiting for the fsync to other nodes,
// and gathers those for this one.
func (n *raftNode) answer(msgs []*raftpb.Message) (stored, error) {
	var s stored
	var out []*raftpb.Message
	for _, m := range msgs {
		if snap := m.GetSnapshot(); !raft.IsEmptySnap(snap) {
			meta := snap.GetMetadata()
			// Open, because with the next snapshot it may go before it is read.
			f, err := n.storage.OpenState(meta.GetTerm(), meta.GetIndex())
			if err != nil && meta.GetIndex() == n.storage.SnapIndex.Load() {
				return s, fmt.Errorf("received snapshot: %w", err)
			}
			if err == nil {
				s.installed = append(s.installed, f)
			}
		}
		for _, resp := range m.GetResponses() {
			if resp.GetTo() == n.id {
				s.responses = append(s.responses, resp)
			} else {
				out = append(out, resp)
			}
		}
	}
	if len(out) > 0 {
		n.send(out)
	}
	return s, nil
}

// noteNeeds tells the persist loop which part of the log somebody needs. It is
// called on the raft loop, at each tick; what moves between two of them, the
// tail covers.
func (n *raftNode) noteNeeds() {
	t := &n.storage.Tail
	st := n.loop.rn.BasicStatus()
	needed := st.Applied
	if st.RaftState == raft.StateLeader {
		base := max(n.storage.SnapIndex.Load(), t.Writing.Load())
		first, err := n.storage.Mem.FirstIndex()
		n.loop.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
			// By when it was heard, not by RecentActive: raft sets that back,
			// at the tick that looks at it.
			if id == n.id || time.Since(n.contacts.Last(id)) > n.electionTimeout || err != nil {
				return
			}
			from := pr.Match
			if pr.State == tracker.StateSnapshot {
				from = pr.PendingSnapshot
			} else if from+1 < first {
				from = base // it is going to get a snapshot
			}
			needed = min(needed, from)
		})
	}
	n.doubts.Applied(st.Applied)
	t.Applied.Store(st.Applied)
	t.Needed.Store(needed)
}
