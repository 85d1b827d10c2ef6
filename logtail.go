package main

import (
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

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
			if id == n.id || time.Since(n.contacts.Last(id)) > n.elected || err != nil {
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
	t.Applied.Store(st.Applied)
	t.Needed.Store(needed)
}
