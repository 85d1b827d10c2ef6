package main

import (
	"fmt"
	"net/http"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Messages that contradict this node's log. In a cluster in which every node
// keeps what it has made durable there are none. There are if a data directory
// was put back from an older copy: then its node has forgotten what it
// acknowledged, and a majority with it may have forgotten what was committed.
//
// raft does not expect such messages. Of a heartbeat that commits more than the
// log holds it panics; an acknowledgement of more than the leader has it counts
// towards the majority. So they do not get to raft. But whoever reaches the peer
// port can write one, so they prove nothing either: the node that a message names
// as its sender is asked, over a connection of this node's own (inquiry.go).
//
// What looks alike, and is lawful, goes through: messages of other terms, whose
// senders may have been behind; a commit index in an append or a snapshot, which
// runs ahead of a follower that catches up; and a probe, or a snapshot, of an
// index that this node has committed long ago.

// sign is a message that contradicts this node's log.
type sign struct {
	from  uint64 // its sender
	index uint64 // of an entry that the two have in different terms; 0: not that
}

// contradicts looks for a sign in a message from a peer. If there is one, the
// message must not get to raft. It runs on the raft loop.
func (n *raftNode) contradicts(m *raftpb.Message) (s sign, found bool) {
	st := n.loop.rn.BasicStatus()
	s.from = m.GetFrom()
	switch m.GetType() {
	case raftpb.MsgHeartbeat:
		// The leader caps this commit index at what it has heard from this node
		// in its term (raft, sendHeartbeat). This node was in that term then.
		ahead := m.GetTerm() > st.GetTerm() && m.GetCommit() > 0
		return s, ahead || m.GetTerm() == st.GetTerm() && m.GetCommit() > n.loop.last
	case raftpb.MsgApp:
		s.index = n.conflict(m.GetIndex(), m.GetLogTerm(), m.GetEntries())
		return s, s.index > 0 && m.GetTerm() >= st.GetTerm()
	case raftpb.MsgSnap:
		meta := m.GetSnapshot().GetMetadata()
		s.index = n.conflict(meta.GetIndex(), meta.GetTerm(), nil)
		return s, s.index > 0 && m.GetTerm() >= st.GetTerm()
	case raftpb.MsgAppResp:
		// Followers acknowledge what they were sent, and what they know to be
		// committed; the leader of their term has all of it.
		leads := st.RaftState == raft.StateLeader && m.GetTerm() == st.GetTerm()
		return s, leads && !m.GetReject() && m.GetIndex() > n.loop.last
	case raftpb.MsgReadIndexResp:
		// A leader answers with its commit index, once it has committed an entry
		// of its own term: then it knows of everything that was committed before.
		return s, m.GetTerm() == st.GetTerm() && m.GetFrom() == st.Lead && n.answersBelow(m)
	}
	return s, false
}

// conflict returns the first index at which this node has applied an entry of
// another term than the one named; 0 if there is none, or the log does not reach
// back so far. Applied entries are on disk, and never change.
func (n *raftNode) conflict(index, term uint64, entries []*raftpb.Entry) uint64 {
	if n.differs(index, term) {
		return index
	}
	settled := n.settled()
	for _, e := range entries {
		if e.GetIndex() > settled {
			return 0 // and so is what follows
		}
		if n.differs(e.GetIndex(), e.GetTerm()) {
			return e.GetIndex()
		}
	}
	return 0
}

// differs reports whether this node has applied an entry of another term at an
// index.
func (n *raftNode) differs(index, term uint64) bool {
	if index == 0 || index > n.settled() {
		return false
	}
	own, err := n.storage.mem.Term(index)
	return err == nil && own != term
}

// settled is the index up to which the log on disk is known to be committed. That
// of raft's own commit index may still be on its way to the disk, and what the
// disk has in its place may be about to be overwritten.
func (n *raftNode) settled() uint64 {
	return max(n.loop.rn.BasicStatus().Applied, n.loop.begunAt)
}

// answersBelow reports whether an answer to a round of this node's is below the
// commit index that it had when it asked.
func (n *raftNode) answersBelow(m *raftpb.Message) bool {
	if len(m.GetEntries()) != 1 {
		return false
	}
	context := m.GetEntries()[0].GetData()
	return n.reads.life.asked(context) && m.GetIndex() < askedAt(context)
}

// blind reports whether raft would acknowledge a message without a look at the
// log: what begins below its commit index it answers with that index, and of
// the entry there this node has nothing left to compare. The leader may lack
// that index, or hold another entry there; so it has to vouch for its log first.
func (n *raftNode) blind(m *raftpb.Message) bool {
	st := n.loop.rn.BasicStatus()
	index := m.GetIndex()
	switch m.GetType() {
	case raftpb.MsgSnap:
		index = m.GetSnapshot().GetMetadata().GetIndex()
	case raftpb.MsgApp:
	default:
		return false
	}
	if index >= st.GetCommit() || m.GetTerm() < st.GetTerm() || n.loop.vouched == m.GetTerm() {
		return false
	}
	_, err := n.storage.mem.Term(index)
	return err != nil
}

// sift keeps from raft what contradicts this node's log, and has it looked into.
// A node that is split hears no leader: an acknowledgement would speak for
// entries that it does not have. It still votes, which concerns the end of its
// log alone.
func (n *raftNode) sift(m *raftpb.Message) (passes bool) {
	if from := m.GetFrom(); raft.IsLocalMsgTarget(from) || from == n.id {
		return true // its own disk and state machine
	}
	if n.loop.split {
		switch m.GetType() {
		case raftpb.MsgApp, raftpb.MsgSnap, raftpb.MsgHeartbeat, raftpb.MsgTimeoutNow:
			return false
		}
	}
	s, found := n.contradicts(m)
	if found {
		n.refusals.note(s.from, refusal{http.StatusConflict, refusedContradiction,
			fmt.Sprintf("a %s message contradicts this node's log", m.GetType())})
	} else if !n.blind(m) {
		return true
	}
	select {
	case n.signs <- s:
	default: // there is something to look into already
	}
	return false
}
