package main

import (
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// raftStatus is what raft knows of its role, for others than the raft loop.
type raftStatus struct {
	term, commit, leader uint64
	role                 raft.StateType
}

// contacts is when this node last heard from others. It bounds how old a stale
// read is, on a follower together with the time in which CheckQuorum makes a
// leader that is cut off step down (thesis §6.2). The raft loop notes what comes;
// anyone may ask. The zero value has heard from nobody.
type contacts struct {
	mu       sync.Mutex
	heard    map[uint64]time.Time // when a node's last message came
	followed map[uint64]time.Time // when it last answered this node as its leader
	// leader is when this node last heard from its leader or, leading, when a
	// majority last answered. It is nil if never, and zero if this node is the
	// only voter, which always has.
	leader *time.Time
}

// note notes a message from another node. st is this node's role when it came.
func (c *contacts) note(m *raftpb.Message, st *raftStatus, self uint64, rn *raft.RawNode) {
	from, now := m.GetFrom(), time.Now()
	if raft.IsLocalMsgTarget(from) || from == self {
		return // its own disk and state machine
	}
	answer := m.GetType() == raftpb.MsgAppResp || m.GetType() == raftpb.MsgHeartbeatResp
	c.mu.Lock()
	if c.heard == nil {
		c.heard, c.followed = make(map[uint64]time.Time), make(map[uint64]time.Time)
	}
	c.heard[from] = now
	follows := answer && st.role == raft.StateLeader && m.GetTerm() == st.term
	if from == st.leader {
		c.leader = &now
	} else if follows {
		c.followed[from] = now
	}
	c.mu.Unlock()
	if follows {
		c.noteMajority(st, self, rn)
	}
}

// noteMajority notes on a leader when a majority last answered: another leader
// can have been elected only by a majority that had stopped to.
func (c *contacts) noteMajority(st *raftStatus, self uint64, rn *raft.RawNode) {
	if st.role != raft.StateLeader {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	voters := 0
	var others []time.Time
	rn.WithProgress(func(id uint64, kind raft.ProgressType, _ tracker.Progress) {
		if kind != raft.ProgressTypePeer {
			return
		}
		voters++
		if at, ok := c.followed[id]; ok && id != self {
			others = append(others, at)
		}
	})
	needed := voters / 2 // beside this node
	if needed == 0 {
		c.leader = new(time.Time)
		return
	}
	if len(others) < needed {
		return
	}
	slices.SortFunc(others, func(a, b time.Time) int { return b.Compare(a) })
	if c.leader == nil || c.leader.Before(others[needed-1]) {
		c.leader = &others[needed-1]
	}
}

// forget drops what is known of a former member.
func (c *contacts) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.heard, id)
	delete(c.followed, id)
}

// last returns when the last message of a node came; zero if none has.
func (c *contacts) last(id uint64) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard[id]
}

// since returns the nodes that were heard from at a time or later.
func (c *contacts) since(t time.Time) (ids []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, at := range c.heard {
		if !at.Before(t) {
			ids = append(ids, id)
		}
	}
	return ids
}

// leaderHeard returns when this node last heard from its leader or, leading, from
// a majority: nil if never, and zero if it is the only voter.
func (c *contacts) leaderHeard() *time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leader
}

// bestFollower picks the voter with the longest log among those that were heard
// of since the given time, among equals the one heard of last; 0 if there is
// none.
func (c *contacts) bestFollower(st raft.Status, since time.Time) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var best uint64
	for id, p := range st.Progress {
		if id == st.ID || p.IsLearner || c.heard[id].Before(since) {
			continue
		}
		ahead := p.Match > st.Progress[best].Match
		equal := p.Match == st.Progress[best].Match
		if best == 0 || ahead || equal && c.heard[id].After(c.heard[best]) {
			best = id
		}
	}
	return best
}
