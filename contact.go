package main

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// When this node last heard from others: it bounds how old a stale read is, on a
// follower together with the time in which CheckQuorum makes a leader that is cut
// off step down (thesis §6.2). All of it is done on the raft loop.

// noteHeard notes that a message came.
func (n *raftNode) noteHeard(m *raftpb.Message) {
	from, now, st := m.GetFrom(), time.Now(), n.status.Load()
	if raft.IsLocalMsgTarget(from) || from == n.id {
		return // its own disk and state machine
	}
	n.loop.heard[from] = now
	answer := m.GetType() == raftpb.MsgAppResp || m.GetType() == raftpb.MsgHeartbeatResp
	switch {
	case from == st.leader:
		n.leaderHeard.Store(&now)
	case answer && st.role == raft.StateLeader && m.GetTerm() == st.term:
		n.loop.followed[from] = now
		n.noteFollowed()
	}
}

// noteFollowed keeps leaderHeard on a leader: there it is when a majority last
// answered, for another can have been elected only by a majority that had
// stopped to.
func (n *raftNode) noteFollowed() {
	if n.status.Load().role != raft.StateLeader {
		return
	}
	voters := 0
	var others []time.Time
	n.loop.rn.WithProgress(func(id uint64, kind raft.ProgressType, _ tracker.Progress) {
		if kind != raft.ProgressTypePeer {
			return
		}
		voters++
		if at, ok := n.loop.followed[id]; ok && id != n.id {
			others = append(others, at)
		}
	})
	needed := voters / 2 // beside this node
	if needed == 0 {
		n.leaderHeard.Store(new(time.Time))
		return
	}
	if len(others) < needed {
		return
	}
	slices.SortFunc(others, func(a, b time.Time) int { return b.Compare(a) })
	if was := n.leaderHeard.Load(); was == nil || was.Before(others[needed-1]) {
		n.leaderHeard.Store(&others[needed-1])
	}
}
