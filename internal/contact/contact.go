// Package contact answers: what was heard of whom, and what must others still hear?
// Contacts notes when messages came, for the age of stale reads and to judge peers;
// Outbox holds back what they need not hear at once, and often not at all.
package contact

import (
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// RaftStatus is what raft knows of its role, for others than the raft loop.
type RaftStatus struct {
	Term, Commit, Leader uint64 // Leader is 0 while none is known
	Role                 raft.StateType
}

// Contacts is when this node last heard from others. It bounds how old a stale
// read is, on a follower together with the time in which CheckQuorum makes a
// leader that is cut off step down (thesis §6.2). The raft loop notes what comes;
// anyone may ask. The zero value has heard from nobody.
type Contacts struct {
	mu       sync.Mutex
	Heard    map[uint64]time.Time // when a node's last message came
	followed map[uint64]time.Time // when it last answered this node as its leader
	// Leader is when this node last heard from its leader or, leading, when a
	// majority last answered. It is nil if never, and zero if this node is the
	// only voter, which always has.
	Leader *time.Time
}

// Note notes a message from another node. st is this node's role when it came.
func (c *Contacts) Note(m *raftpb.Message, st *RaftStatus, self uint64, rn *raft.RawNode) {
	from, now := m.GetFrom(), time.Now()
	if raft.IsLocalMsgTarget(from) || from == self {
		return // its own disk and state machine
	}
	answer := m.GetType() == raftpb.MsgAppResp || m.GetType() == raftpb.MsgHeartbeatResp
	c.mu.Lock()
	if c.Heard == nil {
		c.Heard, c.followed = make(map[uint64]time.Time), make(map[uint64]time.Time)
	}
	c.Heard[from] = now
	follows := answer && st.Role == raft.StateLeader && m.GetTerm() == st.Term
	if from == st.Leader {
		c.Leader = &now
	} else if follows {
		c.followed[from] = now
	}
	c.mu.Unlock()
	if follows {
		c.NoteMajority(st, self, rn)
	}
}

// NoteMajority notes on a leader when a majority last answered: another leader
// can have been elected only by a majority that had stopped to.
func (c *Contacts) NoteMajority(st *RaftStatus, self uint64, rn *raft.RawNode) {
	if st.Role != raft.StateLeader {
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
		c.Leader = new(time.Time)
		return
	}
	if len(others) < needed {
		return
	}
	slices.SortFunc(others, func(a, b time.Time) int { return b.Compare(a) })
	if c.Leader == nil || c.Leader.Before(others[needed-1]) {
		c.Leader = &others[needed-1]
	}
}

// Forget drops what is known of a former member.
func (c *Contacts) Forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.Heard, id)
	delete(c.followed, id)
}

// Last returns when the last message of a node came; zero if none has.
func (c *Contacts) Last(id uint64) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Heard[id]
}

// Since returns the nodes that were heard from at a time or later.
func (c *Contacts) Since(t time.Time) (ids []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, at := range c.Heard {
		if !at.Before(t) {
			ids = append(ids, id)
		}
	}
	return ids
}

// LeaderHeard returns when this node last heard from its leader or, leading, from
// a majority: nil if never, and zero if it is the only voter.
func (c *Contacts) LeaderHeard() *time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Leader
}

// BestFollower picks the voter with the longest log among those that were heard
// of since the given time, among equals the one heard of last; 0 if there is
// none.
func (c *Contacts) BestFollower(st raft.Status, since time.Time) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var best uint64
	for id, p := range st.Progress {
		if id == st.ID || p.IsLearner || c.Heard[id].Before(since) {
			continue
		}
		ahead := p.Match > st.Progress[best].Match
		equal := p.Match == st.Progress[best].Match
		if best == 0 || ahead || equal && c.Heard[id].After(c.Heard[best]) {
			best = id
		}
	}
	return best
}
